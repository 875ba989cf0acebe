"""What every source is before ties, hold-out and order are decided: cheap columns and lazy pictures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from t2i_align.data.layout import Layout
from t2i_align.errors import UserError

SHOWN_ROWS = 5


@dataclass
class PairColumns:
    """Everything about N pairs except the pictures; kept in memory.

    Attributes:
        captions: N prompts.
        labels: ``[N]`` float64, probability that picture 0 is preferred, exactly as found (checked by
            `problems`).
        pair_ids: N unique ids.
        captions_1: captions of picture 1 where they differ, or None for ordinary data.
        users: N user ids, or None.
        weights: ``[N]`` float64, or None for all ones.
        gaps: reward name -> ``[N]`` score(picture 0) - score(picture 1).
        scores: ``[N, 2]`` float64, one reward of picture 0 and of picture 1, or None.
        lists: ``[N]`` index of the ranked list a pair was expanded from, or None.
        problems: (row, reason) of rows that cannot be trained on and were not filtered by the format's own
            rules.
        skipped: reason -> number of rows that the format's own rules leave out.
    """

    captions: Sequence[str]
    labels: np.ndarray
    pair_ids: Sequence[str]
    captions_1: Sequence[str | None] | None = None
    users: Sequence[str | None] | None = None
    weights: np.ndarray | None = None
    gaps: dict[str, np.ndarray] = field(default_factory=dict)
    scores: np.ndarray | None = None
    lists: np.ndarray | None = None
    problems: list[tuple[int, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


class PairTable(ABC):
    """N judged pairs in one file format.

    Opening reads the cheap columns only; a picture is read when `images` asks for it. Reading is safe from
    several threads.

    Args:
        address: what the user wrote, for messages.
        columns: the cheap columns.

    Attributes:
        layout: which columns were read as what; None where there is one layout only.
    """

    layout: Layout | None = None

    def __init__(self, address: str, columns: PairColumns) -> None:
        self.address, self.columns = address, columns

    def __len__(self) -> int:
        return len(self.columns.pair_ids)

    @abstractmethod
    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures 0 and 1.

        Raises:
            UndecodableImage: a picture is missing or empty.
        """

    @abstractmethod
    def location(self, row: int) -> str:
        """Where a person finds the row, such as ``pairs.jsonl line 12``."""

    @abstractmethod
    def picture_signature(self) -> Iterable[bytes]:
        """Bytes that change when pictures change, had without reading the pictures (sizes, file footers)."""

    def source_rows(self, rows: np.ndarray) -> np.ndarray:
        """What identifies rows in the files behind the table: themselves, unless it is a part of another table."""
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, captions and picture sizes: all that encodings depend on (labels do not matter)."""
        columns = self.columns
        digest = hashlib.blake2b(digest_size=16)
        for texts in (columns.pair_ids, columns.captions, columns.captions_1 or []):
            digest.update(_joined(texts))
        for part in self.picture_signature():
            digest.update(part)
        return digest.hexdigest()

    def raise_problems(self) -> None:
        """Refuse rows that cannot be trained on.

        Raises:
            UserError: names the first rows.
        """
        problems = self.columns.problems
        if not problems:
            return
        shown = "; ".join(f"{self.location(row)}: {reason}" for row, reason in problems[:SHOWN_ROWS])
        more = f"; and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
        raise UserError(
            f"{len(problems)} of {len(self)} pairs in {self.address} cannot be trained on.",
            shown + more,
            "correct or remove these rows; t2i-align data check lists them all",
        )


def find_problems(
    columns: PairColumns, labels_1: np.ndarray | None = None, missing_captions: Iterable[int] = ()
) -> list[tuple[int, str]]:
    """Rows whose cheap columns make no sense.

    Args:
        columns: to inspect.
        labels_1: ``[N]`` the other side's label where the file has one (NaN: absent); must be 1 - label_0.
        missing_captions: rows without a caption.
    """
    labels = columns.labels
    problems = [(int(row), "the caption is missing") for row in missing_captions]
    problems += [(int(row), "label_0 is missing") for row in np.flatnonzero(np.isnan(labels))]
    outside = np.flatnonzero((labels < 0) | (labels > 1))
    problems += [(int(row), f"label_0 is {labels[row]:g}, outside 0 to 1") for row in outside]
    if labels_1 is not None:
        wrong = np.flatnonzero(np.abs(labels + labels_1 - 1) > 1e-6)  # NaN compares false: absent is fine
        problems += [
            (int(row), f"label_0 {labels[row]:g} and label_1 {labels_1[row]:g} do not add up to 1") for row in wrong
        ]
    if columns.weights is not None:
        bad = np.flatnonzero(~(np.isfinite(columns.weights) & (columns.weights >= 0)))
        problems += [(int(row), f"weight is {columns.weights[row]:g}, not a number from 0 up") for row in bad]
    if columns.scores is not None:
        bare = np.flatnonzero(~np.isfinite(columns.scores).all(axis=1))
        problems += [(int(row), "score_0 or score_1 is missing or not finite") for row in bare]
    for name, gaps in columns.gaps.items():
        missing = np.flatnonzero(~np.isfinite(gaps))
        problems += [(int(row), f"margin {name!r} is missing or not finite") for row in missing]
    return sorted(problems)


def picture_sizes(folder: Path, paths: Iterable[str | None]) -> Iterator[bytes]:
    """Path and size of each file; -1 for one that is not there."""
    for path in paths:
        file = folder / (path or "")
        yield f"{path}:{file.stat().st_size if file.is_file() else -1};".encode()


def unique_ids(names: Sequence[str]) -> list[str]:
    """The names, with ``#2``, ``#3`` ... appended to repetitions in order of occurrence."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen.get(name, 0) + 1
        seen[name] = count
        unique.append(name if count == 1 else f"{name}#{count}")
    return unique


def hashed_id(*parts: object) -> str:
    """A pair id from what identifies a row: 16 hex digits."""
    return hashlib.blake2b(_joined([str(part) for part in parts]), digest_size=8).hexdigest()


def gaps_from_margins(margins: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Margins (preferred minus other; picture 0 minus 1 in a tie) as picture 0 minus picture 1."""
    sign = np.where(labels >= 0.5, 1.0, -1.0)
    return {name: values * sign for name, values in margins.items()}


def with_scores(columns: PairColumns, scores: np.ndarray | None) -> PairColumns:
    """Take in ``[N, 2]`` scores of both pictures; their difference is the margin ``score`` where the data name none."""
    if scores is not None:
        columns.scores = scores
        columns.gaps.setdefault("score", scores[:, 0] - scores[:, 1])
    return columns


def _joined(texts: Iterable[str | None]) -> bytes:
    """Unambiguous bytes of a list of texts."""
    return b"".join(b"-" if text is None else len(raw := text.encode()).to_bytes(4, "little") + raw for text in texts)
