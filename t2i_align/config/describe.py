"""Every configuration key as text for people; ``fields.json_schema`` says the same to tools."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from t2i_align.config.fields import Key, keys
from t2i_align.errors import UserError

WIDTH = 110


def describe(prefix: str = "") -> str:
    """Sections with their keys, each ``path = default``, its type, and what it is for.

    Args:
        prefix: only keys at or below this dotted path; empty for all.

    Raises:
        UserError: no key has that path.
    """
    known = keys()
    if prefix and prefix not in known:
        sections = ", ".join(key.path for key in known.values() if key.is_section)
        raise UserError("no configuration key has this path", repr(prefix), f"a section or key of: {sections}")
    if prefix and not known[prefix].is_section:
        return "\n".join(_key(known[prefix]))
    return "\n".join(line for section in _sections(prefix) for line in _section(section)).strip("\n")


def _sections(prefix: str) -> list[str]:
    """The section itself and every section below it; the top level is the empty path."""
    below = [key.path for key in keys().values() if key.is_section]
    return [prefix, *(path for path in below if path.startswith(f"{prefix}." if prefix else ""))]


def _section(path: str) -> Iterator[str]:
    if path:
        yield from ["", *textwrap.wrap(f"{path}: {keys()[path].description}", WIDTH)]
    for key in keys().values():
        if key.section == path and not key.is_section:
            yield from _key(key)


def _key(key: Key) -> Iterator[str]:
    yield f"  {key.path} " + ("(required)" if key.required else f"= {json.dumps(key.default)}")
    yield from textwrap.wrap(
        f"{key.type}: {key.description}", WIDTH, initial_indent="      ", subsequent_indent="      "
    )
