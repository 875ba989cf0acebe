"""Opening JSON lines, CSV and TSV files as pairs; `row_pairs` reads their cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i_align.data.layout import Layout, recognise
from t2i_align.data.row_pairs import RowPairs, from_text, line_error
from t2i_align.text_tables import json_lines, read_table

EMPTY = Layout(("image_0", "image_1"), ("0", "1"), False)  # of a file without a line


def read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every non-empty line.

    Raises:
        UserError: a line is not a JSON object, or the file is not UTF-8 text.
    """
    for line, row in json_lines(file):
        if not isinstance(row, dict):
            raise line_error(file, line, "is not a JSON object", json.dumps(row)[:80])
        yield line, row


def looks_ranked(file: Path) -> bool:
    """Whether the first line has ``images``; an empty file does not."""
    _, row = next(read_lines(file), (0, {}))
    return "images" in row


def open_jsonl(address: str, file: Path, columns: Mapping[str, str]) -> RowPairs:
    """Pairs of a file of JSON lines.

    Raises:
        UserError: see `read_lines`, `layout.recognise` and `RowPairs`.
    """
    for _ in read_lines(file):
        break  # a first line that is no object is not a prompt here
    table = read_table(file)
    layout = recognise(table.columns, columns, address) if table.columns else EMPTY
    return RowPairs(address, file, table.rows, layout)


def open_text_table(address: str, file: Path, columns: Mapping[str, str]) -> RowPairs:
    """Pairs of a CSV or TSV file.

    Raises:
        UserError: see `text_tables.read_table`, `layout.recognise` and `RowPairs`.
    """
    table = read_table(file)
    layout = recognise(table.columns, columns, address)
    return RowPairs(address, file, from_text(table.rows, layout), layout)
