"""Errors of what the network names: noise, velocity or clean latents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.error_metrics.base import (
    Denoised,
    ErrorMetric,
    masked_mean,
    mean_squared_error,
    refuse_without_signal,
)
from t2i_align.objectives.parametrisation import clean_and_noise


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

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        """A noise error says nothing about the velocity where there is only noise."""
        if prediction_type == "epsilon":
            refuse_without_signal(snr, "velocity", "divides a noise error by the signal")


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
        return masked_mean(((guess - clean).square() + self.huber**2).sqrt(), denoised.mask) - self.huber

    def measured_in(self, prediction_type: str) -> str:
        return "sample"

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        """Without any signal a noise prediction implies no clean latents; the others do."""
        if prediction_type == "epsilon":
            refuse_without_signal(snr, "clean", "divides by the signal")
