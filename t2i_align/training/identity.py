"""What a checkpoint says of the run that wrote it, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_align.config.schema import RunConfig
from t2i_align.objectives import Objective
from t2i_align.training.optimisers import effective_batch
from t2i_align.training.resume_rules import BATCH, COMPARED, OPTIONAL, flatten

# Names in checkpoints of versions that recorded only part of the settings, in nested sections.
EARLIER = {"resolution": "data.resolution", "ema": "training.ema", "optimizer": "training.optimizer"}


def settings_identity(config: RunConfig, objective: Objective, num_processes: int) -> dict[str, Any]:
    """All settings as dotted path -> plain JSON value, the objective's resolved, and what follows from them.

    Args:
        config: the run.
        objective: its objective.
        num_processes: that share each batch.
    """
    settings = config.model_dump(mode="json")
    settings["objective"] = objective.config
    slots = objective.slots
    compares = max(slots.link.least_batch, slots.weight.least_batch) > 1
    return flatten(settings) | {
        BATCH: effective_batch(config.training, num_processes),
        COMPARED: config.training.train_batch_size * num_processes if compares else None,
    }


def both(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint recorded, and the present settings as far as it did.

    Args:
        recorded: ``identity`` of its state file; earlier versions recorded some of the settings, in nested sections.
        now: from `settings_identity`.
    """
    if not isinstance(recorded.get("model"), Mapping):
        return dict(recorded), dict(now)
    then = flatten({EARLIER.get(name, name): value for name, value in recorded.items()})
    return then, {path: now[path] for path in now if path in then or path.partition(".")[0] in OPTIONAL}
