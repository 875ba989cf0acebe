"""The provider an offline objective asks for: pairs, or lists of pictures."""

from __future__ import annotations

from typing import Any, cast

from accelerate import Accelerator

from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.data.derived import derive
from t2i_align.data.list_provider import ListProvider, list_fingerprint
from t2i_align.data.lists import Layout, open_lists
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.objectives.combinations import LIST_LAYOUTS, check_batch, check_lists


def check_source(config: RunConfig, objective: Objective, num_processes: int) -> None:
    """Refuse pairs that lack what the objective reads, and batches too small for it, before a model is loaded.

    Raises:
        UserError: says what is missing and how to add it.
    """
    check_lists(objective)
    check_batch(objective, config.training.train_batch_size * num_processes)
    is_list = objective.layout in LIST_LAYOUTS
    if not is_list and not objective.data_needs - {"labels"}:
        return
    source = open_source(config.data, "train", config.seed)
    if is_list:
        data = config.data
        open_lists(source, cast(Layout, objective.layout), data.list_size, data.shuffle_labels, config.seed)
        return
    derive(source, objective.data_needs, objective.margin)
    unknown = sorted(set(getattr(objective.slots.logit, "margin_weights", {})) - set(source.margin_names))
    if unknown:
        raise UserError(
            "The objective weighs rewards that the pairs do not have.",
            f"{', '.join(unknown)}; the data have {', '.join(source.margin_names)}",
            "correct objective.logit.margin_weights, or add the margins to the data",
        )


def pairs_fingerprint(config: RunConfig, objective: Objective) -> str:
    """What `offline_provider`'s provider says of its pairs where it reads pictures, without a model.

    Raises:
        UserError: the data cannot be used.
    """
    source = open_source(config.data, "train", config.seed)
    if objective.layout not in LIST_LAYOUTS:
        return source.fingerprint
    data = config.data
    lists = open_lists(source, cast(Layout, objective.layout), data.list_size, data.shuffle_labels, config.seed)
    return list_fingerprint(source, lists.size)


def offline_provider(
    config: RunConfig, backbone: Backbone, objective: Objective, accelerator: Accelerator
) -> PairProvider:
    """Batches from ``data.source`` in the layout the objective takes.

    Raises:
        UserError: the data cannot be used, or lack what the objective reads.
    """
    check_lists(objective)
    check_batch(objective, config.training.train_batch_size * accelerator.num_processes)
    options = provider_options(config, accelerator) | {"distinct_passes": _distinct_passes(config, objective)}
    if objective.layout in LIST_LAYOUTS:
        return ListProvider(config, backbone, cast(Layout, objective.layout), **options)
    return PairProvider(config, backbone, needs=objective.data_needs, margin=objective.margin, **options)


def provider_options(config: RunConfig, accelerator: Accelerator) -> dict[str, Any]:
    """How a run divides its pairs over steps and processes, as arguments of a provider."""
    return {
        "batch_size": config.training.train_batch_size,
        "accumulation": config.training.gradient_accumulation_steps,
        "device": accelerator.device,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }


def _distinct_passes(config: RunConfig, objective: Objective) -> int | None:
    """How many passes over the data have draws of their own: as many as a precomputed reference holds."""
    precomputed = config.model.reference == "precomputed" and objective.needs_reference
    return config.model.reference_draws if precomputed else None
