"""Which choices contradict each other, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2i_align.errors import UserError
from t2i_align.objectives.anchors import NoAnchor
from t2i_align.objectives.logits import LOGITS
from t2i_align.objectives.logits.pairwise import Reversed
from t2i_align.objectives.references import NoReference

if TYPE_CHECKING:
    from t2i_align.objectives.objective import Objective

OF_THE_LOSER = frozenset({"labels", "margins", "scores", "frequencies", "difficulty"})
LIST_LAYOUTS = ("ranked", "group")  # several pictures of one prompt


def check_combination(slots: Mapping[str, Any], needs: frozenset[str] = frozenset()) -> None:
    """Raise UserError with the reason when choices contradict each other.

    Args:
        slots: choice by slot, all of them.
        needs: of the preset itself, beyond what its choices read.
    """
    for check in (_link_and_logit, _reference, _something_is_trained, _weights_are_defined, _latents, _own_samples):
        check(slots, needs)


def _name(choice: Any) -> str:
    return choice.model_dump()["name"]


def _link_and_logit(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    logit, link = slots["logit"], slots["link"]
    lacking = link.asks - logit.provides
    if lacking:
        able = [name for name, choice in LOGITS.items() if link.asks <= choice.provides]
        raise UserError(
            f"link {_name(link)!r} needs from the logit: {', '.join(sorted(lacking))}; "
            f"logit {_name(logit)!r} does not give it",
            found=f"logit: {_name(logit)}, link: {_name(link)}",
            fix=f"with this link use logit: {' or '.join(able)}",
        )


def _reference(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    logit, reference = slots["logit"], slots["reference"]
    has_reference = not isinstance(reference, NoReference)
    if logit.needs_reference and not has_reference:
        raise UserError(
            f"logit {_name(logit)!r} compares with a reference, and reference is none",
            found="reference: none",
            fix="leave reference out, or use logit: reference_free",
        )
    if has_reference and not logit.needs_reference:
        raise UserError(
            f"logit {_name(logit)!r} has no use for a reference",
            found=f"reference: {_name(reference)}",
            fix="leave reference out",
        )


def _something_is_trained(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    logit, anchor = slots["logit"], slots["anchor"]
    anchored = not isinstance(anchor, NoAnchor)
    if logit.input_layout == "single" and not anchored:
        raise UserError("nothing is trained: no preference term and no anchor", fix="use anchor: winner, or a logit")
    if logit.input_layout == "single" and "captions" in needs:
        raise UserError(
            "a caption per picture says nothing where only winners are trained",
            found=f"logit: {_name(logit)}",
            fix="use a logit that compares, such as full, or the preset sft",
        )
    if isinstance(logit, Reversed) and anchored:
        raise UserError(
            "logit 'reversed' pushes winners away, and the anchor pulls them back",
            found=f"anchor: {_name(anchor)}",
            fix="use anchor: none, or logit: full",
        )


def _weights_are_defined(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    logit, weight = slots["logit"], slots["weight"]
    if logit.input_layout not in weight.layouts:
        raise UserError(
            f"weight {_name(weight)!r} is not defined on the input of logit {_name(logit)!r}",
            found=f"layout: {logit.input_layout}",
            fix="use weight: none, or another logit",
        )
    slots["timestep"].weighting.check_error(slots["error"].measured_in("epsilon"))


def _latents(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    latents, logit = slots["latents"], slots["logit"]
    if logit.input_layout not in latents.layouts:
        raise UserError(
            f"latents {_name(latents)!r} are not defined on the input of logit {_name(logit)!r}",
            found=f"layout {logit.input_layout}; defined on {', '.join(sorted(latents.layouts))}",
            fix="use latents: shared_noise, or another logit",
        )


def _own_samples(slots: Mapping[str, Any], needs: frozenset[str]) -> None:
    """Samples in the losers' place: they are no data, and a model's errors on them no errors on data."""
    latents, logit = slots["latents"], slots["logit"]
    if not latents.replaces_loser:
        return
    if isinstance(logit, Reversed):
        raise UserError(
            f"latents {_name(latents)!r} with logit 'reversed' prefer the model's own samples to the data",
            found=f"latents: {_name(latents)}, logit: {_name(logit)}",
            fix="use logit: full, or latents: shared_noise",
        )
    if not logit.needs_reference:
        raise UserError(
            f"latents {_name(latents)!r} need a reference: a model's error on its own samples is near 0 and does not "
            "compare with one on data",
            found=f"logit: {_name(logit)}",
            fix="use a logit with a reference such as full, or latents: shared_noise",
        )
    read = set().union(*(slots[slot].needs for slot in ("logit", "link", "weight"))) & OF_THE_LOSER
    read |= needs & {"captions"}
    if read:
        raise UserError(
            f"latents {_name(latents)!r} put the model's own samples in the losers' place, so what the data say "
            "about the losers has no meaning",
            found=f"{', '.join(sorted(read))} would be read",
            fix="use weight: none and a logit without margins, or latents: shared_noise",
        )


def check_lists(objective: Objective) -> None:
    """Refuse an objective on lists that reads what only a pair has.

    Raises:
        UserError: names what it is.
    """
    missing = sorted(objective.data_needs - {"scores"})
    if objective.layout in LIST_LAYOUTS and missing:
        raise UserError(
            f"objective {objective.name!r} reads {', '.join(missing)}, which a list of pictures does not have",
            found=f"layout {objective.layout}",
            fix="use a link and a weight that do not read it, or a pairwise logit such as full",
        )


def check_batch(objective: Objective, items: int) -> None:
    """Refuse a batch too small for what the objective compares inside it.

    Args:
        objective: resolved.
        items: of one micro-step, over all processes.

    Raises:
        UserError: names the slot that compares.
    """
    comparing = {"link": objective.slots.link.least_batch, "weight": objective.slots.weight.least_batch}
    for slot, least in comparing.items():
        if items < least:
            name = getattr(objective.slots, slot).model_dump()["name"]
            raise UserError(
                f"{slot} {name!r} compares the items of a batch with one another, and a batch has {items}",
                found=f"training.train_batch_size: {items} (accumulated steps are not compared)",
                fix=f"use at least {least}, better many more",
            )
