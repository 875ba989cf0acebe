"""`reward_models.text_tables` with the errors of this package: the one reader of lines, JSON lines and tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reward_models import text_tables
from reward_models.errors import RewardModelError
from reward_models.text_tables import (
    FILE_COLUMNS,
    JSON_SUFFIXES,
    PROMPT_COLUMNS,
    TABLE_SUFFIXES,
    Row,
    TextTable,
    find_column,
    spelling,
    split_lines,
)
from t2i_align.errors import UserError

__all__ = [
    "FILE_COLUMNS",
    "JSON_SUFFIXES",
    "PROMPT_COLUMNS",
    "TABLE_SUFFIXES",
    "Row",
    "TextTable",
    "find_column",
    "json_lines",
    "read_table",
    "spelling",
    "split_lines",
    "text_lines",
]


@contextmanager
def _as_user_error() -> Iterator[None]:
    try:
        yield
    except RewardModelError as error:
        raise UserError(error.what, error.found, error.fix) from error


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line of a UTF-8 file.

    Raises:
        UserError: the file is not UTF-8 text, or its lines end at ``\\r`` alone.
    """
    with _as_user_error():
        yield from text_tables.text_lines(path)


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, value) of every line of JSON that is not blank.

    Raises:
        UserError: see `text_lines`; or a line is not JSON.
    """
    with _as_user_error():
        yield from text_tables.json_lines(path)


def read_table(path: str | Path) -> TextTable:
    """Read a ``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson`` file; see `reward_models.text_tables.read_table`.

    Raises:
        UserError: another kind of file, text that is not UTF-8, a row that does not fit its header (with its line), or
            two columns of one name.
    """
    with _as_user_error():
        return text_tables.read_table(path)
