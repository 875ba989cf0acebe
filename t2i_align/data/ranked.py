"""Ranked lists: JSON lines with several pictures for one prompt, read as lists or expanded to pairs.

Keys: ``prompt`` (or ``caption``), ``images`` (paths relative to the file), and either ``ranks`` (smaller is
better) or ``scores`` (larger is better). Optional: ``id``, ``user_id``, ``weight``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from t2i_align.data.jsonl import looks_ranked, read_lines
from t2i_align.data.pickapic import read_picture
from t2i_align.data.record import RankedRecord
from t2i_align.data.row_pairs import line_error, number
from t2i_align.data.tables import (
    PairColumns,
    PairTable,
    find_problems,
    hashed_id,
    picture_sizes,
    unique_ids,
    with_scores,
)
from t2i_align.errors import UserError


class RankedSource:
    """Ranked lists of a JSONL file, for objectives that compare whole lists.

    Args:
        address: what the user wrote.
        file: the JSONL file.

    Raises:
        UserError: a list has fewer than two pictures, or not one rank or score per picture.
    """

    def __init__(self, address: str, file: Path) -> None:
        self.address, self.file = address, file
        rows = list(read_lines(file))
        self.lines = [line for line, _ in rows]
        self.captions = [self._caption(row, line) for line, row in rows]
        self.paths = [self._paths(row, line) for line, row in rows]
        orders = [self._order(row, line, len(paths)) for (line, row), paths in zip(rows, self.paths, strict=True)]
        self.ranks = [ranks for ranks, _ in orders]
        self.scores = [scores for _, scores in orders]
        self.users = [None if row.get("user_id") is None else str(row["user_id"]) for _, row in rows]
        self.weights = [number(row.get("weight"), "weight", file, line, 1.0) for line, row in rows]
        self.list_ids = unique_ids(
            [
                str(row["id"]) if row.get("id") is not None else hashed_id(caption, *paths)
                for (_, row), caption, paths in zip(rows, self.captions, self.paths, strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self.list_ids)

    def __getitem__(self, index: int) -> RankedRecord:
        """One list with its encoded pictures.

        Raises:
            UndecodableImage: a picture file cannot be read.
        """
        return RankedRecord(
            list_id=self.list_ids[index],
            caption=self.captions[index],
            images=tuple(read_picture(self.file.parent / path) for path in self.paths[index]),
            ranks=self.ranks[index],
            user_id=self.users[index],
            weight=self.weights[index],
        )

    def _caption(self, row: dict[str, Any], line: int) -> str:
        caption = row.get("caption", row.get("prompt"))
        if caption is None:
            raise line_error(self.file, line, "has no prompt", f"keys {', '.join(row) or 'none'}")
        if not isinstance(caption, str):
            raise line_error(
                self.file, line, "has a prompt that is no text", f"{type(caption).__name__} {caption}"[:80]
            )
        return caption

    def _paths(self, row: dict[str, Any], line: int) -> list[str]:
        images = row.get("images")
        if not isinstance(images, list) or len(images) < 2 or not all(isinstance(path, str) for path in images):
            raise line_error(self.file, line, "needs images, a list of at least two paths", repr(images)[:80])
        return images

    def _order(self, row: dict[str, Any], line: int, count: int) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
        """Ranks, and scores where they were given; equal scores get equal ranks, counted from 1."""
        given = [key for key in ("ranks", "scores") if row.get(key) is not None]
        if len(given) != 1:
            raise line_error(self.file, line, "needs either ranks or scores", f"keys {', '.join(row)}")
        values = row[given[0]]
        if not isinstance(values, list) or len(values) != count or not all(_is_finite(value) for value in values):
            raise line_error(self.file, line, f"needs one number in {given[0]} per picture", repr(values)[:80])
        numbers = tuple(float(value) for value in values)
        if given[0] == "ranks":
            return numbers, None
        better_first = sorted(set(numbers), reverse=True)
        return tuple(1.0 + better_first.index(score) for score in numbers), numbers


class RankedPairs(PairTable):
    """All k (k - 1) / 2 pairs of every list; `selection` weights them so that a list counts once.

    Equal ranks are ties. Where lists have scores, the pair's margin ``score`` is their difference.

    Args:
        source: the lists.

    Attributes:
        lists: the lists.
        members: ``[N, 3]`` list, first and second picture of each pair.
    """

    def __init__(self, source: RankedSource) -> None:
        self.lists = source
        pairs = [
            (index, first, second)
            for index, ranks in enumerate(source.ranks)
            for first, second in combinations(range(len(ranks)), 2)
        ]
        self.members = np.array(pairs, dtype=np.int64).reshape(-1, 3)
        super().__init__(source.address, self._columns(pairs))

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        index, first, second = self.members[row].tolist()
        paths, folder = self.lists.paths[index], self.lists.file.parent
        return read_picture(folder / paths[first]), read_picture(folder / paths[second])

    def location(self, row: int) -> str:
        """File, line and the two positions in the list."""
        index, first, second = self.members[row].tolist()
        return f"{self.lists.file.name} line {self.lists.lines[index]} pictures {first} and {second}"

    def picture_signature(self) -> Iterable[bytes]:
        """Paths and file sizes."""
        return picture_sizes(self.lists.file.parent, (path for paths in self.lists.paths for path in paths))

    def _columns(self, pairs: list[tuple[int, int, int]]) -> PairColumns:
        source = self.lists
        columns = PairColumns(
            captions=[source.captions[index] for index, *_ in pairs],
            labels=np.array(
                [0.5 + 0.5 * np.sign(source.ranks[i][b] - source.ranks[i][a]) for i, a, b in pairs],
                dtype=np.float64,
            ),
            pair_ids=[f"{source.list_ids[index]}/{first}-{second}" for index, first, second in pairs],
            users=[source.users[index] for index, *_ in pairs],
            weights=np.array([source.weights[index] for index, *_ in pairs], dtype=np.float64),
            lists=self.members[:, 0],
        )
        with_scores(columns, self._scores(pairs))
        columns.problems = find_problems(columns)
        return columns

    def _scores(self, pairs: list[tuple[int, int, int]]) -> np.ndarray | None:
        """``[N, 2]``, or None where some list has ranks alone."""
        scores = [values for values in self.lists.scores if values is not None]
        if len(scores) < len(self.lists):
            return None
        return np.array([(scores[i][a], scores[i][b]) for i, a, b in pairs], dtype=np.float64).reshape(-1, 2)


def open_ranked(address: str, file: Path) -> RankedSource:
    """Open lists.

    Raises:
        UserError: the file holds pairs instead.
    """
    if not looks_ranked(file) and file.stat().st_size:
        raise UserError(
            f"{address} does not hold ranked lists.",
            "the first line has no images",
            "set data.format to jsonl, or give each line prompt, images and ranks or scores",
        )
    return RankedSource(address, file)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
