"""The forward process of a checkpoint: its noise schedule and what its network was trained to predict."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from t2i_align.errors import UserError

WRONG_SCHEDULE = "The checkpoint's noise schedule cannot be computed from its configuration."
FROM_THE_CHECKPOINT = "use the scheduler_config.json that belongs to the weights"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class NoiseSchedule:
    """Variance-preserving noising with integer timesteps t in [0, T): ``x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) n``.

    Built from the checkpoint's scheduler configuration, whatever sampler that names, so that betas, prediction type and
    zero-terminal-SNR rescaling are those the weights were trained with.

    Args:
        scheduler_config: the ``scheduler/scheduler_config.json`` of the checkpoint.

    Attributes:
        prediction_type: epsilon, v_prediction or sample.
        alphas_cumprod: ``[T]`` float32, A_t.
        num_train_timesteps: T.

    Raises:
        UserError: a scheduler without betas (flow matching, EDM), another prediction type, betas that are no schedule.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        name = scheduler_config.get("_class_name", "unknown")
        if other := _other_noise(scheduler_config):
            raise UserError(
                "The checkpoint's scheduler has no beta schedule, so its training noise is not that of a DDPM.",
                f"scheduler class {name}: {other}",
                "use an epsilon- or v-prediction checkpoint of Stable Diffusion 1.x, 2.x or XL",
            )
        self.prediction_type = str(scheduler_config.get("prediction_type", "epsilon"))
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                "The checkpoint's prediction type is not supported.",
                f"{self.prediction_type} in the configuration of {name}",
                f"use a checkpoint with one of: {', '.join(PREDICTION_TYPES)}",
            )
        try:
            self._ddpm = DDPMScheduler.from_config(dict(scheduler_config))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(WRONG_SCHEDULE, f"{name}: {error}", FROM_THE_CHECKPOINT) from error
        self.alphas_cumprod = self._ddpm.alphas_cumprod.float().clone()
        self.num_train_timesteps = int(self._ddpm.config.num_train_timesteps)
        _check_table(self.alphas_cumprod, self.num_train_timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t`` ``[B, C, h, w]`` float32 from clean latents and noise of that shape and timesteps ``[B]`` (long)."""
        _check_integers(timesteps)
        return self._ddpm.add_noise(latents.float(), noise.float(), timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should return for ``x_t``, float32: n, ``sqrt(A) n - sqrt(1 - A) x_0`` or ``x_0``."""
        _check_integers(timesteps)
        if self.prediction_type == "epsilon":
            return noise.float()
        if self.prediction_type == "v_prediction":
            return self._ddpm.get_velocity(latents.float(), noise.float(), timesteps)
        return latents.float()


def _other_noise(config: Mapping[str, Any]) -> str:
    """Why a scheduler's configuration does not describe variance-preserving noise by betas; empty if it does.

    A file may hold beta fields that its class does not read: diffusers keeps unknown fields when one class's
    configuration is loaded into another.
    """
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        return "no beta fields"
    scheduler = getattr(diffusers, str(config.get("_class_name")), None)
    if scheduler is not None:
        arguments = inspect.signature(scheduler.__init__).parameters
        general = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())  # of a missing package
        if not general and not {"beta_schedule", "trained_betas"} & set(arguments):
            return "its beta fields are left over from another class and mean nothing to it"
    if config.get("use_flow_sigmas"):
        return "use_flow_sigmas: flow matching"
    return "timestep_type: continuous, noise levels of EDM" if config.get("timestep_type") == "continuous" else ""


def _check_table(signal: Tensor, num_timesteps: int) -> None:
    """A_t must fall from below 1 to 0 or more, one number per timestep: without any noise the SNR is infinite."""
    if len(signal) != num_timesteps:
        found = f"{len(signal)} betas for {num_timesteps} timesteps"
    elif not bool(torch.isfinite(signal).all()) or float(signal.min()) < 0.0 or bool((signal.diff() >= 0).any()):
        found = (
            f"cumulative alphas from {float(signal[0]):g} to {float(signal[-1]):g} that do not fall at every timestep"
        )
    elif float(signal.max()) >= 1.0:
        found = "a timestep without any noise (a beta of 0)"
    else:
        return
    raise UserError(WRONG_SCHEDULE, found, FROM_THE_CHECKPOINT)


def _check_integers(timesteps: Tensor) -> None:
    if timesteps.dtype not in (torch.int64, torch.int32) or timesteps.dim() != 1:
        raise ValueError(f"timesteps must be integers [B], got {timesteps.dtype} {list(timesteps.shape)}")
