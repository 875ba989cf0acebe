"""Scores of a pair data set as margins: measured now, or stored with the pairs by an earlier labelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.errors import RewardModelError
from reward_models.score_pairs import PairScores, score_pairs
from reward_models.scorer import BaseScorer
from t2i_align.config.schema import DataConfig
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.selection import select
from t2i_align.data.sources import open_table
from t2i_align.data.tables import PairColumns, PairTable
from t2i_align.errors import UserError

SCORES_SUFFIX = ".scores.parquet"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScoredPairs:
    """A pair data set and what scorers say about it.

    Attributes:
        pairs: every row, ties included, with the labels as found.
        gaps: scorer name -> ``[N]`` score(picture 0) - score(picture 1); NaN where a picture cannot be decoded.
        scales: scorer name -> its preference scale, for the scorers that ran now.
        failures: (picture id, reason) of pictures that cannot be decoded.
    """

    pairs: PairSource
    gaps: dict[str, np.ndarray]
    scales: dict[str, float]
    failures: list[tuple[str, str]]

    @property
    def complete(self) -> np.ndarray:
        """``[N]`` bool: pairs that every scorer has scored."""
        return np.all([np.isfinite(gap) for gap in self.gaps.values()], axis=0)


def everything(table: PairTable) -> PairSource:
    """All rows of a table as they are."""
    # The resolution is never looked at.
    config = DataConfig.model_validate({"source": table.address, "ties": "soft", "resolution": 8})
    return select(table, config, "train", 0)


def score_source(
    source: str,
    scorers: Sequence[BaseScorer],
    scores_file: Path,
    *,
    format: str = "auto",
    split: str = "train",
    stored: bool = True,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> ScoredPairs:
    """Score every pair of a source; an interrupted call goes on where it stopped.

    Args:
        source, format, split: as in the data section.
        scorers: may be empty where margins are stored with the pairs.
        scores_file: gets both scores of every pair, one row per picture and scorer.
        stored: also take the margins that the pairs bring.

    Raises:
        UserError: the source cannot be used, or there is nothing to go by.
    """
    pairs = everything(open_table(source, format, split))
    columns = pairs.table.columns
    gaps = {name: gap[pairs.rows] for name, gap in columns.gaps.items()} if stored else {}
    failures: list[tuple[str, str]] = []
    if scorers:
        scores = _score(pairs, scorers, scores_file, batch_size, workers, progress)
        gaps |= {name: margin.astype(np.float64) for name, margin in scores.margins.items()}
        failures = scores.report.failures
    if not gaps:
        raise UserError("There is nothing to go by.", f"{source} stores no margins", "name a scorer with --scorer")
    return ScoredPairs(pairs, gaps, {scorer.name: scorer.preference_scale for scorer in scorers}, failures)


def _score(
    pairs: PairSource,
    scorers: Sequence[BaseScorer],
    file: Path,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> PairScores:
    file.parent.mkdir(parents=True, exist_ok=True)
    return score_pairs(
        scorers,
        pairs.captions(),
        partial(encoded_pictures, pairs),
        file,
        ids=pairs.pair_ids(),
        prompts_b=pairs.captions_1(),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )


def encoded_pictures(pairs: PairSource, index: int) -> tuple[bytes, bytes]:
    """Both pictures; one that is missing becomes the error that `reward_models` counts or reports."""
    try:
        return pairs.images(index)
    except UndecodableImage as error:
        raise RewardModelError(str(error), found=pairs.location(index)) from error


class RelabelledPairs(PairTable):
    """The pictures of a table under other labels and margins.

    Args:
        table: what the pictures come from.
        labels: ``[N]`` probability that picture 0 is preferred.
        gaps: reward name -> ``[N]`` score(picture 0) - score(picture 1).
    """

    def __init__(self, table: PairTable, labels: np.ndarray, gaps: dict[str, np.ndarray]) -> None:
        columns: PairColumns = replace(table.columns, labels=labels, gaps=gaps)
        super().__init__(table.address, columns)
        self._table = table

    def images(self, row: int) -> tuple[bytes, bytes]:
        return self._table.images(row)

    def location(self, row: int) -> str:
        return self._table.location(row)

    def picture_signature(self) -> Iterable[bytes]:
        return self._table.picture_signature()


def relabelled(pairs: PairSource, labels: np.ndarray, gaps: dict[str, np.ndarray]) -> PairSource:
    """The same pairs with other labels and margins; weights stay."""
    size = len(pairs.table)

    def full(values: np.ndarray, otherwise: Any) -> np.ndarray:
        spread = np.full(size, otherwise, dtype=np.float64)
        spread[pairs.rows] = values
        return spread

    table = RelabelledPairs(pairs.table, full(labels, 0.5), {name: full(gap, np.nan) for name, gap in gaps.items()})
    return PairSource(table, pairs.rows, labels, pairs.weights(), dict(pairs.left_out))
