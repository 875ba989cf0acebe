"""The pairs of a run: labels settled, pictures still on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
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
        loser_caption: makes the caption of the picture that lost; None leaves captions as they are.
    """

    def __init__(
        self,
        table: PairTable,
        rows: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        left_out: dict[str, int],
        loser_caption: Callable[[str], str] | None = None,
    ) -> None:
        self.table, self.rows, self.left_out = table, rows, left_out
        self._labels, self._weights, self._loser_caption = labels, weights, loser_caption

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
        caption, caption_1 = self._captions_of(index)
        label = float(self._labels[index])
        sign = 1.0 if label >= 0.5 else -1.0
        return PairRecord(
            pair_id=columns.pair_ids[row],
            caption=caption,
            image_0=image_0,
            image_1=image_1,
            label_0=label,
            caption_1=caption_1,
            user_id=None if columns.users is None else columns.users[row],
            weight=float(self._weights[index]),
            margins={name: sign * float(gaps[row]) for name, gaps in columns.gaps.items()} or None,
            scores=None if columns.scores is None else (float(columns.scores[row, 0]), float(columns.scores[row, 1])),
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
        """N prompts, those of picture 0 where captions differ."""
        return [self._captions_of(index)[0] for index in range(len(self))]

    def captions_1(self) -> list[str] | None:
        """N prompts of picture 1, or None for ordinary data."""
        if not self.captions_differ:
            return None
        pairs = map(self._captions_of, range(len(self)))
        return [first if other is None else other for first, other in pairs]

    def _captions_of(self, index: int) -> tuple[str, str | None]:
        """Captions of both pictures; None where the second has the first's."""
        columns, row = self.table.columns, int(self.rows[index])
        first = columns.captions[row]
        second = None if columns.captions_1 is None else columns.captions_1[row]
        if self._loser_caption is None:
            return first, second
        own = first if second is None else second
        if self._labels[index] >= 0.5:
            return first, self._loser_caption(own)
        return self._loser_caption(first), own

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
        return self.table.columns.captions_1 is not None or self._loser_caption is not None

    @property
    def margin_names(self) -> list[str]:
        """Rewards of which every pair has a margin."""
        return list(self.table.columns.gaps)

    @property
    def has_scores(self) -> bool:
        """Whether every picture has a score of its own."""
        return self.table.columns.scores is not None

    def gaps(self, name: str) -> np.ndarray:
        """``[N]`` float64 margins of a reward, picture 0 minus picture 1."""
        return self.table.columns.gaps[name][self.rows]

    def scores(self) -> np.ndarray:
        """``[N, 2]`` float64 scores of pictures 0 and 1; `has_scores` says whether there are any."""
        scores = self.table.columns.scores
        if scores is None:
            raise ValueError("the pairs have no scores")
        return scores[self.rows]

    def without(self, indices: Iterable[int], reason: str) -> PairSource:
        """The same pairs less some, which are counted under ``reason``."""
        keep = np.ones(len(self), dtype=bool)
        keep[list(indices)] = False
        left_out = {**self.left_out, reason: int((~keep).sum())} if not keep.all() else self.left_out
        kept = (self.rows[keep], self._labels[keep], self._weights[keep])
        return PairSource(self.table, *kept, left_out, self._loser_caption)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pairs, their order, labels and weights."""
        digest = hashlib.blake2b(self.table.fingerprint.encode(), digest_size=16)
        for array in (self.table.source_rows(self.rows).astype(np.int64), self._labels, self._weights):
            digest.update(array.tobytes())
        if self._loser_caption is not None:
            digest.update("\0".join(self.captions() + (self.captions_1() or [])).encode())
        return digest.hexdigest()
