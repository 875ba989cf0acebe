"""The forward process of a checkpoint: its noise schedule and what its network was trained to predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from t2i_align.errors import UserError

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
        UserError: a scheduler without betas (flow matching, EDM), or another prediction type.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        name = scheduler_config.get("_class_name", "unknown")
        if "beta_schedule" not in scheduler_config and scheduler_config.get("trained_betas") is None:
            raise UserError(
                "The checkpoint's scheduler has no beta schedule, so its training noise is not that of a DDPM.",
                f"scheduler class {name}",
                "use an epsilon- or v-prediction checkpoint of Stable Diffusion 1.x, 2.x or XL",
            )
        self.prediction_type = str(scheduler_config.get("prediction_type", "epsilon"))
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                "The checkpoint's prediction type is not supported.",
                f"{self.prediction_type} in the configuration of {name}",
                f"use a checkpoint with one of: {', '.join(PREDICTION_TYPES)}",
            )
        self._ddpm = DDPMScheduler.from_config(dict(scheduler_config))
        self.alphas_cumprod = self._ddpm.alphas_cumprod.float().clone()
        self.num_train_timesteps = int(self._ddpm.config.num_train_timesteps)

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


def _check_integers(timesteps: Tensor) -> None:
    if timesteps.dtype not in (torch.int64, torch.int32) or timesteps.dim() != 1:
        raise ValueError(f"timesteps must be integers [B], got {timesteps.dtype} {list(timesteps.shape)}")
