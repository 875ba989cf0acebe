"""Everything the drift page shows, measured on the pictures and scores of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from t2i_align.errors import UserError
from t2i_align.evaluation import statistics
from t2i_align.evaluation.drift.agreement import Agreement, Score, agreement
from t2i_align.evaluation.drift.appearance import MEASURES, appearance
from t2i_align.evaluation.drift.features import (
    ClipEncoder,
    PerceptualEncoder,
    distance_to_others,
    mean_pairwise_distance,
    mean_pairwise_square,
    open_encoder,
    unit,
    vendi_score,
)
from t2i_align.evaluation.drift.trajectory import Trajectory, trajectory
from t2i_align.evaluation.manifest import read_manifest
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.statistics import Estimate
from t2i_align.evaluation.verdict import percent

SHIFT_ALARM = 0.5  # standard deviations of the baseline's pictures
VARIETY_ALARM = 0.1  # relative loss
VARIETY = {
    "seed_distance": "Variety between seeds of a prompt (1 − cos of features)",
    "seed_perceptual": "Variety between seeds of a prompt (perceptual)",
    "seed_vendi": "Different pictures among a prompt’s seeds (Vendi)",
    "prompt_distance": "Variety between prompts (1 − cos of features)",
}
TITLES = {
    **{name: name.capitalize() for name in MEASURES},
    "clipped": "Clipped values",
    **VARIETY,
    "distance": "Perceptual distance from the base",
}


@dataclass(frozen=True)
class Shift:
    """One measure of one model against the baseline.

    Attributes:
        measure: key of ``TITLES``.
        before, after: means of baseline and model.
        difference: mean paired difference over prompts.
        standardised: difference in standard deviations of the baseline's prompts; NaN where that has no meaning.
        alarm: what is wrong, or None.
    """

    measure: str
    before: float
    after: float
    difference: Estimate
    standardised: float
    alarm: str | None

    @property
    def title(self) -> str:
        """For the reader."""
        return TITLES[self.measure]


@dataclass(frozen=True)
class Drift:
    """The drift page.

    Attributes:
        features: what variety was measured with.
        shifts: model -> its measures.
        vendi: model -> Vendi score of all its pictures together.
        agreement: model -> how the scores' gains go together.
        trajectories: runs of which several checkpoints were judged.
    """

    features: str
    shifts: Mapping[str, tuple[Shift, ...]]
    vendi: Mapping[str, float]
    agreement: Mapping[str, Agreement]
    trajectories: tuple[Trajectory, ...] = ()

    def warnings(self, model: str) -> list[str]:
        """Sentences on what went wrong with a model; empty where nothing was found."""
        found = [shift.alarm for shift in self.shifts.get(model, ()) if shift.alarm]
        found += _disagreement(self.agreement[model]) if model in self.agreement else []
        found += [one.sentence for one in self.trajectories if model in (*one.models, one.run) and one.over_optimised]
        return found


@dataclass
class _Pictures:
    """Per-prompt measures of one model: name -> ``[n]``, and features ``[n, k, D]`` (NaN where there is no picture)."""

    values: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: np.ndarray = field(default_factory=lambda: np.empty(0))


def measure(
    evaluation: Evaluation,
    *,
    features: str | None = None,
    proxy: str | None = None,
    vae: Any = None,
    device: str | None = None,
) -> Drift:
    """Measure what changed beside the scores.

    Args:
        evaluation: with its pictures in place. Its settings may name ``checkpoints``: run -> {step: model}.
        features: CLIP-based reward model for variety; None takes the first among the evaluation's scorers, or else the
            layers of the baseline's VAE encoder.
        proxy: score that the models were trained on, ``SCORER`` or ``SCORER:DIMENSION``.
        vae: for perceptual distances; None is the baseline's own.
        device: None is CUDA where there is one, else the CPU.

    Raises:
        UserError: no such score, or features that cannot be had.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained_on = which(evaluation, proxy)
    if vae is None:
        vae = _vae_of(evaluation.models[evaluation.baseline], evaluation.settings, device)
    perceptual = PerceptualEncoder(vae, f"encoder of {evaluation.baseline}’s VAE")
    clip = open_encoder(features, evaluation.settings.get("scorers", ()), device)
    pictures = _look(evaluation, perceptual, clip)
    before = pictures[evaluation.baseline]
    others = [name for name in evaluation.models if name != evaluation.baseline]
    shifts = {name: tuple(_shifts(evaluation, name, before, pictures[name])) for name in others}
    agreements = {name: agreement(evaluation, name, trained_on) for name in others}
    return Drift(
        features=perceptual.name if clip is None else clip.name,
        shifts=shifts,
        vendi={name: vendi_score(_rows(one.vectors)) for name, one in pictures.items()},
        agreement=agreements,
        trajectories=tuple(_trajectories(evaluation, trained_on, shifts, agreements)),
    )


