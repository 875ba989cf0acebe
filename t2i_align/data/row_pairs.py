"""Pairs whose rows are text and whose pictures are files: JSON lines, CSV and TSV, ``chosen/`` and ``rejected/``.

A row has a caption, two pictures (paths relative to the file, or in JSON ``{"path"}`` and ``{"bytes": base64}``) and
who won, under the names that `layout` knows. In JSON lines each line may use another name of a field. Optional: id,
user_id, caption_1, weight, has_label, ``margins`` (JSON), ``score_0`` with ``score_1``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i_align.data.judgements import captions, decided, winner_labels
from t2i_align.data.layout import Layout
from t2i_align.data.pickapic import read_picture
from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.tables import (
    PairColumns,
    PairTable,
    find_problems,
    gaps_from_margins,
    hashed_id,
    picture_sizes,
    unique_ids,
    with_scores,
)
from t2i_align.errors import UserError
from t2i_align.text_tables import Row

NUMBERS = ("label_0", "label_1", "weight", "score_0", "score_1")


class RowPairs(PairTable):
    """Pairs of rows of text.

    Args:
        address: what the user wrote.
        file: what the rows are from; picture paths are relative to its folder.
        rows: with the columns of the layout.
        layout: which column is what.
        places: row -> where a person finds it; None counts lines of the file.

    Raises:
        UserError: cells that make no sense, with their line.
    """

    layout: Layout

    def __init__(
        self, address: str, file: Path, rows: Sequence[Row], layout: Layout, places: Sequence[str] | None = None
    ) -> None:
        self.file, self.layout = file, layout
        places = [f"{file.name} line {row.line}" for row in rows] if places is None else places
        kept = np.ones(len(rows), dtype=bool)
        skipped: dict[str, int] = {}
        if "has_label" in layout.fields:
            flags = [value_of(row, layout, "has_label") for row in rows]
            kept, skipped = decided(flags, places.__getitem__, address)
        indices = np.flatnonzero(kept).tolist()
        self._places = [places[index] for index in indices]
        rows = [rows[index] for index in indices]
        self._cells = [(self._picture(row, 0), self._picture(row, 1)) for row in rows]
        columns = self._columns(address, rows)
        columns.skipped = skipped
        super().__init__(address, columns)

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        first, second = (_picture_bytes(cell, self.file.parent) for cell in self._cells[row])
        return first, second

    def location(self, row: int) -> str:
        """File and line, counted from 1."""
        return self._places[row]

    def picture_signature(self) -> Iterable[bytes]:
        """Paths and file sizes."""
        return picture_sizes(self.file.parent, (_name(cell) for pair in self._cells for cell in pair))

    def _picture(self, row: Row, side: int) -> Any:
        column = self.layout.pictures[side]
        cell = row.cells.get(column)
        if isinstance(cell, dict) and (cell.get("path") or cell.get("bytes")):
            return cell
        if not isinstance(cell, str) or not cell.strip():
            raise line_error(self.file, row.line, f"has no {column}", f"columns {_given(row)}")
        return cell

    def _columns(self, address: str, rows: Sequence[Row]) -> PairColumns:
        layout, file = self.layout, self.file

        def cells(name: str) -> list[Any]:
            return [value_of(row, layout, name) for row in rows]

        def texts(name: str) -> list[str | None]:
            return [None if value is None else str(value) for value in cells(name)]

        labels = self._labels(address, rows)
        found = captions(cells("caption"), self._places.__getitem__, address)
        captions_1 = captions(cells("caption_1"), self._places.__getitem__, address)
        margins = [_margins_of(row, layout, file) for row in rows]
        names = sorted({name for row in margins for name in row})
        gaps = {name: np.array([row.get(name, np.nan) for row in margins], dtype=np.float64) for name in names}
        columns = PairColumns(
            captions=[caption or "" for caption in found],
            labels=labels,
            pair_ids=unique_ids(
                [
                    given if given is not None else hashed_id(caption, *map(_name, pair))
                    for given, caption, pair in zip(texts("id"), found, self._cells, strict=True)
                ]
            ),
            captions_1=captions_1 if any(caption is not None for caption in captions_1) else None,
            users=texts("user_id"),
            weights=_numbers(rows, layout, "weight", file, 1.0),
            gaps=gaps_from_margins(gaps, labels),
        )
        with_scores(columns, _scores(rows, layout, file))
        missing = [index for index, caption in enumerate(found) if caption is None]
        labels_1 = _numbers(rows, layout, "label_1", file, float("nan")) if "label_0" in layout.fields else None
        columns.problems = find_problems(columns, labels_1, missing_captions=missing)
        return columns

    def _labels(self, address: str, rows: Sequence[Row]) -> np.ndarray:
        """``[N]`` probability that picture 0 is preferred; each row says it as a probability or as a winner."""
        layout = self.layout
        if layout.decided:
            return np.ones(len(rows))
        labels = _numbers(rows, layout, "label_0", self.file, float("nan"))
        winners = [value_of(row, layout, "winner") for row in rows]
        for row, label, winner in zip(rows, labels, winners, strict=True):
            if winner is not None and not np.isnan(label):
                both = f"{layout.fields['label_0'][0]} and {' or '.join(layout.fields['winner'])}"
                raise line_error(self.file, row.line, f"has both {both}", "one of them says who won")
        if "winner" not in layout.fields:
            return labels
        open_rows = [index for index, label in enumerate(labels) if np.isnan(label)]
        if "label_0" in layout.fields and (bare := [i for i in open_rows if winners[i] is None]):
            raise line_error(self.file, rows[bare[0]].line, "has neither label_0 nor preferred", _given(rows[bare[0]]))
        labels[open_rows] = winner_labels(
            [winners[index] for index in open_rows],
            [(_name(first), _name(second)) for first, second in (self._cells[index] for index in open_rows)],
            layout,
            lambda row: self._places[open_rows[row]],
            address,
        )
        return labels


def value_of(row: Row, layout: Layout, name: str) -> Any:
    """A field of a row, under the first of its names that the row has; None where it has none or the cell is empty."""
    found = (row.cells.get(column) for column in layout.fields.get(name, ()))
    return next((value for value in found if value is not None), None)


def from_text(rows: Sequence[Row], layout: Layout) -> list[Row]:
    """Rows of CSV or TSV with empty cells as None and numbers as numbers, as JSON would have them."""
    numbers = {column for name in NUMBERS for column in layout.fields.get(name, ())}

    def value(column: str, text: str) -> Any:
        if not text.strip():
            return None
        if column in numbers:
            try:
                return float(text)
            except ValueError:
                return text  # refused with its line where it is read
        return text

    return [Row(row.line, {column: value(column, text) for column, text in row.cells.items()}) for row in rows]


def line_error(file: Path, line: int, what: str, found: str) -> UserError:
    """A complaint about one line."""
    return UserError(f"{file} line {line} {what}.", found, "correct the line; the keys are described in docs/data.md")


def number(value: Any, name: str, file: Path, line: int, default: float) -> float:
    """A cell as a number, ``default`` where there is none.

    Raises:
        UserError: it is not a number.
    """
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise line_error(file, line, f"has a {name} that is not a number", repr(value))
    return float(value)


def _numbers(rows: Sequence[Row], layout: Layout, name: str, file: Path, default: float) -> np.ndarray:
    found = [number(value_of(row, layout, name), name, file, row.line, default) for row in rows]
    return np.array(found, dtype=np.float64)


def _scores(rows: Sequence[Row], layout: Layout, file: Path) -> np.ndarray | None:
    """``[N, 2]`` of ``score_0`` and ``score_1``, NaN where a row lacks one; None where no row has either."""
    table = np.stack([_numbers(rows, layout, name, file, float("nan")) for name in ("score_0", "score_1")], axis=1)
    return None if np.isnan(table).all() else table


def _margins_of(row: Row, layout: Layout, file: Path) -> Mapping[str, float]:
    margins = value_of(row, layout, "margins") or {}
    if not isinstance(margins, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in margins.values()
    ):
        raise line_error(file, row.line, "has margins that are not an object of numbers", repr(margins)[:80])
    return margins


def _name(cell: Any) -> str:
    """What a picture cell is called; embedded pictures are called by their bytes."""
    return cell if isinstance(cell, str) else str(cell.get("path") or cell["bytes"])


def _picture_bytes(cell: Any, folder: Path) -> bytes:
    if isinstance(cell, str):
        return read_picture(folder / cell)
    if not cell.get("bytes"):
        return read_picture(folder / str(cell["path"]))
    try:
        return base64.b64decode(cell["bytes"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UndecodableImage(f"bytes of a picture in JSON must be base64 ({error})") from error


def _given(row: Row) -> str:
    return ", ".join(name for name, value in row.cells.items() if value is not None) or "none"
