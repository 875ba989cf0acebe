"""Which latents and which noise a model speaks, so that two models can be told to share them or not.

A latent reward model and the policy need not be the same network, but they must agree on the VAE, its scaling and the
noise at a timestep. Hashes of weights would tell the same VAE in two precisions apart; encoding one fixed picture does
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

PROBE_SIZE = 64
TOLERANCE = 0.05  # relative; half precision and the fp16-safe SDXL VAE stay far below, other VAEs far above


@dataclass(frozen=True)
class LatentSpace:
    """A latent space and its noise schedule, by what they do.

    Attributes:
        channels: C of the latents.
        probe: scaled latents of the probe picture, averaged to 2 x 2: ``4 C`` numbers.
        num_train_timesteps: T.
        alphas: cumulative alphas at 0, T/4, T/2, 3T/4 and T - 1.
    """

    channels: int
    probe: tuple[float, ...]
    num_train_timesteps: int
    alphas: tuple[float, ...]

    @classmethod
    def measure(cls, encode: Callable[[Tensor], Tensor], alphas_cumprod: Tensor) -> LatentSpace:
        """Look at a VAE and a schedule.

        Args:
            encode: pixels ``[1, 3, H, W]`` in [-1, 1] to scaled latents ``[1, C, h, w]``.
            alphas_cumprod: ``[T]``.
        """
        with torch.no_grad():
            latents = encode(probe_pixels()).float().cpu()
        total = len(alphas_cumprod)
        marks = [0, total // 4, total // 2, 3 * total // 4, total - 1]
        return cls(
            channels=latents.shape[1],
            probe=tuple(adaptive_avg_pool2d(latents, 2).flatten().tolist()),
            num_train_timesteps=total,
            alphas=tuple(float(alphas_cumprod[mark]) for mark in marks),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatentSpace:
        """From the JSON form of :meth:`to_dict`."""
        return cls(
            channels=int(values["channels"]),
            probe=tuple(values["probe"]),
            num_train_timesteps=int(values["num_train_timesteps"]),
            alphas=tuple(values["alphas"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def difference(self, other: LatentSpace) -> str | None:
        """What keeps the two apart, in words, or None when latents of one mean the same to the other."""
        if self.channels != other.channels:
            return f"{self.channels} against {other.channels} latent channels"
        size = math.sqrt(sum(value * value for value in self.probe))
        distance = math.dist(self.probe, other.probe) / max(size, 1e-6)
        if distance > TOLERANCE:
            return f"their VAEs encode one picture {distance:.0%} apart (another VAE, or another scaling factor)"
        if self.num_train_timesteps != other.num_train_timesteps:
            return f"{self.num_train_timesteps} against {other.num_train_timesteps} training timesteps"
        if max(abs(a - b) for a, b in zip(self.alphas, other.alphas, strict=True)) > 1e-3:
            return f"cumulative alphas {self.alphas} against {other.alphas}: another noise schedule"
        return None


def probe_pixels() -> Tensor:
    """``[1, 3, 64, 64]`` in [-1, 1]: ramps and a disc, a different mix in every channel."""
    side = torch.linspace(-1.0, 1.0, PROBE_SIZE)
    row, column = torch.meshgrid(side, side, indexing="ij")
    disc = ((row - 0.3).square() + (column + 0.2).square() < 0.2).float() * 2.0 - 1.0
    return torch.stack([row, column, disc]).unsqueeze(0)
