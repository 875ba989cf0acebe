"""JSON lines beside an image folder: one pair per line, pictures as paths relative to the file.

Keys: ``caption`` (or ``prompt``), ``image_0``, ``image_1``, and either ``label_0`` (probability that image_0
is preferred) or ``preferred`` (0, 1 or "tie"). Optional: ``id``, ``user_id``, ``caption_1``, ``weight``,
``margins``, ``score_0`` with ``score_1``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t2i_align.data.pickapic import read_picture
from t2i_align.data.tables import (
    PairColumns,
    PairTable,
    find_problems,
    gaps_from_margins,
    hashed_id,
    unique_ids,
    with_scores,
)
from t2i_align.errors import UserError
from t2i_align.text_tables import json_lines

PREFERRED = {0: 1.0, 1: 0.0, "tie": 0.5}


class JsonlPairs(PairTable):
    """Pairs of a JSONL file.

    Args:
        address: what the user wrote.
        file: the JSONL file; picture paths are relative to its folder.
    """

    def __init__(self, address: str, file: Path) -> None:
        self.file = file
        rows = list(read_lines(file))
        self._lines = [line for line, _ in rows]
        self._paths = [
            (_required(row, "image_0", file, line), _required(row, "image_1", file, line)) for line, row in rows
        ]
        super().__init__(address, self._columns(rows))

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        first, second = (read_picture(self.file.parent / path) for path in self._paths[row])
        return first, second

    def location(self, row: int) -> str:
        """File and line, counted from 1."""
        return f"{self.file.name} line {self._lines[row]}"

    def picture_signature(self) -> Iterable[bytes]:
        """Paths and file sizes."""
        return picture_sizes(self.file.parent, (path for pair in self._paths for path in pair))

    def _columns(self, rows: list[tuple[int, dict]]) -> PairColumns:
        labels = np.array([_label(row, self.file, line) for line, row in rows], dtype=np.float64)
        captions = [caption_of(row) for _, row in rows]
        captions_1 = [row.get("caption_1") for _, row in rows]
        names = sorted({name for line, row in rows for name in _margins_of(row, self.file, line)})
        margins = {
            name: np.array([(row.get("margins") or {}).get(name, np.nan) for _, row in rows], dtype=np.float64)
            for name in names
        }
        columns = PairColumns(
            captions=[caption or "" for caption in captions],
            labels=labels,
            pair_ids=unique_ids(
                [
                    str(row["id"]) if row.get("id") is not None else hashed_id(caption, *paths)
                    for (_, row), caption, paths in zip(rows, captions, self._paths, strict=True)
                ]
            ),
            captions_1=captions_1 if any(caption is not None for caption in captions_1) else None,
            users=[None if row.get("user_id") is None else str(row["user_id"]) for _, row in rows],
            weights=np.array([number(row, "weight", self.file, line, 1.0) for line, row in rows], dtype=np.float64),
            gaps=gaps_from_margins(margins, labels),
        )
        with_scores(columns, _scores(rows, self.file))
        missing = [index for index, caption in enumerate(captions) if caption is None]
        columns.problems = find_problems(columns, missing_captions=missing)
        return columns


def read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every non-empty line.

    Raises:
        UserError: a line is not a JSON object, or the file is not UTF-8 text.
    """
    for line, row in json_lines(file):
        if not isinstance(row, dict):
            raise line_error(file, line, "is not a JSON object", json.dumps(row)[:80])
        yield line, row


def line_error(file: Path, line: int, what: str, found: str) -> UserError:
    """A complaint about one line."""
    return UserError(f"{file} line {line} {what}.", found, "correct the line; the keys are described in docs/data.md")


def caption_of(row: dict[str, Any]) -> str | None:
    """``caption``, or ``prompt``."""
    caption = row.get("caption", row.get("prompt"))
    return None if caption is None else str(caption)


def number(row: dict[str, Any], key: str, file: Path, line: int, default: float) -> float:
    """A numeric value, ``default`` where the key is absent or null.

    Raises:
        UserError: it is not a number.
    """
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise line_error(file, line, f"has a {key} that is not a number", repr(value))
    return float(value)


def picture_sizes(folder: Path, paths: Iterable[str]) -> Iterator[bytes]:
    """Path and size of each file; -1 for one that is not there."""
    for path in paths:
        file = folder / path
        yield f"{path}:{file.stat().st_size if file.is_file() else -1};".encode()


def _required(row: dict[str, Any], key: str, file: Path, line: int) -> str:
    if not isinstance(row.get(key), str):
        raise line_error(file, line, f"has no {key}", f"keys {', '.join(row) or 'none'}")
    return row[key]


def _label(row: dict[str, Any], file: Path, line: int) -> float:
    if "preferred" not in row:
        if "label_0" not in row:
            raise line_error(file, line, "has neither label_0 nor preferred", f"keys {', '.join(row)}")
        return number(row, "label_0", file, line, float("nan"))
    preferred = row["preferred"]
    if "label_0" in row:
        raise line_error(file, line, "has both label_0 and preferred", "one of them says who won")
    if isinstance(preferred, bool) or not isinstance(preferred, int | str) or preferred not in PREFERRED:
        raise line_error(file, line, 'has a preferred that is not 0, 1 or "tie"', repr(preferred))
    return PREFERRED[preferred]


def _scores(rows: list[tuple[int, dict[str, Any]]], file: Path) -> np.ndarray | None:
    """``[N, 2]`` of ``score_0`` and ``score_1``, NaN where a line lacks one; None where no line has either."""
    nan = float("nan")
    scores = [[number(row, key, file, line, nan) for key in ("score_0", "score_1")] for line, row in rows]
    table = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return None if np.isnan(table).all() else table


def _margins_of(row: dict[str, Any], file: Path, line: int) -> dict[str, float]:
    margins = row.get("margins") or {}
    if not isinstance(margins, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in margins.values()
    ):
        raise line_error(file, line, "has margins that are not an object of numbers", repr(margins)[:80])
    return margins
