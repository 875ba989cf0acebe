"""Rules about the personal section: what must stand together, and what its encoder does not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from t2i_align.config.problems import Problem, in_words
from t2i_align.config.schema import RunConfig
from t2i_align.objectives.config import resolve
from t2i_align.personal.section import READ_BY

LIST_LAYOUTS = ("ranked", "group")
REMOVE = "remove it"


def users_and_adapter(config: RunConfig) -> Iterator[Problem]:
    """The section and the adapter it describes come together, alone."""
    has_section, trains_users = config.personal is not None, config.model.train == "user"
    if has_section and not trains_users:
        found = f"model.train: {config.model.train} with a personal section"
        yield Problem(
            "model.train", "a personal section describes the user adapter, and only that is trained", found, "use user"
        )
    if trains_users and not has_section:
        yield Problem("model.train", "user trains what a personal section describes", "no personal section", "add one")
    if has_section and (config.rollout is not None or config.online is not None):
        yield Problem(
            "personal", "pairs that the policy makes itself have no users", "personal with rollout or online", REMOVE
        )
    if has_section and config.model.gradient_checkpointing == "auto":
        why = "memory is not estimated for a user adapter, so nothing could be chosen by it"
        yield Problem("model.gradient_checkpointing", why, "auto", "set true or false")
    if trains_users and config.model.compile:
        why = "compiled blocks are not supported with a user adapter"
        yield Problem("model.compile", why, "true", "set it to false")


def users_fit_the_objective(config: RunConfig) -> Iterator[Problem]:
    """Every picture an objective asks about belongs to one user of the batch."""
    objective = resolve(config.objective)
    if config.personal is None:
        return
    if objective.layout in LIST_LAYOUTS:
        found, why = f"objective {objective.name}", "users are known of pairs, not of lists of pictures"
        yield Problem("objective.preset", why, found, "use a pairwise objective such as dpo")
    elif objective.latents.asks_policy or objective.latents.lag is not None:
        found, why = f"objective {objective.name}", "latents that the policy makes itself are made without a user"
        yield Problem("objective.preset", why, found, "use an objective with random noise such as dpo")


def heldout_users_fit(config: RunConfig) -> Iterator[Problem]:
    """Pairs are held out in one way."""
    personal = config.personal
    if personal is None or personal.heldout_users == 0:
        return
    for name, given in (("heldout_source", config.data.heldout_source), ("heldout_fraction", None)):
        if given is not None or (name == "heldout_fraction" and config.data.heldout_fraction > 0):
            yield Problem(
                "personal.heldout_users",
                f"data.{name} already says what is held out",
                in_words(personal.heldout_users),
                "keep one of the two",
            )
    if config.data.shuffle_labels:
        yield Problem(
            "personal.heldout_users",
            "the control would shuffle the held-out users' answers too",
            "data.shuffle_labels: true",
            "put the held-out users into a file of their own, data.heldout_source",
        )


RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    users_and_adapter,
    users_fit_the_objective,
    heldout_users_fit,
)


def unread(config: RunConfig) -> Iterator[tuple[str, tuple[str, str]]]:
    """Keys of the section that its encoder does not read -> (why, how to fix it)."""
    if config.personal is None:
        return
    encoder = config.personal.encoder
    for name, readers in READ_BY.items():
        if encoder not in readers:
            yield f"personal.{name}", (f"encoder {encoder} does not read it", REMOVE)
