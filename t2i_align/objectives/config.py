"""The ``objective:`` section of a run, and how it becomes an :class:`Objective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from t2i_align.errors import UserError
from t2i_align.objectives.anchors import ANCHORS
from t2i_align.objectives.base import SLOT_NAMES, Choice, choose, nearest
from t2i_align.objectives.combinations import check_combination
from t2i_align.objectives.error_metrics import ERRORS
from t2i_align.objectives.latents import LATENTS
from t2i_align.objectives.links import LINKS
from t2i_align.objectives.logits import LOGITS
from t2i_align.objectives.objective import Objective, Slots
from t2i_align.objectives.presets import PRESETS
from t2i_align.objectives.presets.own import is_own, load_own
from t2i_align.objectives.references import REFERENCES, Initial, NoReference
from t2i_align.objectives.timesteps import TIMESTEPS
from t2i_align.objectives.weights import WEIGHTS

SLOTS: dict[str, Mapping[str, type[Choice]]] = {
    "latents": LATENTS,
    "error": ERRORS,
    "timestep": TIMESTEPS,
    "logit": LOGITS,
    "link": LINKS,
    "weight": WEIGHTS,
    "anchor": ANCHORS,
    "reference": REFERENCES,
}
SlotValue = str | dict[str, Any] | None


class ObjectiveConfig(BaseModel):
    """``preset`` and what differs from it.

    A slot is overridden by a name (``link: hinge``), by a mapping with a name (``link: {name: hinge, margin:
    0.5}``), or by a mapping of options for the preset's own choice (``link: {label_smoothing: 0.2}``). An
    option may also stand beside ``preset`` (``beta: 2000``) when exactly one of the chosen slots reads it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    preset: str = Field(
        description="published objective to start from (t2i-align objectives list), or the path of your own"
    )
    latents: SlotValue = Field(default=None, description=f"noisy latents: {', '.join(LATENTS)}")
    error: SlotValue = Field(default=None, description=f"error metric: {', '.join(ERRORS)}")
    timestep: SlotValue = Field(default=None, description=f"timestep distribution and weight: {', '.join(TIMESTEPS)}")
    logit: SlotValue = Field(default=None, description=f"from errors to a logit: {', '.join(LOGITS)}")
    link: SlotValue = Field(default=None, description=f"from a logit to a loss: {', '.join(LINKS)}")
    weight: SlotValue = Field(default=None, description=f"weight of each item: {', '.join(WEIGHTS)}")
    anchor: SlotValue = Field(default=None, description=f"added term: {', '.join(ANCHORS)}")
    reference: SlotValue = Field(default=None, description=f"reference policy: {', '.join(REFERENCES)}")

    @model_validator(mode="after")
    def _resolves(self) -> ObjectiveConfig:
        try:
            resolve(self)
        except UserError as error:
            raise ValueError(str(error)) from error
        return self


def build(name: str, **overrides: Any) -> Objective:
    """The objective of a preset, with slots or options overridden.

    >>> build("dpo", beta=2000, link="hinge")  # doctest: +SKIP

    Raises:
        UserError: unknown preset, choice or option, or a combination that makes no sense.
    """
    return resolve({"preset": name, **overrides})


def resolve(config: ObjectiveConfig | Mapping[str, Any]) -> Objective:
    """The objective an ``objective:`` section asks for. Raises UserError like :func:`build`."""
    given = config.model_dump(exclude_none=True) if isinstance(config, BaseModel) else dict(config)
    name = given.pop("preset", None)
    if name not in PRESETS and not is_own(name):
        raise UserError("unknown objective preset", found=repr(name), fix=nearest(str(name), PRESETS))
    preset = PRESETS[name] if name in PRESETS else load_own(name)
    slots: dict[str, Any] = {slot: getattr(preset, slot) for slot in SLOT_NAMES}
    if slots["reference"] is None:
        del slots["reference"]
    for slot in SLOT_NAMES:
        if given.get(slot) is not None:
            slots[slot] = choose(slot, _choices(slot, slots.get(slot)), given[slot], slots.get(slot))
    options = {key: value for key, value in given.items() if key not in SLOT_NAMES}
    for option, value in options.items():
        slot = _reader_of(option, slots, name)
        _given_once(option, slot, given)
        slots[slot] = choose(slot, _choices(slot, slots[slot]), {option: value}, slots[slot])
    if not slots["logit"].needs_reference and not given.get("reference"):
        slots["reference"] = NoReference()
    slots.setdefault("reference", Initial())
    check_combination(slots, preset.needs)
    return Objective(name, Slots(**slots), preset.formula, preset.paper, preset.at_init, preset.note, preset.needs)


def _given_once(option: str, slot: str, given: Mapping[str, Any]) -> None:
    inside = given.get(slot)
    if isinstance(inside, Mapping) and option in inside:
        raise UserError(
            f"the option {option!r} is given twice",
            found=f"{option}: {given[option]!r} beside the preset, {slot}: {{{option}: {inside[option]!r}}}",
            fix="keep one of the two",
        )


def _choices(slot: str, current: Choice | None) -> Mapping[str, type[Choice]]:
    """The slot's dictionary, and the choice that a preset of the user's own brought along."""
    return SLOTS[slot] if current is None else {current.model_dump()["name"]: type(current), **SLOTS[slot]}


def _reader_of(option: str, slots: Mapping[str, Any], preset: str) -> str:
    """The one slot whose choice has this option."""
    readers = [slot for slot, choice in slots.items() if option != "name" and option in type(choice).model_fields]
    if len(readers) == 1:
        return readers[0]
    if readers:
        example = f"{readers[0]}: {{{option}: ...}}"
        raise UserError(
            f"the option {option!r} is read by more than one slot",
            found=", ".join(readers),
            fix=f"write e.g. {example}",
        )
    elsewhere = [
        f"{slot}: {name}"
        for slot, choices in SLOTS.items()
        for name, choice in choices.items()
        if option in choice.model_fields
    ]
    valid = [field for choice in slots.values() for field in type(choice).model_fields if field != "name"]
    fix = f"it belongs to {', '.join(elsewhere)}" if elsewhere else nearest(option, [*valid, *SLOT_NAMES])
    raise UserError(f"objective {preset!r} does not read the option {option!r}", found=option, fix=fix)
