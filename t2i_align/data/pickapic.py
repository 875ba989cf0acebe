"""Pairs in an Arrow table: the Pick-a-Pic schema, or columns under other names (`layout`).

Needed: ``caption``, ``jpg_0``, ``jpg_1``, ``label_0``, or what `layout.recognise` takes for them. Read where present:
``label_1`` (must be 1 - label_0), ``has_label`` (false: nobody decided, the row is left out), ``ranking_id``,
``user_id``, and our additions ``caption_1``, ``weight``, ``margins`` (a struct or map of numbers), and ``score_0`` with
``score_1``. Everything else is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from t2i_align.data.judgements import captions, decided, winner_labels
from t2i_align.data.layout import UIDS, Layout
from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.tables import (
    PairColumns,
    find_problems,
    gaps_from_margins,
    hashed_id,
    unique_ids,
    with_scores,
)
from t2i_align.errors import UserError

PICTURES = ("jpg_0", "jpg_1")


def cheap_columns(layout: Layout, names: Sequence[str]) -> dict[str, str]:
    """Our field -> column of everything but pictures that a table has; names of pictures are cheap, too.

    Args:
        layout: of the table.
        names: columns of this file; optional ones may be missing.
    """
    uids = {name: name for name in UIDS}
    return {ours: theirs for ours, theirs in {**uids, **layout.cheap}.items() if theirs in names}


def canonical(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    """The columns under our names."""
    return table.select(list(columns.values())).rename_columns(list(columns))


def read_columns(
    table: pa.Table, layout: Layout, where: Callable[[int], str], address: str, names: pa.Table | None = None
) -> tuple[PairColumns, np.ndarray]:
    """The cheap columns of a table and the rows ``[N]`` that are kept.

    Args:
        table: the columns of `cheap_columns` under our names, all rows.
        layout: of the table.
        where: row of the table -> where a person finds it.
        address: for messages.
        names: both picture columns, where they hold names.

    Raises:
        UserError: cells of a wrong type, or a winner that is neither picture.
    """
    rows = np.arange(len(table))
    skipped: dict[str, int] = {}
    if "has_label" in table.column_names:
        mask, skipped = decided(table["has_label"].to_pylist(), where, address)
        rows = rows[mask]
        table = table.take(pa.array(rows))

    def place(row: int) -> str:
        return where(int(rows[row]))

    texts = captions(table["caption"].to_pylist(), place, address)
    pictures = None if names is None else [tuple(row.values()) for row in names.take(pa.array(rows)).to_pylist()]
    labels = _labels(table, layout, pictures, place, address)
    columns = PairColumns(
        captions=[caption or "" for caption in texts],
        labels=labels,
        pair_ids=_ids(table, rows),
        captions_1=_captions_1(table, place, address),
        users=[_text(user) for user in table["user_id"].to_pylist()] if "user_id" in table.column_names else None,
        weights=_numbers(table, "weight", address, null=1.0) if "weight" in table.column_names else None,
        gaps=gaps_from_margins(_margins(table, address), labels),
        skipped=skipped,
    )
    with_scores(columns, _scores(table, address))
    labels_1 = _numbers(table, "label_1", address) if {"label_0", "label_1"} <= set(table.column_names) else None
    missing_captions = [row for row, caption in enumerate(texts) if caption is None]
    columns.problems = find_problems(columns, labels_1, missing_captions)
    return columns, rows


def _labels(
    table: pa.Table,
    layout: Layout,
    pictures: Sequence[tuple[Any, Any]] | None,
    where: Callable[[int], str],
    address: str,
) -> np.ndarray:
    """``[N]`` probability that picture 0 is preferred."""
    if layout.decided:
        return np.ones(len(table))
    if {"label_0", "winner"} <= set(table.column_names):
        both = f"columns {layout.fields['label_0'][0]} and {layout.fields['winner'][0]}"
        raise UserError(f"{address} says twice who won.", both, "name one: data.columns.label_0 or data.columns.winner")
    if "winner" in table.column_names:
        return winner_labels(table["winner"].to_pylist(), pictures, layout, where, address)
    return _numbers(table, "label_0", address)


def picture_bytes(value: Any, folder: Path | None = None) -> bytes:
    """Encoded picture out of a cell: bytes, a ``{"bytes", "path"}`` struct, or the path of a file.

    Args:
        value: the cell.
        folder: what a relative path is relative to.

    Raises:
        UndecodableImage: nothing is there.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return read_picture((folder or Path()) / value["path"])
        value = value.get("bytes")
    if not value:
        raise UndecodableImage("the picture is missing (empty cell)")
    if isinstance(value, str):
        return read_picture((folder or Path()) / value)
    if not isinstance(value, bytes):
        raise UndecodableImage(f"the cell holds {type(value).__name__}, not an encoded picture")
    return value


def read_picture(path: Path) -> bytes:
    """Contents of a picture file.

    Raises:
        UndecodableImage: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UndecodableImage(f"cannot read {path}: {error.strerror or error}") from error


def _numbers(table: pa.Table, name: str, address: str, null: float = float("nan")) -> np.ndarray:
    """A column as float64, with ``null`` where there is no value."""
    try:
        column = pc.cast(table[name], pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"Column {name} of {address} does not hold numbers.",
            f"type {table[name].type}",
            "store it as a float",
        ) from error
    return np.array(pc.fill_null(column, null).to_numpy(), dtype=np.float64)


def _scores(table: pa.Table, address: str) -> np.ndarray | None:
    """``[N, 2]`` of the columns score_0 and score_1; None without them.

    Raises:
        UserError: one of the two is there alone.
    """
    present = [name for name in ("score_0", "score_1") if name in table.column_names]
    if not present:
        return None
    if len(present) == 1:
        raise UserError(f"{address} has {present[0]} alone.", present[0], "give score_0 and score_1, or neither")
    return np.stack([_numbers(table, name, address) for name in present], axis=1)


def _text(value: Any) -> str | None:
    """A user or ranking id as text; whole floats, as pandas writes integers with gaps, lose their ``.0``."""
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else str(value)
    return None if value is None else str(value)


def _ids(table: pa.Table, rows: np.ndarray) -> list[str]:
    """The id where there is one, else a hash of caption, picture ids and row."""

    def column(name: str) -> list:
        return table[name].to_pylist() if name in table.column_names else [None] * len(table)

    cells = zip(*map(column, ("id", "caption", "image_0_uid", "image_1_uid")), rows.tolist(), strict=True)
    return unique_ids(
        [
            _text(ranking) or hashed_id(caption, uid_0, uid_1, row if uid_0 is None else "")
            for ranking, caption, uid_0, uid_1, row in cells
        ]
    )


def _captions_1(table: pa.Table, where: Callable[[int], str], address: str) -> list[str | None] | None:
    if "caption_1" not in table.column_names:
        return None
    texts = captions(table["caption_1"].to_pylist(), where, address)
    return texts if any(text is not None for text in texts) else None


def _margins(table: pa.Table, address: str) -> dict[str, np.ndarray]:
    """Reward name -> margin per row; NaN where a row lacks it."""
    if "margins" not in table.column_names:
        return {}
    try:
        cells = [dict(cell or {}) for cell in table["margins"].to_pylist()]
        names = sorted({name for cell in cells for name in cell})
        return {name: np.array([cell.get(name) for cell in cells], dtype=np.float64) for name in names}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Column margins of {address} is not a struct or map of numbers.",
            f"type {table['margins'].type}",
            "store one number per reward name",
        ) from error