def which(evaluation: Evaluation, score: str | None) -> Score | None:
    """``SCORER`` or ``SCORER:DIMENSION`` as one of the evaluation's scores.

    Raises:
        UserError: there is none of that name.
    """
    if score is None:
        return None
    for scorer, dimension in evaluation.scores.dimensions:
        if score in (scorer, f"{scorer}:{dimension}"):
            return scorer, dimension
    known = ", ".join(":".join(pair) for pair in evaluation.scores.dimensions)
    raise UserError("The score that was trained on is not among the scores.", score, f"use one of: {known}")


def _vae_of(model: str, settings: Mapping[str, Any], device: str) -> Any:
    from t2i_align.backbones import identify_model
    from t2i_align.backbones.folders import resolve_folder
    from t2i_align.backbones.loading import BACKBONES, load_vae

    config = identify_model(model, settings.get("base"), settings.get("variant")).base
    name = config.pretrained_vae_model_name_or_path
    if name is None:
        name = str(
            resolve_folder(config.pretrained_model_name_or_path, tuple(BACKBONES), config.revision, config.variant)
        )
    return load_vae(name, torch.float32).to(device).eval()


def _look(evaluation: Evaluation, perceptual: PerceptualEncoder, clip: ClipEncoder | None) -> dict[str, _Pictures]:
    """Go through the pictures prompt by prompt; all that is kept are numbers and one vector each."""
    prompts, draws = evaluation.scores.shape
    files = {
        name: {
            (p.prompt_index, p.draw): evaluation.folder / name / p.file for p in read_manifest(evaluation.folder / name)
        }
        for name in evaluation.models
    }
    looked = {name: _Pictures() for name in evaluation.models}
    for prompt in range(prompts):
        opened = {
            (name, draw): image
            for name in evaluation.models
            for draw in range(draws)
            if (image := _open(files[name].get((prompt, draw)))) is not None
        }
        if not opened:
            continue
        close, coarse = perceptual(list(opened.values()))
        rows = dict(zip(opened, close, strict=True))
        vectors = dict(zip(opened, coarse if clip is None else clip(list(opened.values())), strict=True))
        width = len(next(iter(vectors.values())))
        for name, one in looked.items():
            present = [draw for draw in range(draws) if (name, draw) in opened]
            if one.vectors.size == 0:
                one.vectors = np.full((prompts, draws, width), np.nan, dtype=np.float32)
            for draw in present:
                one.vectors[prompt, draw] = vectors[name, draw]
            found = _of_prompt([opened[name, draw] for draw in present], [rows[name, draw] for draw in present])
            paired = [draw for draw in present if (evaluation.baseline, draw) in opened]
            if paired and name != evaluation.baseline:
                gaps = [((rows[name, draw] - rows[evaluation.baseline, draw]) ** 2).sum() for draw in paired]
                found["distance"] = float(np.mean(gaps))
            for key, value in found.items():
                one.values.setdefault(key, np.full(prompts, np.nan))[prompt] = value
    if (
        clip is None
    ):  # what all pictures have in common would hide how they differ; no model's own mean, which flatters it
        common = np.mean([_rows(one.vectors).mean(axis=0) for one in looked.values()], axis=0)
        for one in looked.values():
            one.vectors = unit(one.vectors - common)
    for one in looked.values():
        _variety(one)
    return looked


def _of_prompt(images: Sequence[Image.Image], rows: Sequence[np.ndarray]) -> dict[str, float]:
    """Measures of one model's pictures of one prompt."""
    found: dict[str, float] = {}
    if images:
        looks = [appearance(image) for image in images]
        found = {name: float(np.mean([look[name] for look in looks])) for name in MEASURES}
    if len(images) > 1:
        found["seed_perceptual"] = mean_pairwise_square(np.stack(rows))
    return found


def _variety(one: _Pictures) -> None:
    """Distances within and between prompts, from the vectors."""
    prompts, draws = one.vectors.shape[:2]
    if draws > 1:
        for key, measured in {"seed_distance": mean_pairwise_distance, "seed_vendi": vendi_score}.items():
            sets = [row[~np.isnan(row[:, 0])].astype(np.float64) for row in one.vectors]
            one.values[key] = np.array([measured(found) if len(found) > 1 else np.nan for found in sets])
    if prompts > 1:
        one.values["prompt_distance"] = _between_prompts(one.vectors.astype(np.float64))


