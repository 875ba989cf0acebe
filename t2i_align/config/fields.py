"""Every key that a run's YAML file may hold, read off the schema: for messages, tables and nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from t2i_align.config.schema import RunConfig

JSON_NAMES = {"string": "text", "boolean": "true or false", "object": "mapping", "null": "null"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: dotted path such as ``training.learning_rate``.
        type: what it may hold, in words.
        default: default value; None where ``required`` or null.
        required: must be given.
        description: one line, or the section's docstring.
        is_section: holds other keys.
    """

    path: str
    type: str
    default: Any
    required: bool
    description: str
    is_section: bool

    @property
    def section(self) -> str:
        """Path of the enclosing section, empty at the top."""
        return self.path.rpartition(".")[0]

    @property
    def summary(self) -> str:
        """First sentence of the description."""
        return self.description.partition(". ")[0].rstrip(".")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]


def json_schema() -> dict[str, Any]:
    """JSON schema of :class:`RunConfig`, for editors and other tools."""
    return RunConfig.model_json_schema()


@cache
def keys() -> dict[str, Key]:
    """Every key by its dotted path, in the order of the schema; a section comes before its keys."""
    schema = json_schema()
    return {key.path: key for key in _walk(schema, schema["$defs"], "")}


def _walk(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    required = set(schema.get("required", ()))
    for name, entry in schema.get("properties", {}).items():
        path, target = prefix + name, _dereference(entry, definitions)
        is_section = "properties" in target
        yield Key(
            path=path,
            type="section" if is_section else type_in_words(target),
            default=None if is_section else target.get("default"),
            required=name in required,
            description=" ".join((entry.get("description") or target.get("description", "")).split()),
            is_section=is_section,
        )
        if is_section:
            yield from _walk(target, definitions, path + ".")


def _dereference(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its ``$ref`` replaced by what it names."""
    choices = [choice for choice in entry.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) == 1 and "$ref" in choices[0]:  # a section that may be left out
        entry = {**{key: value for key, value in entry.items() if key != "anyOf"}, **choices[0]}
    reference = entry.get("$ref")
    if reference is None:
        return dict(entry)
    return {**definitions[reference.rpartition("/")[2]], **{k: v for k, v in entry.items() if k != "$ref"}}


def type_in_words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema accepts, for example ``integer, at least 1``, ``a | b`` or ``list of text``."""
    if "anyOf" in schema:
        return " or ".join(type_in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {type_in_words(schema.get('items', {}))}"
    if kind in ("integer", "number"):
        return kind + _bounds(schema)
    return JSON_NAMES.get(kind, kind)


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    parts = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    return f", {' and '.join(parts)}" if parts else ""


def nearest_key(path: str) -> str | None:
    """The valid path that was most likely meant by an unknown one, or None when nothing is near.

    The same section is tried first, by spelling and by words (``validation.seed`` is
    ``validation.validation_seed``); then the same name elsewhere (``training.resolution`` is
    ``data.resolution``).
    """
    known = keys()
    section, _, name = path.rpartition(".")
    siblings = [key.name for key in known.values() if key.section == section]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.7)
    if not close:
        words = set(name.split("_"))
        holders = [sibling for sibling in siblings if words <= set(sibling.split("_"))]
        close = holders if len(holders) == 1 else []
    if close:
        return f"{section}.{close[0]}" if section else close[0]
    moved = difflib.get_close_matches(name, [key.name for key in known.values()], n=1, cutoff=0.75)
    return next((key.path for key in known.values() if key.name in moved), None)
