"""The small training loop that both halves of the base model share: one-cycle AdamW, EMA, resume, a log file."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reward_models.files import complete_file

logger = logging.getLogger(__name__)

LossFunction = Callable[[int], dict[str, Tensor]]  # step -> named scalars, of which "loss" is minimised


class FitConfig(BaseModel):
    """Settings of one training run on the CPU."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    bf16: bool = Field(default=True, description="bfloat16 autocast: about 2.5 times faster on CPUs that have it")
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)


class Ema:
    """Exponential moving average of a module's parameters, with the usual warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.shadow, parameters, 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        for parameter, average in zip(module.parameters(), self.shadow, strict=True):
            parameter.data.copy_(average)


def fit(module: nn.Module, loss_function: LossFunction, config: FitConfig, checkpoint: Path, resume: bool) -> None:
    """Train `module` in place and leave its EMA weights in it.

    Everything random inside `loss_function` must be a function of the step, so that a resumed run sees what an
    unbroken one sees. `checkpoint` is a file, replaced atomically every `checkpoint_every` steps.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    ema, first = Ema(module, config.ema_decay), 0
    if resume and checkpoint.exists():
        first = _restore(checkpoint, module, optimizer, ema)
        logger.info("%s: resumed after step %d", checkpoint.stem, first)
    began, recent = time.monotonic(), []
    module.train()
    for step in range(first, config.steps):
        losses = _update(module, optimizer, loss_function, config, step)
        ema.update(module, step)
        done = step + 1
        recent.append(losses["loss"])
        if done % config.log_every == 0:
            shown = "  ".join(f"{name} {value:.5f}" for name, value in losses.items())
            mean, pace = sum(recent) / len(recent), (time.monotonic() - began) / (done - first)
            logger.info("%s %d/%d  mean %.5f  %s  %.3f s/step", checkpoint.stem, done, config.steps, mean, shown, pace)
            recent.clear()
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(checkpoint, module, optimizer, ema, done)
    ema.copy_to(module)
    module.eval()


def _update(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss_function: LossFunction, config: FitConfig, step: int
) -> dict[str, float]:
    """One step of the optimiser; returns the losses before it."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * _one_cycle(step / config.steps, config.warmup_fraction)
    # on CPUs the fused attention's backward pass takes several times as long as the plain one's
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        losses = loss_function(step)
    losses["loss"].backward()
    nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: value.item() for name, value in losses.items()}


def _one_cycle(progress: float, warmup: float) -> float:
    """Learning rate factor: linear from 0.04 to 1 during the warm-up, then a cosine down to 0.002."""
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    return 0.002 + 0.998 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, step: int) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow, "step": step}
    with complete_file(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> int:
    state = torch.load(path, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    ema.shadow = state["ema"]
    return state["step"]
