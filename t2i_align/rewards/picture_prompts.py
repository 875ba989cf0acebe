"""Which prompt belongs to which picture of a folder, from a table or a list of prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from t2i_align.data.picture_names import PICTURE_SUFFIXES, picture_files
from t2i_align.errors import UserError
from t2i_align.evaluation.prompts import load_prompts, prompt_of
from t2i_align.text_tables import FILE_COLUMNS, JSON_SUFFIXES, PROMPT_COLUMNS, TABLE_SUFFIXES, TextTable, read_table

logger = logging.getLogger(__name__)

SHOWN = 5


def prompts_of(folder: Path, prompts: Path) -> list[tuple[str, str]]:
    """(file name, prompt) of every row that names a picture, or of every picture in natural order.

    Args:
        folder: of pictures.
        prompts: a table with a column of file names; or prompts alone, one per picture or one for all.

    Raises:
        UserError: pictures without a prompt, other numbers of prompts than of pictures, or a column that seems to hold
            file names and is not called so.
    """
    files = picture_files(folder)
    if prompts.is_file() and prompts.suffix.lower() in (*JSON_SUFFIXES, *TABLE_SUFFIXES):
        table = read_table(prompts)
        column = table.column(FILE_COLUMNS)
        _refuse_unread_names(table, column, files)
        if column is not None:
            return _named(folder, files, table, column)
    texts = load_prompts(prompts).prompts
    if len(texts) == 1:
        texts *= len(files)
    elif files != sorted(files):
        logger.warning(
            "pictures take the prompts in the order of their numbers, not of their letters: %s, ...; a column "
            "file_name says which is whose",
            ", ".join(files[:SHOWN]),
        )
    if len(texts) != len(files):
        raise UserError(
            "The numbers of pictures and prompts differ.",
            f"{len(files)} pictures in {folder}, {len(texts)} prompts in {prompts}",
            f"give one prompt per picture in the order of the file names, one in all, or a {FILE_COLUMNS[0]} column",
        )
    return list(zip(files, texts, strict=True))


def _named(folder: Path, files: Sequence[str], table: TextTable, column: str) -> list[tuple[str, str]]:
    text = table.column(PROMPT_COLUMNS)
    if text is None:
        raise UserError(
            "The table has no prompt column.",
            f"{table.path}: {', '.join(table.columns)}",
            f"name the column one of {', '.join(PROMPT_COLUMNS)}",
        )
    rows = []
    for number, row in enumerate(table.rows, start=1):
        name = row.cells.get(column)
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"Row {number} names no picture.", f"{table.path} line {row.line}: {name!r}", f"fill in {column!r}"
            )
        rows.append((_inside(name.strip(), folder, table.path), prompt_of(row, text, table.path, number)))
    named = {name for name, _ in rows}
    without = [file for file in files if file not in named]
    if without:
        raise UserError(
            f"{len(without)} pictures have no prompt.",
            f"{', '.join(without[:SHOWN])} in {folder}",
            f"add to {table.path}",
        )
    return rows


def _inside(name: str, folder: Path, table: Path) -> str:
    """A picture's name relative to the folder, however the table writes it; as written where nothing is there."""
    for base in (folder, table.parent):
        path = base / name
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path.resolve().relative_to(folder.resolve()).as_posix()
    return name


def _refuse_unread_names(table: TextTable, column: str | None, files: Sequence[str]) -> None:
    """A column of file names under a name of its own must not be passed over: prompts would go to other pictures."""
    read = {table.column(PROMPT_COLUMNS), column}
    used = None if column is None else [row.cells.get(column) for row in table.rows]
    for other in (name for name in table.columns if name not in read):
        values = [row.cells.get(other) for row in table.rows]
        if _looks_like_names(values, files, ordered=used is None) and not _agree(used, values):
            said = "" if column is None else f", beside {column!r}"
            raise UserError(
                f"Column {other!r} of {table.path} seems to name pictures and would not be read.",
                f"{values[0]!r} in line {table.rows[0].line}{said}",
                f"call it {FILE_COLUMNS[0]}, or remove it" if column is None else "remove the one that is not meant",
            )


def _looks_like_names(values: Sequence[Any], files: Sequence[str], ordered: bool) -> bool:
    """Whether every value ends like a picture; or they are the pictures' stems in another order than theirs."""
    texts = [str(value).strip() for value in values if value not in (None, "")]
    if not texts:
        return False
    if all(text.lower().endswith(PICTURE_SUFFIXES) for text in texts):
        return True
    stems = [PurePath(file).stem for file in files]
    return ordered and texts != stems and sorted(texts) == sorted(stems)


def _agree(used: Sequence[Any] | None, values: Sequence[Any]) -> bool:
    """Whether two columns name the same pictures, such as a name and a path."""
    if used is None:
        return False
    pairs = zip(used, values, strict=True)
    return all(PurePath(str(first)).name == PurePath(str(second)).name for first, second in pairs)
