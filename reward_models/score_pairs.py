"""Scores of both pictures of every pair, for labels, filters and agreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reward_models.errors import RewardModelError
from reward_models.images import ImageSource
from reward_models.score_files import ScoreItem, ScoreReport, finished_report, score_files
from reward_models.scorer import BaseScorer

PairLoader: TypeAlias = Callable[[int], tuple[ImageSource, ImageSource]]


@dataclass(frozen=True)
class PairScores:
    """Scores of N pairs by scorer name, float32 [N]; NaN where a picture could not be decoded.

    Attributes:
        scores_a, scores_b: scores of the first and the second picture.
        report: counts and failures; a failure's id is `<pair id>/a` or `<pair id>/b`.
    """

    scores_a: dict[str, NDArray[np.float32]]
    scores_b: dict[str, NDArray[np.float32]]
    report: ScoreReport

    @property
    def margins(self) -> dict[str, NDArray[np.float32]]:
        """score_a - score_b by scorer name."""
        return {name: self.scores_a[name] - self.scores_b[name] for name in self.scores_a}

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Pairs with all their scores, bool [N]."""
        return np.all([np.isfinite(margin) for margin in self.margins.values()], axis=0)


def score_pairs(
    scorers: Sequence[BaseScorer],
    prompts: Sequence[str],
    load_pair: PairLoader,
    out: str | Path,
    ids: Sequence[str] | None = None,
    prompts_b: Sequence[str] | None = None,
    **options: Any,
) -> PairScores:
    """Score both pictures of every pair into a parquet file and return the scores.

    A complete file of the same scorers and pairs is read instead of being refused.

    Args:
        scorers: loaded scorers with distinct names.
        prompts: one per pair.
        load_pair: the two pictures of pair i; called in the decoding workers, so it should be picklable.
        out: the parquet file, rows as `score_files` writes them with ids `<pair id>/a` and `<pair id>/b`.
        ids: of the pairs; their numbers by default.
        prompts_b: prompts of the second pictures, where they differ.
        **options: of `score_files` (batch_size, workers, resume, progress ...).
    """
    names = [str(number) for number in range(len(prompts))] if ids is None else list(ids)
    if len(names) != len(prompts):
        raise RewardModelError("give one id per pair", found=f"{len(names)} ids for {len(prompts)} pairs")
    texts = {"a": prompts, "b": prompts if prompts_b is None else prompts_b}
    items = [
        ScoreItem(f"{name}/{side}", texts[side][number], partial(_picture, load_pair, number, side))
        for number, name in enumerate(names)
        for side in "ab"
    ]
    report = finished_report(scorers, items, out) or score_files(scorers, items, out, **options)
    position = {f"{name}/{side}": (side, number) for number, name in enumerate(names) for side in "ab"}
    tables = {
        side: {scorer.name: np.full(len(prompts), np.nan, dtype=np.float32) for scorer in scorers} for side in "ab"
    }
    columns = pq.read_table(out, columns=["id", "scorer", "score"])
    for id_, scorer, score in zip(*(column.to_pylist() for column in columns.columns), strict=True):
        side, number = position[id_]
        tables[side][scorer][number] = score
    return PairScores(tables["a"], tables["b"], report)


def _picture(load_pair: PairLoader, number: int, side: str) -> ImageSource:
    return load_pair(number)["ab".index(side)]
