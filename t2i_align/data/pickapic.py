"""The Pick-a-Pic schema, in whatever Arrow table it arrives.

Needed: ``caption``, ``jpg_0``, ``jpg_1``, ``label_0``. Read where present: ``label_1`` (must be 1 - label_0),
``has_label`` (false: nobody decided, the row is left out), ``ranking_id``, ``user_id``, and our additions
``caption_1``, ``weight``, ``margins`` (a struct or map of numbers), and ``score_0`` with ``score_1``. Everything else
is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
REQUIRED = ("caption", *PICTURES, "label_0")
CHEAP = (
    *("caption", "caption_1", "label_0", "label_1", "has_label", "weight", "margins"),
    *("score_0", "score_1"),
    *("ranking_id", "user_id", "image_0_uid", "image_1_uid"),
)


def require_columns(names: Sequence[str], address: str) -> None:
    """Refuse a table without the needed columns.

    Raises:
        UserError: names what is missing and what is there.
    """
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise UserError(
            f"{address} is not in the Pick-a-Pic schema: column {', '.join(missing)} missing.",
            f"columns {', '.join(names) or 'none'}",
            "rename the columns to caption, jpg_0, jpg_1, label_0, or convert with t2i-align data convert",
        )


def read_columns(table: pa.Table, address: str) -> tuple[PairColumns, np.ndarray]:
    """The cheap columns of a table and the rows ``[N]`` that are kept.

    Args:
        table: the columns of `CHEAP` that exist, all rows.
        address: for messages.
    """
    rows = np.arange(len(table))
    skipped = {}
    if "has_label" in table.column_names:
        undecided = np.array([flag is False for flag in table["has_label"].to_pylist()], dtype=bool)
        skipped["has_label is false"] = int(undecided.sum())
        rows = rows[~undecided]
        table = table.take(pa.array(rows))
    captions = table["caption"].to_pylist()
    labels = _numbers(table, "label_0", address)
    columns = PairColumns(
        captions=[caption or "" for caption in captions],
        labels=labels,
        pair_ids=_ids(table, rows),
        captions_1=_captions_1(table),
        users=[_text(user) for user in table["user_id"].to_pylist()] if "user_id" in table.column_names else None,
        weights=_numbers(table, "weight", address, null=1.0) if "weight" in table.column_names else None,
        gaps=gaps_from_margins(_margins(table, address), labels),
        skipped={reason: count for reason, count in skipped.items() if count},
    )
    with_scores(columns, _scores(table, address))
    labels_1 = _numbers(table, "label_1", address) if "label_1" in table.column_names else None
    missing_captions = [row for row, caption in enumerate(captions) if caption is None]
    columns.problems = find_problems(columns, labels_1, missing_captions)
    return columns, rows


def picture_bytes(value: Any, folder: Path | None = None) -> bytes:
    """Encoded picture out of a cell: bytes, or a ``{"bytes", "path"}`` struct.

    Args:
        value: the cell.
        folder: what a relative path in the struct is relative to.

    Raises:
        UndecodableImage: nothing is there.
    """
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return read_picture((folder or Path()) / value["path"])
        value = value.get("bytes")
    if not value:
        raise UndecodableImage("the picture is missing (empty cell)")
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
    """``ranking_id`` where there is one, else a hash of caption, picture ids and row."""

    def column(name: str) -> list:
        return table[name].to_pylist() if name in table.column_names else [None] * len(table)

    cells = zip(*map(column, ("ranking_id", "caption", "image_0_uid", "image_1_uid")), rows.tolist(), strict=True)
    return unique_ids(
        [
            _text(ranking) or hashed_id(caption, uid_0, uid_1, row if uid_0 is None else "")
            for ranking, caption, uid_0, uid_1, row in cells
        ]
    )


def _captions_1(table: pa.Table) -> list[str | None] | None:
    if "caption_1" not in table.column_names:
        return None
    captions = table["caption_1"].to_pylist()
    return captions if any(caption is not None for caption in captions) else None


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
