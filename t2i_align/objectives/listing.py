"""What the command line says about objectives."""

from __future__ import annotations

from typing import NamedTuple

from t2i_align.objectives.base import SLOT_NAMES, Choice
from t2i_align.objectives.config import build
from t2i_align.objectives.presets import PRESETS


class PresetRow(NamedTuple):
    """One line of ``t2i-align objectives list``."""

    name: str
    formula: str
    paper: str
    reference: bool
    layout: str
    reads: tuple[str, ...]


def list_presets() -> list[PresetRow]:
    """Every preset, in the order of the documentation."""
    rows = []
    for name in PRESETS:
        objective = build(name)
        reads = tuple(sorted(objective.data_needs))
        rows.append(
            PresetRow(name, objective.formula, objective.paper, objective.needs_reference, objective.layout, reads)
        )
    return rows


def describe(name: str) -> str:
    """Formula, paper, slots and default options of a preset, as plain text.

    Raises:
        UserError: unknown preset; names the nearest.
    """
    objective = build(name)
    value = objective.value_at_init
    at_init = objective.at_init + ("" if value is None else f" = {value:.6g}")
    lines = [
        name,
        f"  loss            {objective.formula}",
        f"  paper           {objective.paper}",
        f"  policy == ref   {at_init}",
        f"  input           {objective.layout}" + (", with a reference pass" if objective.needs_reference else ""),
        f"  reads           {', '.join(sorted(objective.data_needs)) or 'nothing beyond the errors'}",
    ]
    if objective.note:
        lines.append(f"  note            {objective.note}")
    lines.append("  slots")
    for slot in SLOT_NAMES:
        lines += _slot_lines(slot, getattr(objective.slots, slot))
    return "\n".join(lines)


def _slot_lines(slot: str, choice: Choice) -> list[str]:
    lines = [f"    {slot:<10} {choice.model_dump()['name']:<18} {choice.formula}"]
    for option, field in type(choice).model_fields.items():
        if option != "name":
            value = getattr(choice, option)
            shown = value.model_dump() if isinstance(value, Choice) else value
            lines.append(f"    {'':<10}   {option} = {shown}  ({field.description})")
    return lines
