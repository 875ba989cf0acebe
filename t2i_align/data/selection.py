"""From a table to the pairs of one run: hold-out, ties, list weights, limit and the shuffled-label control.

Coins are addressed by (seed, purpose, pair id), so they do not depend on the order or the number of pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from t2i_align.config.schema import DataConfig
from t2i_align.data.record import PairRecord
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError
from t2i_align.randomness import addressed_uniform

Which = Literal["train", "heldout"]


class PairSource:
    """N pairs ready to be ordered: labels settled, nothing decoded.

    Args:
        table: where captions and pictures come from.
        rows: ``[N]`` rows of the table.
        labels: ``[N]`` probability that picture 0 is preferred.
        weights: ``[N]`` loss weights.
        left_out: reason -> number of pairs of the table that are not here.
    """

    def __init__(
        self,
        table: PairTable,
        rows: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        left_out: dict[str, int],
    ) -> None:
        self.table, self.rows, self.left_out = table, rows, left_out
        self._labels, self._weights = labels, weights

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PairRecord:
        """One pair with its encoded pictures.

        Raises:
            UndecodableImage: a picture is missing or empty.
        """
        image_0, image_1 = self.images(index)
        return self.describe(index, image_0, image_1)

    def describe(self, index: int, image_0: bytes = b"", image_1: bytes = b"") -> PairRecord:
        """The pair with the given pictures; without them nothing is read from disk."""
        columns, row = self.table.columns, int(self.rows[index])
        label = float(self._labels[index])
        sign = 1.0 if label >= 0.5 else -1.0
        return PairRecord(
            pair_id=columns.pair_ids[row],
            caption=columns.captions[row],
            image_0=image_0,
            image_1=image_1,
            label_0=label,
            caption_1=None if columns.captions_1 is None else columns.captions_1[row],
            user_id=None if columns.users is None else columns.users[row],
            weight=float(self._weights[index]),
            margins={name: sign * float(gaps[row]) for name, gaps in columns.gaps.items()} or None,
        )

    def images(self, index: int) -> tuple[bytes, bytes]:
        """Encoded pictures 0 and 1; see `PairTable.images`."""
        return self.table.images(int(self.rows[index]))

    def location(self, index: int) -> str:
        """Where a person finds the pair."""
        return self.table.location(int(self.rows[index]))

    def labels(self) -> np.ndarray:
        """``[N]`` float64 probability that picture 0 is preferred."""
        return self._labels.copy()

    def weights(self) -> np.ndarray:
        """``[N]`` float64 loss weights."""
        return self._weights.copy()

    def captions(self) -> list[str]:
        """N prompts."""
        return [self.table.columns.captions[row] for row in self.rows.tolist()]

    def captions_1(self) -> list[str] | None:
        """N prompts of picture 1, or None for ordinary data."""
        columns = self.table.columns
        if columns.captions_1 is None:
            return None
        pairs = ((columns.captions_1[row], columns.captions[row]) for row in self.rows.tolist())
        return [first if other is None else other for other, first in pairs]

    def pair_ids(self) -> list[str]:
        """N unique ids."""
        return [self.table.columns.pair_ids[row] for row in self.rows.tolist()]

    def users(self) -> list[str | None]:
        """N user ids or None."""
        users = self.table.columns.users
        return [None] * len(self) if users is None else [users[row] for row in self.rows.tolist()]

    @property
    def captions_differ(self) -> bool:
        """Whether the pictures of a pair may have captions of their own."""
        return self.table.columns.captions_1 is not None

    @property
    def margin_names(self) -> list[str]:
        """Rewards of which every pair has a margin."""
        return list(self.table.columns.gaps)

    def without(self, indices: Iterable[int], reason: str) -> PairSource:
        """The same pairs less some, which are counted under ``reason``."""
        keep = np.ones(len(self), dtype=bool)
        keep[list(indices)] = False
        left_out = {**self.left_out, reason: int((~keep).sum())} if not keep.all() else self.left_out
        return PairSource(self.table, self.rows[keep], self._labels[keep], self._weights[keep], left_out)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pairs, their order, labels and weights."""
        digest = hashlib.blake2b(self.table.fingerprint.encode(), digest_size=16)
        for array in (self.rows.astype(np.int64), self._labels, self._weights):
            digest.update(array.tobytes())
        return digest.hexdigest()


