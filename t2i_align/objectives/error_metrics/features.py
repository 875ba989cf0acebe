"""Errors in the features of the frozen initial denoiser instead of in the latents."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.error_metrics.base import Denoised, ErrorMetric, mean_squared_error, refuse_without_signal
from t2i_align.objectives.parametrisation import clean_and_noise


class PerceptualError(ErrorMetric):
    """One reverse step with the predicted and one with the true noise, compared by what the frozen denoiser sees.

    The two inputs differ by ``c_t (eps_hat - n)``, ``c_t = (1 - a_t) / sqrt(a_t (1 - A_t))``, which is below 0.01 at
    most timesteps. ``normalise`` divides by c_t^2, so that identity features give the error of the noise itself and a
    beta keeps its meaning; the paper does not say that it does.
    """

    formula = "e = mean (F(x'_hat, t-1) - F(x', t-1))^2 / c_t^2, x' one DDPM step from x_t, F frozen down blocks"
    paper = "NCP, arXiv 2406.17636 (which blocks and how they are averaged: ours)"
    needs_features: ClassVar[bool] = True
    name: Literal["perceptual"] = "perceptual"
    blocks: tuple[int, ...] = Field(
        default=(-1,), min_length=1, description="down blocks whose outputs are compared, 0 the finest, -1 the last"
    )
    normalise: bool = Field(default=True, description="divide by c_t^2; false: the bare features of the paper")

    def __call__(self, denoised: Denoised) -> Tensor:
        if denoised.noisy is None or denoised.features is None:
            raise ValueError("errors in features need the noisy latents and a feature extractor")
        if denoised.mask is not None:
            raise ValueError("a mask on latents says nothing about features")
        noisy, previous, timesteps = denoised.noisy, self._signal(denoised, -1), denoised.timesteps
        signal = self._signal(denoised, 0)
        alpha = signal / previous
        factor = (1.0 - alpha) / (alpha * (1.0 - signal)).sqrt()
        deviation = ((1.0 - previous) / (1.0 - signal) * (1.0 - alpha)).clamp(min=0.0).sqrt()
        before = (timesteps - 1).clamp(min=0)
        guessed, true = (
            clean_and_noise(value.to(noisy), noisy, signal, denoised.prediction_type)[1]
            for value in (denoised.prediction, denoised.target)
        )
        base = noisy / _column(alpha.sqrt(), noisy)
        if denoised.extra_noise is not None:  # the same in both, so that it does not count as a difference
            base = base + _column(deviation, noisy) * denoised.extra_noise.to(noisy)
        ours = denoised.features(base - _column(factor, noisy) * guessed, before)
        with torch.no_grad():
            theirs = denoised.features(base - _column(factor, noisy) * true, before)
        errors = [mean_squared_error(ours[block], theirs[block]) for block in self._chosen(len(ours))]
        error = torch.stack(errors).mean(0)
        return error / factor.to(error).square() if self.normalise else error

    def _signal(self, denoised: Denoised, shift: int) -> Tensor:
        """A at ``t + shift`` ``[N]``; 1 below the schedule."""
        table = (denoised.snr / (1.0 + denoised.snr)).to(denoised.timesteps.device)
        at = denoised.timesteps + shift
        return torch.where(at >= 0, table[at.clamp(min=0)], torch.ones_like(table[0]))

    def _chosen(self, count: int) -> list[int]:
        wrong = [block for block in self.blocks if not -count <= block < count]
        if wrong:
            raise UserError(
                "error 'perceptual' names down blocks that the denoiser does not have.",
                f"blocks {list(wrong)}; it has {count}",
                f"use 0 to {count - 1}, or -1 for the last",
            )
        return list(self.blocks)

    def measured_in(self, prediction_type: str) -> str:
        return "features"

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        """A reverse step from pure noise is not defined."""
        refuse_without_signal(snr, "perceptual", "takes a reverse step from some signal")


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))
