"""The provider an offline objective asks for: pairs, or lists of pictures."""

from __future__ import annotations

from typing import Any, cast

from accelerate import Accelerator

from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.data.list_provider import ListProvider
from t2i_align.data.lists import Layout
from t2i_align.data.provider import PairProvider
from t2i_align.objectives import Objective
from t2i_align.training.items import LIST_LAYOUTS, check_lists


def offline_provider(
    config: RunConfig, backbone: Backbone, objective: Objective, accelerator: Accelerator
) -> PairProvider:
    """Batches from ``data.source`` in the layout the objective takes.

    Raises:
        UserError: the data cannot be used, or lack what the objective reads.
    """
    check_lists(objective)
    training = config.training
    options: dict[str, Any] = {
        "batch_size": training.train_batch_size,
        "accumulation": training.gradient_accumulation_steps,
        "device": accelerator.device,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }
    if objective.layout in LIST_LAYOUTS:
        return ListProvider(config, backbone, cast(Layout, objective.layout), **options)
    return PairProvider(config, backbone, needs=objective.data_needs, margin=objective.margin, **options)