def select(
    table: PairTable, config: DataConfig, which: Which, seed: int, other_prompts: frozenset[str] = frozenset()
) -> PairSource:
    """The pairs of one side of the hold-out split.

    Args:
        table: all pairs.
        config: ties, hold-out, limit, control.
        which: training or held-out pairs. Only training pairs are limited or shuffled.
        seed: of the coins.
        other_prompts: normalised prompts of the other side; pairs with one of them are left out.

    Raises:
        UserError: rows cannot be trained on, or nothing is left.
    """
    table.raise_problems()
    columns, left_out = table.columns, dict(table.columns.skipped)
    rows = _split(table, config.heldout_fraction, which)
    if which == "train":
        left_out["held out"] = len(table) - len(rows)
    if other_prompts:
        shared = np.array([normalise(columns.captions[row]) in other_prompts for row in rows.tolist()], dtype=bool)
        left_out["prompt is in the training set"] = int(shared.sum())
        rows = rows[~shared]
    labels = columns.labels[rows]
    weights = np.ones(len(rows)) if columns.weights is None else columns.weights[rows]
    rows, labels, weights = _settle_ties(table, rows, labels, weights, config.ties, seed, left_out)
    if columns.lists is not None:
        weights = _balance_lists(columns.lists[rows], weights)
    if which == "train":
        if config.max_pairs is not None and config.max_pairs < len(rows):
            left_out["beyond max_pairs"] = len(rows) - config.max_pairs
            rows, labels, weights = (part[: config.max_pairs] for part in (rows, labels, weights))
        if config.shuffle_labels:
            labels = _shuffle(table, rows, labels, seed)
    left_out = {reason: count for reason, count in left_out.items() if count}
    if len(rows) == 0:
        raise _nothing_left(table, which, left_out)
    return PairSource(table, rows, labels, weights, left_out)


def normalise(caption: str) -> str:
    """What two captions share when they are the same prompt: case and white space do not count."""
    return " ".join(caption.lower().split())


def _split(table: PairTable, fraction: float, which: Which) -> np.ndarray:
    """Rows of one side. The prompts with the smallest hashes are held out: never a prompt on both sides,
    whatever the seed.

    Raises:
        UserError: there are too few prompts to split.
    """
    if fraction == 0.0:
        return np.arange(len(table))
    prompts = [normalise(caption) for caption in table.columns.captions]
    by_hash = sorted(set(prompts), key=lambda prompt: hashlib.blake2b(prompt.encode(), digest_size=16).digest())
    count = math.ceil(fraction * len(by_hash))
    if len(by_hash) < 2 or count >= len(by_hash):
        raise UserError(
            "Too few different prompts to hold some out.",
            f"{len(by_hash)} prompts, data.heldout_fraction={fraction}",
            "use a smaller data.heldout_fraction, or data.heldout_source",
        )
    held_out = set(by_hash[:count])
    inside = np.array([prompt in held_out for prompt in prompts], dtype=bool)
    return np.flatnonzero(inside if which == "heldout" else ~inside)


def _settle_ties(
    table: PairTable,
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    treatment: str,
    seed: int,
    left_out: dict[str, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply ``data.ties`` to labels of exactly 0.5."""
    ties = labels == 0.5
    if treatment == "drop":
        left_out["tie"] = int(ties.sum())
        return rows[~ties], labels[~ties], weights[~ties]
    if treatment == "zero_weight":
        return rows, labels, np.where(ties, 0.0, weights)
    if treatment == "coin":
        labels = labels.copy()
        for index in np.flatnonzero(ties):
            labels[index] = float(addressed_uniform(seed, "tie", table.columns.pair_ids[rows[index]]) < 0.5)
    return rows, labels, weights


def _balance_lists(lists: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights under which every list counts the same, however many pairs it makes; a pair's mean weight
    stays.

    Pairs that count nothing do not take part, so a list with ties counts as much as one without.
    """
    counting = weights > 0
    if not counting.any():
        return weights
    _, inverse = np.unique(lists, return_inverse=True)
    pairs_of_list = np.bincount(inverse, weights=counting)
    balanced = np.where(counting, weights / np.maximum(pairs_of_list[inverse], 1), 0.0)
    return balanced * (weights[counting].mean() / balanced[counting].mean())


def _shuffle(table: PairTable, rows: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Reverse each label by a fair coin: the same confidences, nothing to learn."""
    ids = table.columns.pair_ids
    heads = [addressed_uniform(seed, "shuffle_labels", ids[row]) < 0.5 for row in rows.tolist()]
    return np.where(heads, labels, 1.0 - labels)


def _nothing_left(table: PairTable, which: Which, left_out: dict[str, int]) -> UserError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no rows"
    name = "training" if which == "train" else "held-out"
    return UserError(
        f"{table.address} has no usable {name} pairs.",
        reasons,
        "check data.source and data.ties; t2i-align data check describes the data",
    )
