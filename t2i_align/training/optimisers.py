"""Optimisers, learning-rate schedules and the rule that scales the learning rate."""

from __future__ import annotations

import importlib.util
import logging

import torch
from diffusers.optimization import get_scheduler

from t2i_align.config.schema import TrainingConfig
from t2i_align.errors import UserError

logger = logging.getLogger(__name__)

QUANTISED_FROM = 4096  # bitsandbytes keeps the states of smaller tensors in float32


def effective_batch(config: TrainingConfig, num_processes: int) -> int:
    """Pairs per optimiser step over all processes and accumulation steps."""
    return config.train_batch_size * config.gradient_accumulation_steps * num_processes


def absolute_learning_rate(config: TrainingConfig, num_processes: int) -> float:
    """The learning rate at the optimiser; with ``scale_lr`` it is multiplied by the effective batch."""
    if not config.scale_lr:
        return config.learning_rate
    batch = effective_batch(config, num_processes)
    result = config.learning_rate * batch
    logger.info("scale_lr: %g x effective batch %d = %g", config.learning_rate, batch, result)
    return result


def build_optimizer(
    config: TrainingConfig, parameters: list[torch.nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Make the optimiser named in the config.

    Raises:
        UserError: see :func:`check_optimizer`.
    """
    check_optimizer(config)
    adam = {
        "lr": learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **adam)  # one kernel for all tensors, on CPU and GPU
    if config.optimizer == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **adam)
    from transformers.optimization import Adafactor

    # The published SDXL setting: an absolute learning rate, neither relative steps nor parameter scaling.
    return Adafactor(
        parameters,
        lr=learning_rate,
        weight_decay=config.adam_weight_decay,
        clip_threshold=1.0,
        scale_parameter=False,
        relative_step=False,
    )


def check_optimizer(config: TrainingConfig) -> None:
    """Refuse an optimiser that cannot be had here, before long work.

    Raises:
        UserError: ``adamw_8bit`` without bitsandbytes, or on a CPU that the installed one has no kernels for.
    """
    if config.optimizer != "adamw_8bit":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "training.optimizer: adamw_8bit needs the bitsandbytes package.",
            "bitsandbytes is not installed",
            "pip install 't2i_align[bitsandbytes]', or use training.optimizer=adamw",
        )
    if not torch.cuda.is_available():
        _try_8bit_on_the_cpu()


def _try_8bit_on_the_cpu() -> None:
    """One update of enough weights to be kept in 8 bits: bitsandbytes can do it since 0.50, older ones fail in it."""
    import bitsandbytes

    parameter = torch.nn.Parameter(torch.zeros(2 * QUANTISED_FROM))
    parameter.grad = torch.ones_like(parameter)
    try:
        bitsandbytes.optim.AdamW8bit([parameter]).step()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            "training.optimizer: adamw_8bit does not run on the CPU with this bitsandbytes.",
            f"bitsandbytes {getattr(bitsandbytes, '__version__', 'of unknown version')}: {reason}",
            "pip install 'bitsandbytes>=0.50', or use training.optimizer=adamw",
        ) from error


def build_scheduler(config: TrainingConfig, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule in optimiser steps. It is never handed to accelerate, which would step it once per process."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max(config.max_train_steps, 1),
    )
