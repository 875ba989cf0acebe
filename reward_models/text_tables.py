"""The one reader of text files that people write: lines, JSON lines, and tables of prompts, pictures and pairs.

Every room of both packages reads through it, so that a file means the same wherever it is named:

* Text is UTF-8, with or without a byte order mark. Anything else is refused with file, line and byte.
* A line ends at ``\\n`` (a ``\\r`` before it belongs to the end). U+2028, U+0085 and their like are text: JSON and CSV
  allow them inside a line, and people paste them into prompts.
* CSV is RFC 4180: commas, quotation marks and line breaks stand in quotes. A row with more or fewer fields than the
  header is refused with its line: an unquoted comma would cut a prompt short. Where the header has no comma but
  semicolons or tabs, those separate.
* TSV is read with quotes where the whole file is written so, else as it stands (PartiPrompts has bare quotes).
* Column names match in any case, with or without ``_``, ``-`` and spaces: ``File_Name`` is ``filename``.

Imports nothing of ours but the error type.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.errors import RewardModelError

JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
PROMPT_COLUMNS = ("prompt", "caption", "text")
"""What a column of prompts may be called; the first one present is read."""

FILE_COLUMNS = (
    *("file_name", "file", "image", "path", "file_path", "image_file", "image_path", "image_name"),
    *("picture", "picture_file", "img", "img_path"),
)
"""What a column of names of picture files may be called."""

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_BOM = b"\xef\xbb\xbf"
_FIELD_LIMIT = 2**24  # the csv module stops at 128 KiB, and a base64 picture is longer


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: of the file, counted from 1; the first one where the row has several.
        cells: column name -> value: text in CSV and TSV, any JSON value in JSON lines. Lines of JSON may lack some.
    """

    line: int
    cells: dict[str, Any]


@dataclass(frozen=True)
class TextTable:
    """Rows under named columns.

    Attributes:
        path: of the file.
        columns: names as written, in the order of the file; without a name ``column 3``.
        rows: in the order of the file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, names: Iterable[str]) -> str | None:
        """The first of these names that a column has, as the file spells it; None where there is none."""
        return find_column(self.columns, names)


def spelling(name: str) -> str:
    """What the spellings of one column name share: case, ``_``, ``-``, dots and white space do not count."""
    return re.sub(r"[\s_.\-]+", "", name.casefold())


def find_column(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The column that has the first of these names, in any spelling; None where there is none."""
    known = {spelling(column): column for column in columns}
    return next((known[wanted] for wanted in map(spelling, names) if wanted in known), None)


def split_lines(text: str) -> list[str]:
    """The lines of a text that end at ``\\n`` only, without their ends; an empty last one does not count."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line of a UTF-8 file, read as it goes.

    Raises:
        RewardModelError: the file is not UTF-8 text, or its lines end at ``\\r`` alone.
    """
    path, position = Path(path), 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):  # a binary file's lines end at b"\n" only
            if number == 1:
                _refuse_wide(path, raw)
            text = _decoded(path, number, position, raw)
            position += len(raw)
            text = text.removesuffix("\n").removesuffix("\r")
            if "\r" in text or "\0" in text:
                raise _odd_character(path, number, text)
            yield number, text


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, value) of every line of JSON that is not blank.

    Raises:
        RewardModelError: see `text_lines`; or a line is not JSON.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise RewardModelError(
                f"{path} line {number} is not JSON.",
                f"{error.msg} at column {error.colno}: {line.strip()[:80]}",
                "one JSON value per line; mend or remove the line",
            ) from error


