"""What objectives read about a pair beyond its label: how rare its scores are, how hard it is, how busy its user is.

All follow from the whole training source, so they are columns of the run and not of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from t2i_align.data.pair_source import PairSource
from t2i_align.errors import UserError

FREQUENCY_BINS = 20
SCORE_TOLERANCE = 1e-6
HOW_TO_SCORE = "add score_0 and score_1, in [0, 1], to every pair (docs/data.md), or give ranked lists with scores"
HOW_TO_MARGIN = "add margins or scores to the pairs; t2i-align rewards label writes the margins of reward models"


def derive(source: PairSource, needs: Collection[str], margin: str | None = None) -> dict[str, np.ndarray]:
    """Check that a source holds what an objective reads, and work out what follows from the whole of it.

    Args:
        source: the training pairs.
        needs: `Objective.data_needs`.
        margin: reward to read where the data hold several.

    Returns:
        A number per training pair ``[N]`` for each of these that is needed:

        * ``frequencies`` in (0, 1]: share of the pairs whose reward gap |score_0 - score_1| lies in the same of
          `FREQUENCY_BINS` equal bins;
        * ``difficulty`` in [0, 1): share of the pairs with a wider gap; 0 is the widest;
        * ``user_shares``: pairs of the pair's user over the mean number of pairs of a user.

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
    columns = {"user_shares": user_shares(source)} if "user_shares" in needs else {}
    gap_readers = sorted({"margins", "frequencies", "difficulty"} & set(needs))
    if not gap_readers:
        return columns
    if not source.margin_names:
        raise UserError(
            f"The objective reads {', '.join(gap_readers)}, and the pairs have neither margins nor scores.",
            f"{len(source)} pairs of {source.table.address}",
            HOW_TO_MARGIN,
        )
    if gap_readers == ["margins"] and margin is None:  # an objective may read several by name
        return columns
    gaps = np.abs(source.gaps(margin_name(source, margin)))
    if "frequencies" in needs:
        columns["frequencies"] = frequencies(gaps)
    if "difficulty" in needs:
        columns["difficulty"] = difficulty(gaps)
    return columns


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


def user_shares(source: PairSource) -> np.ndarray:
    """``[N]`` pairs of each pair's user over the mean number of pairs of a user; 1 where all are equally busy.

    Raises:
        UserError: some pair has no user.
    """
    users = source.users()
    unknown = users.count(None)
    if unknown:
        raise UserError(
            "The objective weighs pairs by who gave them, and not all pairs say.",
            f"{unknown} of {len(users)} pairs of {source.table.address} have no user_id",
            "add user_id to every pair (docs/data.md), or use weight: none",
        )
    counts = Counter(users)
    return np.array([counts[user] for user in users]) * (len(counts) / len(users))


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
