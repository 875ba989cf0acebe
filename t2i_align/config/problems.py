"""One thing that is wrong with a configuration, and how many of them become one message."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from t2i_align.config.fields import Key, keys, nearest_key
from t2i_align.errors import UserError

KINDS = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}


@dataclass(frozen=True)
class Problem:
    """A broken rule at a dotted path: what is wrong, what was found, how to fix it."""

    path: str
    what: str
    found: str = ""
    fix: str = ""


def report(problems: Sequence[Problem], source: str, places: Mapping[str, str]) -> UserError:
    """All problems as one error, numbered, each with the file and line (or the command line) that set it."""
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    lines = [f"{source}: {count} in the configuration"]
    for number, problem in enumerate(problems, start=1):
        place = _place(problem.path, places)
        lines.append(f"{number}. {problem.path}: {problem.what}" + (f"  [{place}]" if place else ""))
        lines += [f"   found: {problem.found}"] if problem.found else []
        lines += [f"   fix:   {problem.fix}"] if problem.fix else []
    return UserError("\n".join(lines))


def _place(path: str, places: Mapping[str, str]) -> str:
    """Where a key was set last; for a section every file and the command line that set something in it.

    A key that nobody wrote down is placed where the nearest enclosing section was.
    """
    while path:
        inside = [place for key, place in places.items() if key == path or key.startswith(path + ".")]
        if inside:
            first_lines = {place.rpartition(":")[0]: place for place in reversed(inside)}
            return " and ".join(reversed(first_lines.values()))
        path = path.rpartition(".")[0]
    return ""


def from_validation(error: ValidationError) -> list[Problem]:
    """Pydantic's errors in the words of this project."""
    found = [_from_details(dict(details)) for details in error.errors(include_url=False)]
    return list(dict.fromkeys(found))


def from_sections(error: ValidationError, sections: Sequence[type[BaseModel]] = (), see: str = "") -> list[Problem]:
    """Pydantic's errors of a file that is not a run.

    Args:
        error: what pydantic found.
        sections: of the file; an unknown key is answered with the nearest of theirs.
        see: the fix of all other errors.
    """
    valid = [name for section in sections for name in section.model_fields]
    problems = []
    for details in error.errors(include_url=False):
        path, fix = ".".join(str(part) for part in details["loc"]), see
        if valid and details["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(details["loc"][-1]), valid, n=1)
            fix = f"did you mean {near[0]}?" if near else f"remove it; valid keys: {', '.join(valid)}"
        problems.append(Problem(path, details["msg"].removeprefix("Value error, "), in_words(details["input"]), fix))
    return problems


def _from_details(details: dict[str, Any]) -> Problem:
    path = ".".join(str(part) for part in details["loc"])
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        return _unknown(path, value)
    cause = details.get("ctx", {}).get("error")
    cause = getattr(cause, "__cause__", None)
    if isinstance(cause, UserError):
        return Problem(path, cause.what, cause.found, cause.fix)
    key = _known(path)
    if kind == "missing":
        return Problem(path, "required key is missing", fix=_set_to(key) if key else "set it")
    message = details["msg"].removeprefix("Value error, ")
    if key is None or kind == "value_error":
        return Problem(path, message, in_words(value))
    near = _near_choice(key, value)
    fix = f"did you mean {near!r}?" if near else _set_to(key)
    return Problem(path, f"expected {key.type}", in_words(value), fix)


def _set_to(key: Key) -> str:
    wanted = "a section with keys" if key.is_section else key.type
    return f"set it to {wanted} ({key.summary})"


def _unknown(path: str, value: Any) -> Problem:
    section = path.rpartition(".")[0]
    near = nearest_key(path)
    if near is not None:
        where = "" if near.rpartition(".")[0] == section else f" (section {near.rpartition('.')[0] or 'top level'})"
        return Problem(path, "unknown key", in_words(value), f"did you mean {near}?{where}")
    valid = ", ".join(key.name for key in keys().values() if key.section == section)
    return Problem(path, "unknown key", in_words(value), f"remove it; {section or 'the top level'} has: {valid}")


def _known(path: str) -> Key | None:
    """The key at a path; a path into a list or mapping value belongs to the key that holds it."""
    while path:
        if path in keys():
            return keys()[path]
        path = path.rpartition(".")[0]
    return None


def _near_choice(key: Key, value: Any) -> str | None:
    """The allowed word that resembles a misspelt one."""
    if " | " not in key.type or not isinstance(value, str):
        return None
    words = key.type.removeprefix("list of ").split(" or ")[0].split(" | ")
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.5)
    return close[0] if close else None


def in_words(value: Any) -> str:
    """A value as the user wrote it, with its kind, shortened: ``'fast' (text)``."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = KINDS.get(type(value))
    return f"{shown} ({kind})" if kind else shown
