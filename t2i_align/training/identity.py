"""What a checkpoint must share with the run that resumes it."""

from __future__ import annotations

from typing import Any

from t2i_align.config.schema import RunConfig
from t2i_align.objectives import Objective
from t2i_align.training.optimisers import effective_batch

# Of the model: they do not change what is trained.
SPEED_ONLY = {"attention", "channels_last", "compile", "gradient_checkpointing", "memory_limit_gb", "reference_dir"}


def settings_identity(config: RunConfig, objective: Objective, num_processes: int) -> dict[str, Any]:
    """The part that the configuration alone decides, as plain JSON values."""
    training = config.training

    def section(value: Any) -> Any:
        return None if value is None else value.model_dump(mode="json")

    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude=SPEED_ONLY),
        "objective": objective.config,
        "rollout": section(config.rollout),
        "online": section(config.online),
        "personal": section(config.personal),
        "effective_batch": effective_batch(training, num_processes),
        "resolution": config.data.resolution,
        "ema": section(training.ema),
        "optimizer": training.optimizer,
    }
