"""What the command line says about objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from t2i_align.objectives.base import SLOT_NAMES, Choice
from t2i_align.objectives.config import build
from t2i_align.objectives.objective import Objective
from t2i_align.objectives.presets import PRESETS
from t2i_align.text_table import aligned

LAYOUTS = {
    "pair": "pairs: a preferred picture w and another l of one prompt",
    "single": "pairs, of which only the preferred pictures w are looked at",
    "labelled": "single pictures, each desirable or not",
    "group": "lists of 2 M pictures of a prompt: M better against M worse",
    "ranked": "lists of pictures of a prompt, with scores; a pair is a list of two",
}
NEEDS = {
    "captions": "a caption per picture: caption_1, or data.loser_captions",
    "difficulty": "how narrow the pair's reward gap is, worked out from margins or scores",
    "frequencies": "how common the pair's reward gap is, worked out from margins or scores",
    "labels": "how sure the preference is; 0.5 is a tie",
    "margins": "reward margins, such as t2i-align rewards label writes",
    "scores": "a score in [0, 1] of every picture",
    "user_shares": "how busy the pair's user is, worked out from user_id",
}
NOTATION = (
    "e, r: mean squared error of policy and reference on one picture; d = e - r; h = d_l - d_w",
    "k = beta / 2; u = k (r - e): implicit reward; z = u_w - u_l = k h; s(x) = 1 / (1 + exp(-x)); "
    "sp(x) = log(1 + exp(x))",
)


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


def render_list(rows: Sequence[PresetRow], width: int | None) -> str:
    """The rows as text: one line each, or two where one would not fit.

    Args:
        rows: of :func:`list_presets`.
        width: characters of the terminal; None: no limit, for files and pipes.
    """
    cells = [(row.name, "reference" if row.reference else "-", row.paper, row.formula) for row in rows]
    return aligned(cells, width)


def describe(name: str) -> str:
    """Formula, paper, slots and default options of a preset, as plain text.

    Args:
        name: of a preset, or the path of one's own.

    Raises:
        UserError: unknown preset; names the nearest.
    """
    objective = build(name)
    facts = [
        ("loss", objective.formula),
        ("paper", objective.paper),
        ("at the start", _at_init(objective)),
        ("takes", LAYOUTS[objective.layout]),
        ("passes", "policy and reference" if objective.needs_reference else "policy only"),
        *(("reads", f"{need} ({NEEDS[need]})") for need in sorted(objective.data_needs)),
        *([("note", objective.note)] if objective.note else []),
    ]
    lines = [name, *(f"  {label:<13} {text}" for label, text in facts)]
    lines += ["", "  slots, each of which a YAML file may change (docs/objectives.md):"]
    for slot in SLOT_NAMES:
        lines += _slot_lines(slot, getattr(objective.slots, slot))
    return "\n".join([*lines, "", *(f"  {line}" for line in NOTATION)])


def _at_init(objective: Objective) -> str:
    """The loss of an untrained policy, in words, and in figures where the configuration alone decides it."""
    value = objective.value_at_init
    figures = "" if value is None or objective.at_init == f"{value:g}" else f" = {value:.6g}"
    return f"{objective.at_init}{figures}" + (", where policy == reference" if objective.needs_reference else "")


def _slot_lines(slot: str, choice: Choice) -> Iterator[str]:
    yield f"    {slot:<10} {choice.model_dump()['name']:<18} {choice.formula}"
    for option, field in type(choice).model_fields.items():
        if option == "name":
            continue
        value = getattr(choice, option)
        if isinstance(value, Choice):  # the timestep's weighting
            yield f"    {'':<10}   {option}: {value.model_dump()['name']}  ({field.description}: {value.formula})"
        else:
            yield f"    {'':<10}   {option}: {_as_yaml(value)}  ({field.description})"


def _as_yaml(value: object) -> str:
    """As one would write it in a YAML file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{list(value)}" if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else f"{value}"
