"""Which keys hold text, so that a path or a name on the command line is taken as it is written.

To YAML ``20240501`` is a number, ``null`` nothing, ``1e5`` a number, ``[set] one`` an error, ``pairs #1`` is ``pairs``
and a comment. Where the schema says text, the word is none of these: it is text.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

Text = Literal["text", "text or null"]
TextKeys = Callable[[str], Text | None]
"""Dotted path of a key -> whether it holds text, or text or null; None where it holds anything else."""

NULLS = ("null", "~")


def nothing_known(path: str) -> Text | None:
    """No key is known to hold text: all values are YAML."""
    return None


def text_keys(*schemas: type[BaseModel] | tuple[str, type[BaseModel]]) -> TextKeys:
    """The text keys of schemas; where several know a key, the first that calls it text.

    Args:
        schemas: a model, or (name of a section, model of that section).
    """

    def kind(path: str) -> Text | None:
        for schema in schemas:
            prefix, model = schema if isinstance(schema, tuple) else ("", schema)
            if prefix and not path.startswith(f"{prefix}."):
                continue
            found = _kind(model, path[len(prefix) + 1 :].split(".") if prefix else path.split("."))
            if found is not None:
                return found
        return None

    return kind


def read_text(raw: str, kind: Text) -> str | None:
    """The text of a word: without quotes around the whole of it; null only where the key may be null.

    An empty word is null, as in YAML: the key's check then says what is missing.
    """
    if not raw or (kind == "text or null" and raw in NULLS):
        return None
    if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\"":
        try:
            unquoted = yaml.safe_load(raw)
        except yaml.YAMLError:
            return raw
        return unquoted if isinstance(unquoted, str) else raw
    return raw


def _kind(annotation: Any, path: list[str]) -> Text | None:
    """What stands at a path below an annotation."""
    choices = _choices(annotation)
    if not path:
        rest = [choice for choice in choices if choice is not types.NoneType]
        if not rest or any(choice not in (str, Path) for choice in rest):
            return None
        return "text or null" if len(rest) < len(choices) else "text"
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            field = choice.model_fields.get(path[0])
            if field is not None:
                return _kind(field.annotation, path[1:])
        elif get_origin(choice) is dict:
            return _kind(get_args(choice)[1], path[1:])
    return None


def _choices(annotation: Any) -> list[Any]:
    """Members of a union, without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for member in get_args(annotation) for choice in _choices(member)]
    return [annotation]
