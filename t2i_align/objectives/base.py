"""What every choice of every slot is: a frozen, strict config that is also the pure function it
configures."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from t2i_align.errors import UserError

SLOT_NAMES = ("latents", "error", "timestep", "logit", "link", "weight", "anchor", "reference")


class Choice(BaseModel):
    """One entry of a slot's dictionary. Sub-classes add a ``name`` literal, their options, and a method.

    ``formula`` is one line in the notation of docs/objectives.md; ``reads`` are the fields of
    :class:`~t2i_align.objectives.types.PairErrors` beyond the errors that the choice cannot do without.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """Fields of the input record this configured choice reads; options may change it."""
        return self.reads


def nearest(name: str, valid: Iterable[str]) -> str:
    """Advice naming the nearest of the valid names, or all of them when nothing is near."""
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    close.sort(key=lambda near: sorted(near) != sorted(str(name)))  # exchanged letters before exchanged words
    return f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(names)}"


def choose(slot: str, choices: Mapping[str, type[Choice]], value: Any, current: Choice | None = None) -> Choice:
    """The configured choice that ``value`` asks for.

    Args:
        slot: name of the slot, for messages.
        choices: the slot's dictionary.
        value: a choice, its name, or a mapping of options with or without ``name``. Without a name the
            options change ``current``; with one they start from that choice's defaults.
        current: what a preset put there.

    Raises:
        UserError: unknown choice, unknown option, or an option out of range.
    """
    if isinstance(value, Choice):
        value = value.model_dump()
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise UserError(
            f"objective.{slot} must be a choice's name or a mapping with a name and options",
            found=repr(value),
            fix=f"choose one of: {', '.join(choices)}",
        )
    options = dict(value)
    name = options.pop("name", None)
    if name is None:
        if current is None:
            raise UserError(
                f"objective.{slot} needs a name", found=repr(value), fix=f"name one of: {', '.join(choices)}"
            )
        name = current.model_dump()["name"]
        options = {**current.model_dump(exclude={"name"}), **options}
    if name not in choices:
        raise UserError(f"unknown {slot} choice", found=repr(name), fix=nearest(name, choices))
    return _configure(slot, choices[name], options)


def _configure(slot: str, choice: type[Choice], options: Mapping[str, Any]) -> Choice:
    valid = [field for field in choice.model_fields if field != "name"]
    label = f"{slot} {choice.model_fields['name'].default!r}"
    for option in options:
        if option not in valid:
            fix = nearest(option, valid) if valid else "it has no options; remove it"
            raise UserError(
                f"{label} does not read the option {option!r}",
                found=f"{option}: {options[option]!r}",
                fix=fix,
            )
    try:
        return choice(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{label}: bad value for {where}", found=repr(first.get("input")), fix=message) from error
