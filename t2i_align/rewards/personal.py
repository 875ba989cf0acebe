"""``t2i-align rewards train`` of personal reward heads (``scorer: personal``): who likes what, from frozen features.

The run folder holds ``config.yaml``, ``model/`` (the head), ``pooled/`` (the same head with one taste for all),
``features.json`` and, with held-out users, ``few_shot.md``, ``few_shot.json`` and ``few_shot.png``: accuracy for new
users against the number of their pairs, beside the pooled head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from reward_models.personal.curve import FewShotCurve, few_shot_curve
from reward_models.personal.files import PersonalHead, save_head
from reward_models.personal.ideal_points import fit_ideal_points
from reward_models.personal.low_rank import fit_low_rank
from reward_models.personal.records import PreferencePairs
from t2i_align.config.layers import Merged
from t2i_align.config.problems import from_sections, report
from t2i_align.config.schema import DataConfig, NonNegativeInt, PositiveInt, Section
from t2i_align.data.pair_source import PairSource
from t2i_align.data.sampler import permutation
from t2i_align.data.selection import normalise
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError
from t2i_align.personal.crowd import pairs_by_user, split_users
from t2i_align.personal.features import Extractor, open_extractor
from t2i_align.personal.pair_features import PairFeatures, pair_features
from t2i_align.sections import Folder

KIND = "personal"
FEATURES_FILE = "features.json"
LEAST_TEST_PAIRS = 4


class AnswersSection(Section):
    """Where the answers come from; a subset of a training run's data section, with the same meaning."""

    source: str = Field(description="pairs with user ids: parquet, JSONL, folder, hub id")
    format: Literal["auto", "pickapic", "jsonl", "ranked"] = "auto"
    split: str = "train"
    heldout_source: str | None = Field(None, description="answers of users the head is not trained on")
    heldout_split: str = "validation"
    max_pairs: PositiveInt | None = None
    cache_dir: str | None = Field(None, description="of the features; null: in the run folder")

    def as_data(self) -> DataConfig:
        """The same as a data section; ties stay, they are evidence of indifference."""
        values = self.model_dump(exclude={"cache_dir"})
        return DataConfig.model_validate({**values, "ties": "soft", "resolution": 8})  # no picture is resized


class HeadSection(Section):
    """Which head, and its sizes; see ``reward_models.personal``."""

    kind: Literal["low_rank", "ideal_points"] = "low_rank"
    rank: PositiveInt = Field(4, description="low_rank: directions in which people differ")
    ridge: float = Field(1.0, gt=0.0, description="low_rank: of the weights, on features of unit differences")
    prototypes: PositiveInt = Field(3, description="ideal_points: K")
    width: PositiveInt = Field(16, description="ideal_points: dimensions of the space")
    steps: PositiveInt = Field(500, description="ideal_points: of AdamW")


class FewShotSection(Section):
    """Accuracy for users who were held out."""

    heldout_users: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of the source's users held out, unless data.heldout_source has others",
    )
    shots: list[NonNegativeInt] = Field([0, 1, 2, 4, 8, 16, 32], min_length=1, description="numbers of pairs")
    active: bool = Field(False, description="let the head choose the next pair instead of taking them in order")


class PersonalRewardConfig(Section):
    """A whole run."""

    scorer: Literal["personal"]
    output_dir: Folder
    seed: NonNegativeInt = 0
    features: str = Field(description="pixels, or a CLIP model: transformers folder, hub id, shapes:pickscore")
    data: AnswersSection
    head: HeadSection = Field(default_factory=HeadSection)
    few_shot: FewShotSection = Field(default_factory=FewShotSection)

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> PersonalRewardConfig:
        unread = {"low_rank": {"prototypes", "width", "steps"}, "ideal_points": {"rank", "ridge"}}[self.head.kind]
        if set_here := sorted(unread & self.head.model_fields_set):
            raise ValueError(f"head.kind {self.head.kind} does not read {', '.join(set_here)}; remove it")
        if self.data.heldout_source is not None and self.few_shot.heldout_users > 0:
            raise ValueError("few_shot.heldout_users and the data section both hold pairs out; keep one")
        return self


