"""What objectives read about a pair beyond its label: how rare its scores are, how hard it is.

Both follow from a reward's gap |score_0 - score_1| over the whole training source, so they are columns of the run and
not of the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from t2i_align.data.pair_source import PairSource
from t2i_align.errors import UserError

FREQUENCY_BINS = 20
SCORE_TOLERANCE = 1e-6
HOW_TO_SCORE = "add score_0 and score_1, in [0, 1], to every pair (docs/data.md), or give ranked lists with scores"
HOW_TO_MARGIN = "add margins or scores to the pairs; t2i-align rewards label writes the margins of reward models"


@dataclass(frozen=True)
class DerivedColumns:
    """Numbers per training pair; None where no objective reads them.

    Attributes:
        frequencies: ``[N]`` in (0, 1], share of the pairs whose reward gap lies in the same of
            `FREQUENCY_BINS` equal bins.
        difficulty: ``[N]`` in [0, 1), share of the pairs with a wider gap; 0 is the widest.
    """

    frequencies: np.ndarray | None = None
    difficulty: np.ndarray | None = None


def derive(source: PairSource, needs: Collection[str], margin: str | None = None) -> DerivedColumns:
    """Check that a source holds what an objective reads, and work out what follows from its rewards.

    Args:
        source: the training pairs.
        needs: `Objective.data_needs`.
        margin: reward to read where the data hold several.

    Raises:
        UserError: the data lack something; says what to add.
    """
    if "captions" in needs and not source.captions_differ:
        raise UserError(
            "The objective compares a caption per picture, and the pairs have one caption each.",
            f"no caption_1 in {source.table.address}",
            "add caption_1 to the data, or set data.loser_captions: medium to perturb the loser's caption",
        )
    if "scores" in needs:
        _check_scores(source)
    gap_readers = sorted({"margins", "frequencies", "difficulty"} & set(needs))
    if not gap_readers:
        return DerivedColumns()
    if not source.margin_names:
        raise UserError(
            f"The objective reads {', '.join(gap_readers)}, and the pairs have neither margins nor scores.",
            f"{len(source)} pairs of {source.table.address}",
            HOW_TO_MARGIN,
        )
    if gap_readers == ["margins"] and margin is None:  # an objective may read several by name
        return DerivedColumns()
    gaps = np.abs(source.gaps(margin_name(source, margin)))
    return DerivedColumns(
        frequencies=frequencies(gaps) if "frequencies" in needs else None,
        difficulty=difficulty(gaps) if "difficulty" in needs else None,
    )


def margin_name(source: PairSource, name: str | None) -> str:
    """The margin asked for, or the only one there is.

    Raises:
        UserError: no such margin, or several and no name.
    """
    names = source.margin_names
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    raise UserError(
        "The objective must be told which reward margin to read." if name is None else "There is no such margin.",
        f"{'no name' if name is None else name}; the data have {', '.join(names)}",
        "name one of them in the slot that reads it, for example weight: {margin: " + names[0] + "}",
    )


def frequencies(gaps: np.ndarray) -> np.ndarray:
    """``[N]`` share of the values in each one's bin; equal bins from the smallest to the largest."""
    counts, edges = np.histogram(gaps, bins=FREQUENCY_BINS)
    bins = np.clip(np.searchsorted(edges, gaps, side="right") - 1, 0, FREQUENCY_BINS - 1)
    return counts[bins] / len(gaps)


def difficulty(gaps: np.ndarray) -> np.ndarray:
    """``[N]`` place of each value from the widest gap (0) down, as a share; equal gaps keep their order."""
    places = np.empty(len(gaps))
    places[np.argsort(-gaps, kind="stable")] = np.arange(len(gaps)) / len(gaps)
    return places


def check_unit_interval(scores: np.ndarray, address: str) -> None:
    """Refuse scores whose exponential would be no gain.

    Raises:
        UserError: some lie outside [0, 1].
    """
    low, high = float(scores.min()), float(scores.max())
    if low < -SCORE_TOLERANCE or high > 1 + SCORE_TOLERANCE:
        raise UserError(
            "The objective takes 2 to the power of a score, so scores must lie in [0, 1].",
            f"{low:g} to {high:g} in {address}",
            "rescale them, or give win shares or ranks",
        )


def _check_scores(source: PairSource) -> None:
    if not source.has_scores:
        raise UserError(
            "The objective reads the score of every picture, and the pairs have none.",
            f"{len(source)} pairs of {source.table.address}",
            HOW_TO_SCORE,
        )
    check_unit_interval(source.scores(), source.table.address)
