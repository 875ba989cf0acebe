"""The error slot: from a prediction and its target to one number per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.base import Choice
from t2i_align.objectives.parametrisation import clean_and_noise


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

    def check_schedule(self, snr: Tensor) -> None:
        """Raise UserError for a noise schedule ``[T]`` on which the error is not defined."""


def mean_squared_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[N]`` mean of squared differences over all non-batch dimensions, in float32 (float64 is kept).

    Both tensors are cast before the subtraction: squaring half precision alone would put noise of 0.1 on a
    logit.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {list(prediction.shape)} and target {list(target.shape)} must match")
    wide = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    squared = (prediction.to(wide) - target.to(wide)).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    weights = mask.to(wide).expand_as(squared).flatten(1)
    return (squared.flatten(1) * weights).sum(1) / weights.sum(1)


class PredictionError(ErrorMetric):
    """Squared error of whatever the checkpoint predicts: noise, velocity or clean latents."""

    formula = "e = mean (f(x_t, t, c) - y)^2 over all non-batch dimensions, y by the checkpoint's prediction type"
    paper = "Diffusion-DPO, arXiv 2311.12908"
    name: Literal["prediction"] = "prediction"

    def __call__(self, denoised: Denoised) -> Tensor:
        return mean_squared_error(denoised.prediction, denoised.target, denoised.mask)


class _Converted(ErrorMetric):
    """At one x_t the parametrisations are affine in each other; errors differ by a factor of t alone."""

    def _signal(self, denoised: Denoised) -> Tensor:
        """A_t = SNR / (1 + SNR) ``[N]``, and the prediction type checked."""
        if denoised.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"error metric {self.model_dump()['name']!r} converts only epsilon and v_prediction",
                found=denoised.prediction_type,
                fix="use error: prediction",
            )
        snr = denoised.snr.to(denoised.timesteps.device)[denoised.timesteps]
        return snr / (1.0 + snr)


class EpsilonError(_Converted):
    """Error of the noise, also for a checkpoint that predicts velocity."""

    formula = "e = mean (eps_hat - n)^2; a velocity error times A_t"
    paper = "DDPM, arXiv 2006.11239"
    name: Literal["epsilon"] = "epsilon"

    def __call__(self, denoised: Denoised) -> Tensor:
        error = mean_squared_error(denoised.prediction, denoised.target, denoised.mask)
        signal = self._signal(denoised)
        return error if denoised.prediction_type == "epsilon" else error * signal

    def measured_in(self, prediction_type: str) -> str:
        return "epsilon"


class VelocityError(_Converted):
    """Error of the velocity, also for a checkpoint that predicts noise; heavier where there is much noise."""

    formula = "e = mean (v_hat - v)^2; a noise error divided by A_t"
    paper = "Progressive distillation, arXiv 2202.00512"
    name: Literal["velocity"] = "velocity"

    def __call__(self, denoised: Denoised) -> Tensor:
        error = mean_squared_error(denoised.prediction, denoised.target, denoised.mask)
        signal = self._signal(denoised)
        return error if denoised.prediction_type == "v_prediction" else error / signal

    def measured_in(self, prediction_type: str) -> str:
        return "v_prediction"


class CleanError(ErrorMetric):
    """Error of the clean latents that a prediction implies; a pseudo-Huber norm bounds what an outlier counts."""

    formula = "e = mean sqrt((x0_hat - x0)^2 + c^2) - c, or mean (x0_hat - x0)^2 for c = 0"
    paper = "Self-NPO, arXiv 2505.11777; pseudo-Huber: arXiv 2310.14189"
    name: Literal["clean"] = "clean"
    huber: float = Field(default=0.001, ge=0, description="c of the pseudo-Huber norm; 0 is the square")

    def __call__(self, denoised: Denoised) -> Tensor:
        if denoised.noisy is None:
            raise ValueError("the error of clean latents needs the noisy latents")
        signal = denoised.snr.to(denoised.timesteps.device)[denoised.timesteps]
        signal = signal / (1.0 + signal)
        noisy = denoised.noisy
        guess, clean = (
            clean_and_noise(value.to(noisy), noisy, signal, denoised.prediction_type)[0]
            for value in (denoised.prediction, denoised.target)
        )
        if self.huber == 0:
            return mean_squared_error(guess, clean, denoised.mask)
        return ((guess - clean).square() + self.huber**2).sqrt().flatten(1).mean(1) - self.huber

    def measured_in(self, prediction_type: str) -> str:
        return "sample"

    def check_schedule(self, snr: Tensor) -> None:
        """Without any signal a noise prediction implies no clean latents."""
        if not bool((snr > 0).all()):
            raise UserError(
                "error 'clean' divides by the signal, which some timestep does not have",
                found="a zero-terminal-SNR schedule",
                fix="use error: prediction",
            )