def _between_prompts(vectors: np.ndarray) -> np.ndarray:
    """``[n]``: mean distance of a prompt's pictures to the other prompts' pictures of the same draw."""
    distances = np.full(vectors.shape[:2], np.nan)
    for draw in range(vectors.shape[1]):
        present = ~np.isnan(vectors[:, draw, 0])
        if present.sum() > 1:
            distances[present, draw] = distance_to_others(vectors[present, draw])
    counts = (~np.isnan(distances)).sum(axis=1)
    return np.where(counts > 0, np.nansum(distances, axis=1) / np.maximum(counts, 1), np.nan)


def _rows(vectors: np.ndarray) -> np.ndarray:
    flat = vectors.reshape(-1, vectors.shape[-1])
    return flat[~np.isnan(flat[:, 0])]


def _shifts(evaluation: Evaluation, name: str, before: _Pictures, after: _Pictures) -> list[Shift]:
    found = []
    for key in TITLES:
        if key not in after.values:
            continue
        new = after.values[key]
        old = before.values.get(key, np.zeros_like(new))  # a model is at no distance from itself
        usable = ~(np.isnan(new) | np.isnan(old))
        if not usable.any():
            continue
        difference = statistics.mean(
            new[usable] - old[usable], confidence=evaluation.confidence, replicates=evaluation.replicates
        )
        spread = float(old[usable].std())
        standardised = difference.value / spread if spread > 0 and key in MEASURES else float("nan")
        found.append(_shift(name, key, float(old[usable].mean()), float(new[usable].mean()), difference, standardised))
    return found


def _shift(model: str, key: str, before: float, after: float, difference: Estimate, standardised: float) -> Shift:
    alarm = None
    certain = difference.excludes(0.0)
    if key == "clipped" and certain and after > 2 * before and after > 0.01:
        alarm = f"Clipped values of {model} are {100 * after:.1f} % of all, {100 * before:.1f} % of the baseline’s."
    elif key in MEASURES and key != "clipped" and abs(standardised) > SHIFT_ALARM and _beyond(difference):
        way = "higher" if standardised > 0 else "lower"
        alarm = f"{TITLES[key]} of {model} is {abs(standardised):.1f} standard deviations {way} than the baseline’s."
    elif key in VARIETY and difference.high < 0 and after < (1 - VARIETY_ALARM) * before:
        alarm = f"{TITLES[key]}: {model} has lost {percent(1 - after / before)} of the baseline’s."
    return Shift(key, before, after, difference, standardised, alarm)


def _beyond(difference: Estimate) -> bool:
    """Whether even the near end of the interval is half as far from zero as the estimate: few prompts prove little."""
    return min(difference.low / difference.value, difference.high / difference.value) > 0.5


def _disagreement(found: Agreement) -> list[str]:
    sentences = []
    if found.gap is not None and found.proxy is not None and found.gap.low > 0 and found.contradicted is not None:
        held_out = [gain for score, gain in zip(found.scores, found.gains, strict=True) if score != found.proxy]
        if found.contradicted > 1 / 3 or any(gain.high < 0 for gain in held_out):
            sentences.append(
                f"The score trained on ({' '.join(found.proxy)}) gained {found.gap.value:.2f} standard deviations more "
                f"than the held-out ones, which contradict {percent(found.contradicted)} of its wins."
            )
    following, beauty = found.following, found.aesthetics
    if following is not None and beauty is not None and following.high < 0 < beauty.low:
        sentences.append(
            f"Pictures became more beautiful ({beauty.value:+.2f} standard deviations) and follow their prompts less "
            f"({following.value:+.2f})."
        )
    return sentences


def _trajectories(
    evaluation: Evaluation,
    proxy: Score | None,
    shifts: Mapping[str, tuple[Shift, ...]],
    agreements: Mapping[str, Agreement],
) -> list[Trajectory]:
    """Curves of the runs whose checkpoints are here; steps that lose variety or prompt-following are refused."""
    found = []
    for run, names in (evaluation.settings.get("checkpoints") or {}).items():
        checkpoints = {int(step): name for step, name in names.items()}
        refused = {}
        for step, name in checkpoints.items():
            reasons = [shift.alarm for shift in shifts.get(name, ()) if shift.measure in VARIETY and shift.alarm]
            following = agreements[name].following if name in agreements else None
            if following is not None and following.high < 0:
                reasons.append(f"prompt-following fell by {-following.value:.2f} standard deviations")
            if reasons:
                refused[step] = reasons[0]
        judge = next((score for score in evaluation.scores.dimensions if proxy and score[0] != proxy[0]), None)
        found.append(trajectory(evaluation, run, checkpoints, judge, proxy, refused))
    return found


def _open(path: Any) -> Image.Image | None:
    if path is None or not path.is_file():
        return None
    try:
        return decode_image(path)
    except RewardModelError:
        return None