def read_table(path: str | Path) -> TextTable:
    """Read a ``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson`` file; a line of JSON that is a text is a prompt.

    Raises:
        RewardModelError: another kind of file, text that is not UTF-8, a row that does not fit its header (with its
            line), or two columns of one name.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return _json_table(path)
    if suffix not in TABLE_SUFFIXES:
        known = ", ".join((*TABLE_SUFFIXES, *JSON_SUFFIXES))
        raise RewardModelError("The kind of table is not known.", path.name, f"use one of {known}")
    lines = list(text_lines(path))
    if suffix == ".csv":
        return _table(path, _fields(path, lines, _delimiter(lines)))
    return _table(path, _tab_fields(path, lines))


def _refuse_wide(path: Path, first: bytes) -> None:
    encoding = _BOMS.get(first[:2])
    if encoding:
        raise RewardModelError(
            f"{path} is not UTF-8 text.",
            f"line 1, byte 0 of the file: {first[:2].hex(' ')}, the mark of {encoding}",
            "save it as UTF-8",
        )


def _decoded(path: Path, number: int, position: int, raw: bytes) -> str:
    try:
        return (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        skipped = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
        place = error.start + skipped
        guess = raw[place : place + 1].decode("cp1252", errors="replace")
        raise RewardModelError(
            f"{path} is not UTF-8 text.",
            f"line {number}, byte {position + place} of the file: {raw[place]:#04x} ({guess!r} in Windows-1252)",
            "save it as UTF-8 (Excel: CSV UTF-8)",
        ) from error


def _odd_character(path: Path, number: int, text: str) -> RewardModelError:
    if "\0" in text:
        return RewardModelError(f"{path} is not UTF-8 text.", f"line {number} holds a zero byte", "save it as UTF-8")
    return RewardModelError(
        f"{path} line {number} holds a carriage return that ends no line.",
        repr(text[:60]),
        "save it with line ends \\n or \\r\\n",
    )


def _json_table(path: Path) -> TextTable:
    names: dict[str, str] = {}  # spelling -> name as first written
    rows = []
    for number, value in json_lines(path):
        if isinstance(value, str):
            value = {PROMPT_COLUMNS[0]: value}
        if not isinstance(value, dict):
            raise RewardModelError(
                f"{path} line {number} is neither a string nor an object.",
                json.dumps(value)[:80],
                'write "a red circle" or {"prompt": "a red circle"}',
            )
        cells = {names.setdefault(spelling(name), name): cell for name, cell in value.items()}
        if len(cells) < len(value):
            raise _named_twice(f"{path} line {number}", list(value))
        rows.append(Row(number, cells))
    return TextTable(path, tuple(names.values()), tuple(rows))


def _delimiter(lines: Sequence[tuple[int, str]]) -> str:
    """What separates the fields of a CSV file's header."""
    header = next((line for _, line in lines if line.strip()), "")
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _fields(path: Path, lines: Sequence[tuple[int, str]], delimiter: str) -> list[tuple[int, list[str]]]:
    """(first line, fields) of every row that is not blank, quotes read as in RFC 4180."""
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader((line + "\n" for _, line in lines), delimiter=delimiter, strict=True)
    rows, start = [], 1
    try:
        for fields in reader:
            if fields:
                rows.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        raise RewardModelError(
            f"{path} line {start} is not {'CSV' if delimiter != chr(9) else 'a row of tabs and quotes'}.",
            f"{error}: {lines[start - 1][1][:80]}",
            'put a field with quotation marks in quotes and double them: "a sign that says ""hi"""',
        ) from error
    return rows


def _tab_fields(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, list[str]]]:
    """Rows of a TSV file: with quotes where every field that begins with one is whole in quotes, else as they stand.

    Raises:
        RewardModelError: some fields are whole in quotes and others only begin with one.
    """
    bare = [(number, line.split("\t")) for number, line in lines if line]
    if not any(field.startswith('"') for _, fields in bare for field in fields):
        return bare
    try:
        return _fields(path, lines, "\t")
    except RewardModelError as refusal:
        whole = any(len(field) > 1 and field[0] == field[-1] == '"' for _, fields in bare for field in fields)
        uneven = len({len(fields) for _, fields in bare}) > 1
        if whole or uneven:  # some of it is quoted: taken as it stands, those quotes would become text
            raise refusal
        return bare


def _table(path: Path, fields: Sequence[tuple[int, list[str]]]) -> TextTable:
    if not fields:
        return TextTable(path, (), ())
    (_, header), *body = fields
    columns = tuple(name.strip() or f"column {place}" for place, name in enumerate(header, start=1))
    if len({spelling(name) for name in columns}) < len(columns):
        raise _named_twice(str(path), columns)
    for line, row in body:
        if len(row) != len(columns):
            raise RewardModelError(
                f"{path} line {line} does not fit its header: {_counted(len(row), 'field')}, "
                f"{_counted(len(columns), 'column')}.",
                f"{' | '.join(row)[:120]}; columns {', '.join(columns)}",
                'put text with commas, tabs or line breaks in quotes: "a red circle, on white"'
                if len(row) > len(columns)
                else "fill in the row; a line break inside a field stands in quotes",
            )
    return TextTable(path, columns, tuple(Row(line, dict(zip(columns, row, strict=True))) for line, row in body))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _named_twice(where: str, names: Sequence[str]) -> RewardModelError:
    known = [spelling(name) for name in names]
    repeated = [name for name in names if known.count(spelling(name)) > 1]
    return RewardModelError(f"{where} has two columns of one name.", ", ".join(repeated), "rename one of them")
