"""What the error slot takes and gives: a prediction and its target in, one number per image out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.base import Choice


@dataclass(frozen=True, eq=False)
class Denoised:
    """One network pass over N images.

    Attributes:
        prediction, target: ``[N, ...]`` in the checkpoint's parametrisation, any float dtype.
        timesteps: ``[N]`` long.
        prediction_type: diffusers' name of that parametrisation.
        snr: ``[T]`` signal-to-noise ratio per timestep.
        mask: broadcastable to the prediction, non-negative; weights the elements of the mean.
        noisy: x_t, for errors of something other than what the network named.
        features: (latents, timesteps) -> maps of the frozen denoiser, for errors in features.
        extra_noise: a second noise of the shape of x_t, for errors after a stochastic reverse step.
    """

    prediction: Tensor
    target: Tensor
    timesteps: Tensor
    prediction_type: str
    snr: Tensor
    mask: Tensor | None = None
    noisy: Tensor | None = None
    features: Callable[[Tensor, Tensor], Sequence[Tensor]] | None = None
    extra_noise: Tensor | None = None


class ErrorMetric(Choice):
    """Base of the slot. ``needs_features``: whether the backbone must keep its initial denoiser's down blocks."""

    needs_features: ClassVar[bool] = False

    def __call__(self, denoised: Denoised) -> Tensor:
        """``[N]`` float32 errors."""
        raise NotImplementedError

    def measured_in(self, prediction_type: str) -> str:
        """Parametrisation the errors are measured in, given the checkpoint's."""
        return prediction_type

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        """Raise UserError where the error is not defined, given the SNR of every timestep that is drawn."""


def refuse_without_signal(snr: Tensor, name: str, why: str) -> None:
    """Raise UserError if a timestep that is drawn has no signal at all."""
    if not bool((snr > 0).all()):
        raise UserError(
            f"error {name!r} {why}, which some timestep does not have",
            found="a zero-terminal-SNR schedule",
            fix="use error: prediction, or leave the last timestep out, such as timestep: {name: range, high: 999}",
        )


def mean_squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[N]`` mean of squared differences over all non-batch dimensions, in float32 (float64 is kept).

    Both tensors are cast before the subtraction: squaring half precision alone would put noise of 0.1 on a
    logit.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {list(prediction.shape)} and target {list(target.shape)} must match")
    wide = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return masked_mean((prediction.to(wide) - target.to(wide)).square(), mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """``[N]`` mean of ``values`` ``[N, ...]`` over all but the first dimension, weighted by a mask if there is one."""
    if mask is None:
        return values.flatten(1).mean(1)
    weights = mask.to(values).expand_as(values).flatten(1)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1)
