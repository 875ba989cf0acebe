"""Prompt sets: from the embedded world, a published suite, a text file, JSON lines, or a table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_align.errors import UserError
from t2i_align.paths import beside
from t2i_align.randomness import address_hash
from t2i_align.text_tables import (
    JSON_SUFFIXES,
    PROMPT_COLUMNS,
    TABLE_SUFFIXES,
    Row,
    TextTable,
    find_column,
    read_table,
    text_lines,
)

GROUP_COLUMNS = ("category", "challenge", "style")
"""Columns by which a suite is usually broken down; kept where present."""

USER_COLUMNS = ("user_id", "user")
"""Column that says whose prompt it is; the first one present is used."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order; a prompt's index is its identity in every later file.

    Attributes:
        name: shown in reports.
        prompts: the texts.
        groups: column name -> one label per prompt, e.g. PartiPrompts' category.
        users: whose each prompt is; empty where nobody says. Intervals are over users then.
    """

    name: str
    prompts: tuple[str, ...]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("The prompt set is empty.", self.name, "give at least one prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, limit: int | None) -> PromptSet:
        """The first ``limit`` prompts, or all of them for None."""
        return self.at(range(len(self))[:limit])

    def at(self, indices: Sequence[int]) -> PromptSet:
        """The prompts of these indices, in their order."""
        groups = {name: tuple(labels[index] for index in indices) for name, labels in self.groups.items()}
        users = tuple(self.users[index] for index in indices) if self.users else ()
        return PromptSet(self.name, tuple(self.prompts[index] for index in indices), groups, users)

    def shuffled(self) -> PromptSet:
        """The same prompts in a fixed random order, by a hash of each text.

        Suites are sorted by kind, so their first prompts are no sample of them; after this, ``first`` is one, and
        a larger one begins with the smaller.
        """
        order = sorted(range(len(self)), key=lambda index: address_hash(0, "prompt order", self.prompts[index]))
        return self.at(order)


def load_prompts(
    source: str | Path | PromptSet | Sequence[str], limit: int | None = None, shuffle: bool = False
) -> PromptSet:
    """Read prompts.

    Args:
        source: ``shapes`` (the held-out prompts of the embedded world); a published suite, ``NAME[:PART][=PATH]`` as in
            ``suites``; a ``.txt`` file with one prompt per line; a ``.jsonl`` file of strings or objects with a prompt,
            caption or text key; a ``.tsv`` or ``.csv`` table with such a column; a list of texts; or a ready PromptSet.
        limit: keep only the first prompts.
        shuffle: bring them into a fixed random order before that, see ``PromptSet.shuffled``.

    Raises:
        UserError: the file or suite is missing, of an unknown kind, broken or empty.
    """
    prompts = _open(source)
    return (prompts.shuffled() if shuffle else prompts).first(limit)


def _open(source: str | Path | PromptSet | Sequence[str]) -> PromptSet:
    if isinstance(source, PromptSet):
        return source
    if not isinstance(source, str | Path):
        return PromptSet("prompts", tuple(str(prompt) for prompt in source))
    if str(source) == "shapes":
        from t2i_align.shapes import assets

        return PromptSet("shapes", tuple(assets.prompts("heldout")))
    from t2i_align.evaluation.suites import load_suite, suite_names

    if isinstance(source, str) and (suite := load_suite(source)) is not None:
        return suite
    path = Path(source)
    if not path.is_file():
        raise UserError(
            "The prompt file does not exist.",
            str(path),
            f"{_nearest(source)}give a .txt, .jsonl, .tsv or .csv file, shapes for the built-in prompts, or a suite: "
            f"{', '.join(suite_names())} (NAME or NAME=PATH)",
        )
    return read_prompt_file(path)


def _nearest(source: str | Path) -> str:
    """The suite whose name is near, or else what lies beside the path."""
    from t2i_align.evaluation.suites import suite_names

    name = re.split("[:=]", str(source))[0]
    near = difflib.get_close_matches(name, ["shapes", *suite_names()], n=1)
    return f"did you mean '{near[0]}'? " if near else beside(source)


def read_prompt_file(path: Path) -> PromptSet:
    """Read a ``.txt``, ``.jsonl``, ``.tsv`` or ``.csv`` file, see ``load_prompts``."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        lines = [line.strip() for _, line in text_lines(path)]
        return PromptSet(path.stem, tuple(line for line in lines if line))
    if suffix in (*JSON_SUFFIXES, *TABLE_SUFFIXES):
        return _from_table(read_table(path))
    known = ", ".join(sorted((".txt", *JSON_SUFFIXES, *TABLE_SUFFIXES)))
    raise UserError("The kind of prompt file is not known.", path.name, f"use one of {known}")


def prompt_of(row: Row, column: str, path: Path, number: int) -> str:
    """The prompt of a table's row.

    Raises:
        UserError: it is empty, or no text.
    """
    value = row.cells.get(column)
    found = f"{path} line {row.line}: {row.cells}"[:300]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"Prompt {number} is empty.", found, f"fill in {column!r} or remove the row")
    if not isinstance(value, str):
        raise UserError(f"Prompt {number} is no text but {type(value).__name__}.", found, "write one text per row")
    return value.strip()


def _from_table(table: TextTable) -> PromptSet:
    path = table.path
    if not table.rows:
        raise UserError("The prompt file is empty.", str(path), "give at least one prompt")
    column = table.column(PROMPT_COLUMNS)
    if column is None:
        raise UserError(
            "The prompt file has no prompt column.",
            f"{path}: {', '.join(table.columns)}",
            f"name the column one of {', '.join(PROMPT_COLUMNS)}",
        )
    prompts = tuple(prompt_of(row, column, path, number) for number, row in enumerate(table.rows, start=1))
    found = {name: find_column(table.columns, [name]) for name in GROUP_COLUMNS}
    groups = {
        name: tuple(str(row.cells.get(column) or "") for row in table.rows)
        for name, column in found.items()
        if column is not None
    }
    return PromptSet(path.stem, prompts, groups, _users(table))


def _users(table: TextTable) -> tuple[str, ...]:
    column = table.column(USER_COLUMNS)
    if column is None:
        return ()
    users = [row.cells.get(column) for row in table.rows]
    missing = [row.line for row, user in zip(table.rows, users, strict=True) if user in (None, "")]
    if missing:
        raise UserError(
            "Some prompts belong to nobody.",
            f"{table.path}: line {missing[0]} and {len(missing) - 1} more",
            f"fill in {column!r} everywhere, or remove the column",
        )
    return tuple(map(str, users))
