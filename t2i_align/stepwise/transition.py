"""One step of a stochastic sampler as a Gaussian: mean, standard deviation, sampling and log-density.

Preferences between two successors of one noisy state need ``log p(x_t' | x_t, c)``, and a sampler that adds
noise has it in closed form. What differs between DDIM and a flow's SDE is only how mean and sigma follow from
the network's output; that part is a :class:`TransitionKernel`, everything downstream works on
:class:`GaussianTransition`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from t2i_align.errors import UserError

LOG_2_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class GaussianTransition:
    """``p(x_t' | x_t) = N(mean, sigma^2 I)``, one row per state.

    Attributes:
        mean: ``[N, C, h, w]``, float32 or float64; carries the gradient of the policy.
        sigma: ``[N]`` float64 standard deviations on the CPU, positive wherever a density is asked for.
    """

    mean: Tensor
    sigma: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + sigma * noise`` for standard normal noise ``[..., N, C, h, w]``; leading axes are candidates."""
        return self.mean + _like(self.sigma, self.mean) * noise.to(self.mean)

    def squared_error(self, successor: Tensor) -> Tensor:
        """``[N]`` means over all dimensions of ``((x' - mean) / sigma)^2``; about 1 for a state it sampled.

        Differences are taken and averaged in float64: the policy's error and the reference's agree to four
        digits or more, and what a loss sees is beta times their difference.
        """
        wide = wide_dtype(self.mean)
        squares = (successor.to(wide) - self.mean.to(wide)).square().flatten(1).mean(1)
        return squares / _numbers(self.sigma, squares).square()

    def log_density(self, successor: Tensor) -> Tensor:
        """``[N]`` log-densities of ``successor`` ``[N, C, h, w]`` per dimension: the mean over C, h, w, not
        the sum.

        The mean is the convention of all published step-level code; a beta for sums is D times smaller.
        """
        error = self.squared_error(successor)
        return -0.5 * (error + LOG_2_PI) - _numbers(self.sigma, error).log()


class TransitionKernel(Protocol):
    """How a network's output becomes a transition; timesteps are long ``[N]``, a child of -1 is the clean
    end."""

    def transition(self, output: Tensor, latents: Tensor, parents: Tensor, children: Tensor) -> GaussianTransition: ...

    def clean(self, output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor: ...

    def sigma(self, parents: Tensor, children: Tensor) -> Tensor: ...


class DdimKernel:
    """DDIM with stochasticity eta (formulas 12 and 16 of arXiv 2010.02502).

    With A the cumulative alphas, x0 and n the clean latents and noise that the output stands for::

        sigma = eta sqrt((1 - A_t') / (1 - A_t) (1 - A_t / A_t'))
        mean  = sqrt(A_t') x0 + sqrt(1 - A_t' - sigma^2) n

    Both x0 and n are affine in the output, so ``mean = a x_t + c output`` with numbers a and c per row; they
    are computed in float64 and applied in the precision of the latents (float32 at least). x0 is never
    clipped.

    Args:
        alphas_cumprod: ``[T]`` of the checkpoint.
        prediction_type: epsilon, v_prediction or sample (diffusers' names).
        eta: in (0, 1]; 1 is ancestral sampling.
        final_alpha: cumulative alpha of the clean end, child timestep -1.

    Raises:
        UserError: noise prediction with a schedule that reaches zero signal.
    """

    def __init__(
        self, alphas_cumprod: Tensor, prediction_type: str, eta: float = 1.0, final_alpha: float = 1.0
    ) -> None:
        if not 0.0 < eta <= 1.0:
            raise ValueError(f"eta must be in (0, 1], got {eta}")
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"unknown prediction type {prediction_type!r}")
        if prediction_type == "epsilon" and float(alphas_cumprod.min()) <= 0.0:
            raise UserError(
                "A noise-predicting checkpoint cannot be sampled from a state without any signal.",
                "epsilon prediction with a zero-terminal-SNR schedule",
                "use the v-prediction checkpoint that belongs to this schedule",
            )
        self.prediction_type, self.eta = prediction_type, eta
        # Index -1 is the clean end: indexing the table with a child timestep of -1 finds it.
        end = torch.tensor([final_alpha], dtype=torch.float64)
        self._alphas = torch.cat([alphas_cumprod.detach().double().cpu(), end])

    def sigma(self, parents: Tensor, children: Tensor) -> Tensor:
        """``[N]`` float64 standard deviations of the steps from ``parents`` to ``children``."""
        parent, child = self._at(parents), self._at(children)
        variance = (1.0 - child) / (1.0 - parent) * (1.0 - parent / child)
        return self.eta * variance.clamp(min=0.0).sqrt()

    def coefficients(self, parents: Tensor, children: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)``, each ``[N]`` float64: ``mean = a x_t + c output``."""
        child, sigma = self._at(children), self.sigma(parents, children)
        signal, noise = child.sqrt(), (1.0 - child - sigma.square()).clamp(min=0.0).sqrt()
        (clean_x, clean_f), (noise_x, noise_f) = self._decomposition(self._at(parents))
        return signal * clean_x + noise * noise_x, signal * clean_f + noise * noise_f

    def transition(self, output: Tensor, latents: Tensor, parents: Tensor, children: Tensor) -> GaussianTransition:
        """The step from ``latents`` ``[N, C, h, w]`` given the (guided) network output of the same shape."""
        output, latents = _float(output), _float(latents)
        a, c = self.coefficients(parents, children)
        mean = _like(a, latents) * latents + _like(c, latents) * output
        return GaussianTransition(mean, self.sigma(parents, children))

    def clean(self, output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Predicted clean latents x0 ``[N, C, h, w]``."""
        output, latents = _float(output), _float(latents)
        (x, f), _ = self._decomposition(self._at(timesteps))
        return _like(x, latents) * latents + _like(f, latents) * output

    def _at(self, timesteps: Tensor) -> Tensor:
        return self._alphas[timesteps.cpu()]

    def _decomposition(self, alpha: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Coefficients of (x_t, output) in x0, and in n."""
        signal, noise = alpha.sqrt(), (1.0 - alpha).sqrt()
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        if self.prediction_type == "epsilon":
            return (1.0 / signal, -noise / signal), (zero, one)
        if self.prediction_type == "v_prediction":
            return (signal, -noise), (noise, signal)
        return (zero, one), (1.0 / noise, -signal / noise)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _float(tensor: Tensor) -> Tensor:
    """float32 at least: half-precision arithmetic would round away a twentieth of the last steps' sigma."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _numbers(numbers: Tensor, like: Tensor) -> Tensor:
    """``[N]`` numbers in the dtype and on the device of ``like``; converted first, not every device has float64."""
    return numbers.to(like.dtype).to(like.device)


def _like(numbers: Tensor, latents: Tensor) -> Tensor:
    """``[N]`` numbers as ``[N, 1, 1, 1]`` in the dtype and on the device of ``latents`` ``[N, C, h, w]``."""
    return _numbers(numbers, latents).reshape(-1, *[1] * (latents.dim() - 1))
