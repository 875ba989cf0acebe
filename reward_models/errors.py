"""The one error type that a user's input can cause in this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RewardModelError(ValueError):
    """Something a user can put right: a wrong file, an unknown option, a broken image.

    The message has three parts, each optional but the first: what is wrong, what was found, how to fix it.
    """

    def __init__(self, what: str, found: str = "", fix: str = "") -> None:
        self.what, self.found, self.fix = what, found, fix
        lines = [what]
        if found:
            lines.append(f"  found: {found}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[RewardModelError], tuple[str, str, str]]:
        """Keep the three parts when the error crosses a process boundary (decoding workers)."""
        return type(self), (self.what, self.found, self.fix)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RewardModelError:
    """An error for a name outside a fixed set, with the nearest valid one."""
    names = list(known)
    return RewardModelError(f"unknown {kind} '{name}'", fix=f"{nearest_of(name, names)}choose from: {', '.join(names)}")


def nearest_of(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` with the known name that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def nearest_of_many(name: str, known: Iterable[str], shown: int = 3) -> str:
    """Advice for a name that is not among many, such as ids of users: the nearest of all, never just the first.

    Args:
        name: that is not known.
        known: all names.
        shown: how many are named, at most.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=shown, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}? ({len(names)} are known)"
    some = ", ".join(names[:shown])
    return f"nothing like it is among the {len(names)} known: {some}{', ...' if len(names) > shown else ''}"