@dataclass(frozen=True)
class PersonalResult:
    """What a run leaves behind.

    Attributes:
        folder: of the head.
        curve: of the held-out users; None without any.
    """

    folder: Path
    curve: FewShotCurve | None

    def render(self) -> str:
        """A few lines of plain text."""
        return f"Head: {self.folder}\n" + ("" if self.curve is None else self.curve.table())


def is_personal(values: Mapping[str, Any]) -> bool:
    """Whether a merged configuration asks for a personal head."""
    return values.get("scorer") == KIND


def read_config(merged: Merged, source: str) -> PersonalRewardConfig:
    """Check a merged configuration.

    Raises:
        UserError: every problem together.
    """
    try:
        return PersonalRewardConfig.model_validate(merged.values)
    except ValidationError as error:
        raise report(from_sections(error), source, merged.places) from error


def train(config: PersonalRewardConfig) -> PersonalResult:
    """Compute features (once), fit the head and the pooled head, and measure; seconds for thousands of pairs.

    Raises:
        UserError: pairs without users, held-out users with too few pairs, or a folder that holds another run.
        RewardModelError: nothing to learn from.
    """
    folder = Path(config.output_dir)
    if folder.exists() and any(path.name != "features" for path in folder.iterdir()):
        raise UserError("The output folder is not empty.", str(folder), "choose another output_dir")
    extractor = open_extractor(config.features)
    cache = Path(config.data.cache_dir or folder / "features").expanduser()
    data = config.data.as_data()
    source = open_source(data, "train", config.seed)
    training, heldout = split_users(pairs_by_user(source), config.few_shot.heldout_users)
    features = pair_features(source, extractor, cache)
    everything = comparisons(source, features)
    kept = torch.tensor([row for rows in training.values() for row in rows])
    names = [user for user, rows in training.items() for _ in rows]
    pairs = PreferencePairs.build(everything.features, everything.index[kept], everything.label[kept], names)
    head = fit_head(pairs, config.head, config.seed)
    pooled = fit_low_rank(pairs, rank=0, ridge=config.head.ridge, seed=config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_head(head, folder / "model")
    save_head(pooled, folder / "pooled")
    described = {"features": config.features, "fingerprint": extractor.fingerprint}
    (folder / FEATURES_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(resolved, encoding="utf-8")
    if config.data.heldout_source is not None:
        source = open_source(data, "heldout", config.seed)
        features = pair_features(source, extractor, cache)
        everything = comparisons(source, features)
        heldout = pairs_by_user(source)
    if not heldout:
        return PersonalResult(folder / "model", None)
    looks = features.pairs_of_pictures()
    curve = measure(head, pooled, everything, heldout, list(zip(source.captions(), looks, strict=True)), config)
    write_curve(curve, folder)
    return PersonalResult(folder / "model", curve)


def fit_head(pairs: PreferencePairs, section: HeadSection, seed: int) -> PersonalHead:
    """The head that a section describes, fitted."""
    if section.kind == "low_rank":
        return fit_low_rank(pairs, rank=section.rank, ridge=section.ridge, seed=seed)
    return fit_ideal_points(pairs, prototypes=section.prototypes, width=section.width, steps=section.steps, seed=seed)


def comparisons(source: PairSource, features: PairFeatures) -> PreferencePairs:
    """The pairs of a source as a head reads them: an item is a picture with its caption.

    Its vector is [x; x * c] where picture x and caption c have one width, as CLIP's, so that a head can see how well
    they fit; else x alone, as the caption is the same on both sides.
    """
    keys = torch.cat([torch.stack([features.index[:, side], features.caption], 1) for side in (0, 1)])
    items, row = torch.unique(keys, dim=0, return_inverse=True)
    vectors: Tensor = features.pictures[items[:, 0]]
    if features.captions.shape[1] == vectors.shape[1]:
        vectors = torch.cat([vectors, vectors * features.captions[items[:, 1]]], dim=1)
    index = row.reshape(2, -1).T
    return PreferencePairs.build(vectors, index, source.labels().tolist(), [str(user) for user in source.users()])


def measure(
    head: PersonalHead,
    pooled: PersonalHead,
    pairs: PreferencePairs,
    users: Mapping[str, list[int]],
    asked_about: list[tuple[str, tuple[int, int]]],
    config: PersonalRewardConfig,
) -> FewShotCurve:
    """The few-shot curve over held-out users, who are asked about some prompts and tested on others.

    Args:
        head, pooled: what is measured, and one taste for all.
        pairs: of the source.
        users: rows of the source by user.
        asked_about: caption and pictures of every pair; nobody is tested on pictures they were asked about.
        config: shots.

    Raises:
        UserError: no user has enough pairs.
    """
    most = max(config.few_shot.shots)
    support, test = {}, {}
    for user, rows in users.items():
        asked, kept = _divide([row for row in rows if pairs.label[row] != 0.5], asked_about, most, config.seed)
        if len(asked) < most or len(kept) < LEAST_TEST_PAIRS:
            continue
        support[user], test[user] = (
            PreferencePairs.of_one(pairs.features, pairs.index[part], pairs.label[part], user) for part in (asked, kept)
        )
    if not support:
        raise UserError(
            "No held-out user has enough decided pairs to measure.",
            f"{len(users)} users; wanted {most} to learn from and {LEAST_TEST_PAIRS} of other prompts to test on",
            "lower few_shot.shots, or hold out users with more pairs",
        )
    shots = tuple(config.few_shot.shots)
    return few_shot_curve(head, support, test, shots, pooled, config.few_shot.active, config.seed)


def _divide(
    rows: list[int], asked_about: list[tuple[str, tuple[int, int]]], count: int, seed: int
) -> tuple[list[int], list[int]]:
    """`count` rows to ask about, and those of all other prompts and pictures; prompts are taken in a seeded order."""
    by_prompt: dict[str, list[int]] = {}
    for place in permutation(0, len(rows), seed).tolist() if rows else []:
        by_prompt.setdefault(normalise(asked_about[rows[place]][0]), []).append(rows[place])
    asked: list[int] = []
    prompts = list(by_prompt)
    while prompts and len(asked) < count:
        asked += by_prompt[prompts.pop(0)]
    seen = {asked_about[row][1] for row in asked}
    rest = [row for prompt in prompts for row in by_prompt[prompt]]
    return asked[:count], [row for row in rest if asked_about[row][1] not in seen]


def write_curve(curve: FewShotCurve, folder: Path) -> None:
    """Markdown, JSON and a figure."""
    from matplotlib.figure import Figure

    (folder / "few_shot.md").write_text(curve.table(), encoding="utf-8")
    (folder / "few_shot.json").write_text(json.dumps(asdict(curve), indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    values = np.array([estimate.value for estimate in curve.accuracy])
    spread = np.array([[e.value - e.low, e.high - e.value] for e in curve.accuracy]).T
    places = np.arange(len(curve.shots))
    axes.errorbar(places, values, spread, marker="o", capsize=3, label="personal head")
    if curve.pooled is not None:
        axes.axhline(curve.pooled.value, color="grey", linestyle="--", label="pooled head")
        axes.axhspan(curve.pooled.low, curve.pooled.high, color="grey", alpha=0.15)
    axes.set_xticks(places, [str(shots) for shots in curve.shots])
    axes.set_xlabel("pairs of the new user")
    axes.set_ylabel("accuracy on other pairs of the user")
    axes.legend()
    figure.savefig(folder / "few_shot.png", dpi=100)


def read_features(folder: str | Path) -> Extractor:
    """The extractor a head was trained with.

    Raises:
        UserError: not the run folder of a personal head, or features that have changed since.
    """
    path = Path(folder) / FEATURES_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        fix = "give the output_dir of t2i-align rewards train with scorer: personal"
        raise UserError("This is not the run folder of a personal reward head.", f"{path}: {error}", fix) from error
    extractor = open_extractor(described["features"])
    if extractor.fingerprint != described["fingerprint"]:
        found = f"{described['features']}: {extractor.fingerprint}, trained on {described['fingerprint']}"
        raise UserError("The features are not those of the head.", found, "use the same model, or train the head again")
    return extractor
