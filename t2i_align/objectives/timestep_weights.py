"""Weights on errors as functions of the noise level, inside the timestep slot.

A weight multiplies every error of an item, so it multiplies the loss of an error (SFT) and the logit of a
preference, lambda(t). What is weighted is the error in the parametrisation it was measured in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.base import Choice, choose
from t2i_align.objectives.types import PairErrors

# Weight on the error of a prediction that puts min(SNR, gamma) on the error of the clean latents it implies. Written so
# that the ends of a schedule, SNR 0 and infinity, have their limits.
MIN_SNR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "epsilon": lambda snr, gamma: (gamma / snr).clamp(max=1.0),
    "v_prediction": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1.0),
    "flow_prediction": lambda snr, gamma: snr.clamp(max=gamma) / (1.0 + snr.sqrt()).square(),
    "sample": lambda snr, gamma: snr.clamp(max=gamma),
}


class TimestepWeight(Choice):
    """Base: ``[B]`` factors, or None for no factor."""

    def __call__(self, inputs: PairErrors) -> Tensor | None:
        raise NotImplementedError

    def check_schedule(self, snr: Tensor) -> None:
        """Raise UserError for a noise schedule ``[T]`` on which the weight is not defined."""

    def check_error(self, measured_in: str) -> None:
        """Raise UserError for errors in a parametrisation for which the weight is not defined."""


class NoTimestepWeight(TimestepWeight):
    """Every timestep counts alike."""

    formula = "1"
    paper = "-"
    name: Literal["none"] = "none"

    def __call__(self, inputs: PairErrors) -> None:
        return None


class MinSnr(TimestepWeight):
    """Min-SNR: the clean-latent error weighted by the SNR, clipped at gamma."""

    formula = "min(SNR, gamma)/SNR for epsilon, min(SNR, gamma)/(SNR+1) for v"
    paper = "Min-SNR, arXiv 2303.09556"
    reads = frozenset({"timesteps", "snr"})
    name: Literal["min_snr"] = "min_snr"
    gamma: float = Field(default=5.0, gt=0, description="SNR above which the weight stops growing")

    def check_error(self, measured_in: str) -> None:
        """The weight is that of the clean latents, which errors in features say nothing about."""
        if measured_in not in MIN_SNR:
            raise UserError(
                "timestep weighting 'min_snr' is not defined for this error metric",
                found=f"errors measured in {measured_in}",
                fix=f"it knows {', '.join(MIN_SNR)}; use weighting: none otherwise",
            )

    def __call__(self, inputs: PairErrors) -> Tensor:
        self.check_error(inputs.prediction_type)
        timesteps = inputs.required("timesteps")
        snr = inputs.required("snr").to(timesteps.device)[timesteps]
        return MIN_SNR[inputs.prediction_type](snr, self.gamma)


class NoiseLevel(TimestepWeight):
    """Favours noisy timesteps, where the layout of a picture is decided."""

    formula = "lambda(t) = 1 + norm(1/sqrt(SNR(t))), min-max over t, in [1, 2]"
    paper = "Rethinking DPO in diffusion models, arXiv 2505.18736 (range read off its figure)"
    reads = frozenset({"timesteps", "snr"})
    name: Literal["noise_level"] = "noise_level"

    def __call__(self, inputs: PairErrors) -> Tensor:
        timesteps = inputs.required("timesteps")
        level = inputs.required("snr").to(timesteps.device).rsqrt()
        low, high = level.min(), level.max()
        return 1.0 + (level[timesteps] - low) / (high - low)

    def check_schedule(self, snr: Tensor) -> None:
        """The weight is infinite where there is no signal at all."""
        if not bool((snr > 0).all()):
            raise UserError(
                "timestep weighting 'noise_level' needs a positive SNR at every timestep",
                found="a zero-terminal-SNR schedule",
                fix="use weighting: none or min_snr",
            )


TIMESTEP_WEIGHTS: dict[str, type[TimestepWeight]] = {
    "none": NoTimestepWeight,
    "min_snr": MinSnr,
    "noise_level": NoiseLevel,
}


def _weighting(value: Any) -> Choice:
    return choose("timestep.weighting", TIMESTEP_WEIGHTS, value)


Weighting = Annotated[SerializeAsAny[TimestepWeight], BeforeValidator(_weighting)]
