"""Prompt sets: from the embedded world, a published suite, a text file, JSON lines, or a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_align.errors import UserError
from t2i_align.randomness import address_hash

PROMPT_COLUMNS = ("prompt", "caption", "text")
"""Column or key that holds the prompt, compared in lower case; the first one present is used."""

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
    from t2i_align.evaluation.suites import SUITES, load_suite

    if isinstance(source, str) and (suite := load_suite(source)) is not None:
        return suite
    path = Path(source)
    if not path.is_file():
        raise UserError(
            "The prompt file does not exist.",
            str(path),
            "give a .txt, .jsonl, .tsv or .csv file, shapes for the built-in prompts, or a suite: "
            f"{', '.join(sorted({name.partition(':')[0] for name in SUITES}))} (NAME or NAME=PATH)",
        )
    return read_prompt_file(path)


def read_prompt_file(path: Path) -> PromptSet:
    """Read a ``.txt``, ``.jsonl``, ``.tsv`` or ``.csv`` file, see ``load_prompts``."""
    if path.suffix.lower() not in _READERS:
        raise UserError("The kind of prompt file is not known.", path.name, f"use one of {', '.join(sorted(_READERS))}")
    try:
        return _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError("The prompt file is not UTF-8 text.", f"{path}: {error}", "save it as UTF-8") from error


def _read_text(path: Path) -> PromptSet:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return PromptSet(path.stem, tuple(line for line in lines if line))


def _read_json_lines(path: Path) -> PromptSet:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                "A line of the prompt file is not JSON.",
                f"{path}, line {number}: {error}",
                "mend or remove it",
            ) from error
        rows.append({"prompt": row} if isinstance(row, str) else row)
        if not isinstance(rows[-1], dict):
            raise UserError(
                "A line of the prompt file is neither a string nor an object.",
                f"{path}, line {number}: {line[:80]}",
                'write "a red circle" or {"prompt": "a red circle"}',
            )
    return _from_rows(path, rows)


def _read_table(path: Path) -> PromptSet:
    # PartiPrompts holds bare quotation marks inside its fields: a TSV of prompts is not quoted.
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        if tabs:
            return _from_rows(path, list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)))
        return _from_rows(path, list(csv.DictReader(file)))


def _from_rows(path: Path, rows: list[dict]) -> PromptSet:
    if not rows:
        raise UserError("The prompt file is empty.", str(path), "give at least one prompt")
    rows = [{str(key).lower(): value for key, value in row.items()} for row in rows]
    column = next((name for name in PROMPT_COLUMNS if name in rows[0]), None)
    if column is None:
        raise UserError(
            "The prompt file has no prompt column.",
            f"{path}: {', '.join(rows[0])}",
            f"name the column one of {', '.join(PROMPT_COLUMNS)}",
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UserError(f"Prompt {number} is empty.", f"{path}: {row}", f"fill in {column!r} or remove the row")
    groups = {name: tuple(str(row.get(name) or "") for row in rows) for name in GROUP_COLUMNS if name in rows[0]}
    return PromptSet(path.stem, tuple(row[column].strip() for row in rows), groups, _users(path, rows))


def _users(path: Path, rows: list[dict]) -> tuple[str, ...]:
    column = next((name for name in USER_COLUMNS if name in rows[0]), None)
    if column is None:
        return ()
    missing = [number for number, row in enumerate(rows, start=1) if row.get(column) in (None, "")]
    if missing:
        fix = f"fill in {column!r} everywhere, or remove the column"
        raise UserError(
            "Some prompts belong to nobody.", f"{path}: prompt {missing[0]} and {len(missing) - 1} more", fix
        )
    return tuple(str(row[column]) for row in rows)


_READERS = {".txt": _read_text, ".jsonl": _read_json_lines, ".tsv": _read_table, ".csv": _read_table}
