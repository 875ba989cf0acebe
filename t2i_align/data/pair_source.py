"""The pairs of a run: labels settled, pictures still on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from t2i_align.data.record import PairRecord
from t2i_align.data.tables import PairTable


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
