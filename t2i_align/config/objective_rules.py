"""Rules between the objective and what feeds it: the data section, a rollout, online pairs."""

from __future__ import annotations

from collections.abc import Iterator

from t2i_align.config.problems import Problem, in_words
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.objectives.combinations import check_lists
from t2i_align.objectives.config import resolve


def objective_problems(config: RunConfig) -> Iterator[Problem]:
    """Every way in which the objective contradicts another section."""
    objective = resolve(config.objective)
    yield from _lists(config, objective)
    yield from _own_samples(config, objective)
    if config.rollout is not None:
        yield from _rollout(objective)
    elif config.online is not None:
        yield from _online(config, objective)
    else:
        yield from _ties(config, objective)
    if config.rollout is not None or config.online is not None:
        yield from _own_pairs_never_tie(objective)


def _ties(config: RunConfig, objective: Objective) -> Iterator[Problem]:
    ties = config.data.ties
    if objective.slots.link.models_ties and ties != "soft":
        yield Problem(
            "data.ties",
            f"objective {objective.name} gives ties a probability of their own, and none would be left",
            in_words(ties),
            "set data.ties: soft",
        )
    if ties == "soft" and objective.layout != "ranked" and "labels" not in objective.data_needs:
        yield Problem(
            "data.ties",
            f"objective {objective.name} does not read how sure a label is, so a tie would count as a full win",
            in_words(ties),
            "use drop, coin or zero_weight, or an objective that reads labels such as ternary or link: soft_label",
        )


def _lists(config: RunConfig, objective: Objective) -> Iterator[Problem]:
    try:
        check_lists(objective)
    except UserError as error:
        yield Problem("objective", error.what, error.found, error.fix)
    size = config.data.list_size
    halves = "halves" in objective.slots.link.asks
    if objective.layout == "group" and size is not None and size % (4 if halves else 2):
        what = "each of the two groups is halved" if halves else "groups need as many winners as losers"
        fix = "use a multiple of 4" if halves else "use an even number"
        yield Problem("data.list_size", what, in_words(size), fix)


def _own_samples(config: RunConfig, objective: Objective) -> Iterator[Problem]:
    if objective.latents.replaces_loser and config.data.loser_captions != "as_given":
        yield Problem(
            "data.loser_captions",
            f"objective {objective.name} has samples of the model in the losers' place, which need the prompt itself",
            in_words(config.data.loser_captions),
            "remove it, or use latents: shared_noise",
        )


def _rollout(objective: Objective) -> Iterator[Problem]:
    from t2i_align.stepwise.step_loss import check_objective

    try:
        check_objective(objective)
    except UserError as error:
        yield Problem("objective", error.what.rstrip("."), error.found, error.fix)


def _online(config: RunConfig, objective: Objective) -> Iterator[Problem]:
    lacking = {"scores", "user_shares"} & objective.data_needs if objective.layout == "pair" else set()
    if config.data.loser_captions == "as_given":
        lacking |= objective.data_needs & {"captions"}
    if lacking:
        yield Problem(
            "objective",
            f"online pairs do not hold {', '.join(sorted(lacking))}, which objective {objective.name} reads",
            "an online section",
            "use an objective that does not read them" + (", or data.loser_captions" if "captions" in lacking else ""),
        )
    if objective.layout == "group" and config.data.list_size != 2:
        yield Problem(
            "data.list_size",
            "online pairs are one a prompt, so a group holds one picture",
            in_words(config.data.list_size),
            "set data.list_size: 2, or use a pairwise objective",
        )
    if objective.latents.replaces_loser:
        yield Problem(
            "objective.latents",
            f"objective {objective.name} makes losers by itself and would throw away those of the online section",
            "an online section",
            "remove the online section, or use latents: shared_noise",
        )


def _own_pairs_never_tie(objective: Objective) -> Iterator[Problem]:
    if objective.slots.link.models_ties:
        yield Problem(
            "objective",
            f"objective {objective.name} gives ties a probability of their own, and the policy's own pairs never tie",
            "a rollout or online section",
            "use another link, such as softplus or soft_label",
        )
