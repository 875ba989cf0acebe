"""``t2i-align rewards train``: from a YAML file and any pair source to a trained head.

The file holds the keys of `reward_models.training.config.RewardTrainingConfig`, or a ``recipe`` to start from, and a
``data`` section. ``extends`` and overrides work as for any run; ``shapes:`` addresses stand for packaged files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import Field, ValidationError

from reward_models.errors import RewardModelError, unknown_name
from reward_models.images import decode_image
from reward_models.training.config import RewardTrainingConfig, training_config
from reward_models.training.loop import Progress, TrainingResult
from reward_models.training.loop import train as train_head
from reward_models.training.records import PreferenceRecord, prompt_weights
from t2i_align.config.layers import Merged, merge
from t2i_align.config.problems import Problem, in_words, report
from t2i_align.config.schema import DataConfig, PositiveInt, Section
from t2i_align.config.texts import text_keys
from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import normalise
from t2i_align.data.sources import has_heldout, open_source
from t2i_align.errors import UserError
from t2i_align.rewards.pairs import encoded_pictures
from t2i_align.rewards.scorers import resolved
from t2i_align.shapes.oracle import DIMENSIONS, Oracle

ORACLE_PREFIX = "oracle:"
ORACLE_CHUNK = 128  # pairs measured together


class PretrainingConfig(Section):
    """The start of a head of the shapes world, see `t2i_align.rewards.pretraining`."""

    towers: str | None = Field(
        None, description="a start of equal sizes to take both towers from, instead of training them"
    )
    pictures: PositiveInt = Field(16000, description="rendered pictures, each with a caption of its own")
    steps: PositiveInt = Field(2000, description="optimiser steps on them")
    samples: list[str] = Field([], description="pair sources whose pictures join them for a second stage")
    copies: PositiveInt = Field(
        8, description="of every sample: the picture itself, then moved, mirrored, blurred ones"
    )
    sample_steps: PositiveInt = Field(2000, description="optimiser steps of the second stage, at half the rate")
    sample_rounds: PositiveInt = Field(
        1, description="how often the second stage is made, each time from a fresh optimiser at half the rate before"
    )
    fusion_steps: int = Field(0, ge=0, description="mps: steps of its fusion module, after masks; 0 leaves both random")
    logit_scale: float | None = Field(
        None, gt=0, description="exp(logit_scale) of the start, 100 as CLIP ends with; null: 14.3"
    )
    batch_size: PositiveInt = Field(128, description="pictures and captions per step")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)


class RewardDataConfig(Section):
    """Which pairs a head is trained on; the keys mean what they mean in the data section of a run."""

    source: str = Field(description="any pair source")
    extra_sources: list[str] = Field(
        [],
        description="more pairs to train on, in known layouts, less those of held-out prompts; max_pairs spares them",
    )
    format: Literal["auto", "pickapic", "jsonl", "ranked"] = "auto"
    split: str = "train"
    heldout_source: str | None = None
    heldout_split: str = "validation"
    heldout_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    ties: Literal["drop", "soft", "coin", "zero_weight"] = Field("soft", description="the losses know ties")
    max_pairs: PositiveInt | None = None
    shuffle_labels: bool = False
    prompt_weights: bool = Field(False, description="weigh a pair by 1 / (pairs of its prompt), as PickScore does")
    dimensions: dict[str, str] = Field(
        {}, description="label dimension -> a margin stored with the pairs, or oracle:semantic, :aesthetic, :detail"
    )
    dimension_ties: float = Field(0.01, ge=0.0, description="differences up to this are ties of a dimension")

    def pairs(self) -> DataConfig:
        """The section as the pair sources read it; the resolution is never looked at."""
        own = {"extra_sources", "prompt_weights", "dimensions", "dimension_ties"}
        return DataConfig.model_validate({**self.model_dump(exclude=own), "resolution": 8})


@dataclass(frozen=True)
class RewardRun:
    """A checked configuration."""

    data: RewardDataConfig
    training: RewardTrainingConfig
    pretraining: PretrainingConfig | None

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.training.seed


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RewardRun:
    """Read and check a YAML file.

    Raises:
        UserError: the file cannot be read, or its data section is wrong.
        RewardModelError: anything else in it is wrong.
    """
    texts = text_keys(RewardTrainingConfig, ("data", RewardDataConfig), ("pretraining", PretrainingConfig))
    merged = merge(path, overrides, texts)
    values = dict(merged.values)
    data = _section(RewardDataConfig, "data", values.pop("data", None), path, merged)
    start = values.pop("pretraining", None)
    pretraining = None if start is None else _section(PretrainingConfig, "pretraining", start, path, merged)
    for key in ("checkpoint", "tokenizer"):
        values[key] = resolved(values.get(key))
    values = {key: value for key, value in values.items() if key != "tokenizer" or value is not None}
    training = training_config(values)
    unlabelled = sorted(set(training.dimensions) - {"overall", *data.dimensions})
    if unlabelled:
        raise UserError(
            "Trained dimensions have no labels.",
            ", ".join(unlabelled),
            "say in data.dimensions where each comes from, for example semantic: oracle:semantic",
        )
    return RewardRun(data, training, pretraining)


SectionType = TypeVar("SectionType", bound=Section)


def _section(kind: type[SectionType], name: str, values: Any, path: str | Path, merged: Merged) -> SectionType:
    """One checked section of the file."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: the {name} section is missing", in_words(values), f"add a section {name}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = f"choose from: {', '.join(kind.model_fields)}"
        problems = [
            Problem(
                ".".join((name, *map(str, part["loc"]))),
                part["msg"],
                in_words(part["input"]),
                known if part["type"] == "extra_forbidden" else "",
            )
            for part in error.errors(include_url=False)
        ]
        raise report(problems, str(path), merged.places) from error


