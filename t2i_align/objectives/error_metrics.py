"""The error slot, :data:`ERRORS`: from a prediction and its target to one number per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """

    prediction: Tensor
    target: Tensor
    timesteps: Tensor
    prediction_type: str
    snr: Tensor
    mask: Tensor | None = None


class ErrorMetric(Choice):
    """Base of the slot."""

    def __call__(self, denoised: Denoised) -> Tensor:
        """``[N]`` float32 errors."""
        raise NotImplementedError

    def measured_in(self, prediction_type: str) -> str:
        """Parametrisation the errors are measured in, given the checkpoint's."""
        return prediction_type


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


ERRORS: dict[str, type[ErrorMetric]] = {
    "prediction": PredictionError,
    "epsilon": EpsilonError,
    "velocity": VelocityError,
}