def train(run: RewardRun, progress: Progress | None = None) -> TrainingResult:
    """Train the head; see `reward_models.training.loop.train`.

    Raises:
        UserError: the pairs cannot be used.
        RewardModelError: a wrong checkpoint, an undecodable picture, a loss that is not finite.
    """
    return train_head(run.training, *open_records(run), progress)


def open_records(run: RewardRun) -> tuple[JoinedRecords, PairRecords | None]:
    """Training and held-out pairs of a run, with the labels and weights that it asks for."""
    config = run.data.pairs()
    held_out = open_source(config, "heldout", run.seed) if has_heldout(config) else None
    training = [open_source(config, "train", run.seed)]
    training += [_extra(address, run.data, held_out, run.seed) for address in run.data.extra_sources]
    joined = JoinedRecords([PairRecords.of(pairs, run.data) for pairs in training])
    return joined, None if held_out is None else PairRecords.of(held_out, run.data)


def _extra(address: str, config: RewardDataConfig, held_out: PairSource | None, seed: int) -> PairSource:
    """All pairs of another source whose prompts are not held out."""
    keys = {"source": address, "ties": config.ties, "shuffle_labels": config.shuffle_labels, "resolution": 8}
    pairs = open_source(DataConfig.model_validate(keys), "train", seed)
    taken = set() if held_out is None else {normalise(caption) for caption in held_out.captions()}
    shared = [index for index, caption in enumerate(pairs.captions()) if normalise(caption) in taken]
    return pairs.without(shared, "prompt is held out")


class JoinedRecords(Sequence[PreferenceRecord]):
    """Several sources in a row."""

    def __init__(self, parts: Sequence[Sequence[PreferenceRecord]]) -> None:
        self.parts, self.starts = parts, np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]


class PairRecords(Sequence[PreferenceRecord]):
    """A pair source as `reward_models` sees it: picture a is picture 0. Nothing is decoded here.

    Args:
        pairs: labels settled.
        dimensions: dimension -> ``[N]`` probability that picture 0 is preferred in it.
        weights: ``[N]`` loss weights.
    """

    def __init__(self, pairs: PairSource, dimensions: dict[str, np.ndarray], weights: np.ndarray) -> None:
        if pairs.captions_differ:
            raise UserError(
                "Reward models compare pictures of one prompt.",
                f"{pairs.table.address} has a caption per picture",
                "train on data with one caption per pair",
            )
        self.pairs, self.dimensions, self.weights = pairs, dimensions, weights
        self._captions, self._labels = pairs.captions(), pairs.labels()

    @classmethod
    def of(cls, pairs: PairSource, config: RewardDataConfig) -> PairRecords:
        """Records with the labels and weights that a data section asks for."""
        weights = pairs.weights()
        if config.prompt_weights:
            weights = weights * np.array(prompt_weights(pairs.captions()))
        gaps = {name: _gap(pairs, source) for name, source in config.dimensions.items()}
        band = config.dimension_ties
        return cls(pairs, {name: np.where(np.abs(gap) <= band, 0.5, gap > 0) for name, gap in gaps.items()}, weights)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        image_a, image_b = encoded_pictures(self.pairs, index)
        labels = {name: float(values[index]) for name, values in self.dimensions.items()}
        weight = float(self.weights[index])
        return PreferenceRecord(self._captions[index], image_a, image_b, float(self._labels[index]), labels, weight)


def _gap(pairs: PairSource, source: str) -> np.ndarray:
    """``[N]`` score(picture 0) - score(picture 1): stored with the pairs, else measured by the oracle."""
    stored = pairs.table.columns.gaps
    if source in stored:
        return stored[source][pairs.rows]
    dimension = source.removeprefix(ORACLE_PREFIX)
    if not source.startswith(ORACLE_PREFIX) or dimension not in ("overall", *DIMENSIONS):
        known = [*stored, *(f"{ORACLE_PREFIX}{name}" for name in DIMENSIONS)]
        raise unknown_name("source of labels", source, known)
    captions, gaps = pairs.captions(), np.empty(len(pairs))
    for start in range(0, len(pairs), ORACLE_CHUNK):
        rows = range(start, min(start + ORACLE_CHUNK, len(pairs)))
        pictures = [_decoded(pairs, index) for index in rows]
        prompts = [captions[index] for index in rows]
        scores = [Oracle().score(prompts, list(side))[dimension] for side in zip(*pictures, strict=True)]
        gaps[rows.start : rows.stop] = scores[0] - scores[1]
    return gaps


def _decoded(pairs: PairSource, index: int) -> tuple[Image.Image, Image.Image]:
    image_0, image_1 = encoded_pictures(pairs, index)
    try:
        return decode_image(image_0), decode_image(image_1)
    except RewardModelError as error:
        raise RewardModelError(f"{pairs.location(index)}: {error.what}", error.found, error.fix) from error
