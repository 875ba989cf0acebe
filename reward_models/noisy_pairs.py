"""Preference pairs of clean latents, noised anew at every step; what all noise-aware reward models train on.

Batches, timesteps and noise are functions of (seed, step): two runs with one seed are the same run, and a resumed run
goes on as if it had never stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.errors import RewardModelError

Score = Callable[[Tensor, Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class LatentPairs:
    """N pairs in memory (or memory-mapped).

    Attributes:
        latents_0, latents_1: ``[N, C, h, w]`` clean latents in the denoiser's scale, any float dtype.
        prompts: N texts.
        label_0: ``[N]`` probability that picture 0 is preferred; 0.5 is a tie.
    """

    latents_0: Tensor
    latents_1: Tensor
    prompts: Sequence[str]
    label_0: Tensor

    def __post_init__(self) -> None:
        count = len(self.prompts)
        if count == 0 or any(len(part) != count for part in (self.latents_0, self.latents_1, self.label_0)):
            raise RewardModelError(
                "pairs need as many latents and labels as prompts, and at least one",
                found=f"{len(self.latents_0)} and {len(self.latents_1)} latents, {len(self.label_0)} labels, "
                f"{count} prompts",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt_counts(self) -> Tensor:
        """``[N]`` float: rows with the same prompt."""
        counts = Counter(self.prompts)
        return torch.tensor([float(counts[prompt]) for prompt in self.prompts])


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """B pairs at one timestep each.

    Attributes:
        sides: noisy latents of pictures 0 and 1, each ``[B, C, h, w]`` float32.
        timesteps: ``[B]`` long.
        prompts: B texts.
        label_0: ``[B]`` float32.
    """

    sides: tuple[Tensor, Tensor]
    timesteps: Tensor
    prompts: list[str]
    label_0: Tensor


def noisy_batch(
    pairs: LatentPairs, rows: Tensor, levels: Tensor, alphas_cumprod: Tensor, shared_noise: bool, seed: int, step: int
) -> NoisyBatch:
    """The pairs at ``rows`` with the timesteps and noises of a step.

    Args:
        levels: timesteps to draw from, uniformly; both pictures of a pair get the same.
        shared_noise: one noise for both pictures of a pair instead of one each.
    """
    times = levels[torch.randint(len(levels), (len(rows),), generator=generator(seed, 2, step))]
    noises = [noise(pairs.latents_0[rows].shape, seed, 3 + side, step) for side in range(2)]
    noises[1] = noises[0] if shared_noise else noises[1]
    first, second = (
        noised(part[rows], own, times, alphas_cumprod)
        for part, own in zip((pairs.latents_0, pairs.latents_1), noises, strict=True)
    )
    return NoisyBatch((first, second), times, texts_of(pairs, rows), pairs.label_0[rows].float())


@torch.no_grad()
def accuracy_by_timestep(
    score: Score,
    pairs: LatentPairs,
    alphas_cumprod: Tensor,
    timesteps: Sequence[int],
    draws: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[int, float]:
    """Share of decided pairs that are ranked as labelled, at each timestep.

    Both pictures of a pair get the same noise, and every timestep the same noises. Ties are left out; equal scores
    count as half.

    Args:
        score: of noisy latents ``[B, C, h, w]`` at timesteps ``[B]`` for B prompts; ``[B]``.
        pairs: held out.
        alphas_cumprod: ``[T]``.
        timesteps: noise levels to measure.
        draws: noises per pair; accuracy is the mean over them.
        batch_size: pairs per pass.
        seed: of the noise.
    """
    decided = (pairs.label_0 != 0.5).nonzero().flatten()
    if len(decided) == 0:
        raise RewardModelError("every pair is a tie: there is no accuracy to measure")
    found = {}
    for timestep in timesteps:
        right = 0.0
        for draw in range(draws):
            for start in range(0, len(decided), batch_size):
                rows = decided[start : start + batch_size]
                times = torch.full((len(rows),), timestep)
                own = noise(pairs.latents_0[rows].shape, seed, draw, start)
                first, second = (
                    score(noised(part[rows], own, times, alphas_cumprod), times, texts_of(pairs, rows))
                    for part in (pairs.latents_0, pairs.latents_1)
                )
                right += float(agreement((first - second).cpu(), pairs.label_0[rows]).sum())
        found[int(timestep)] = right / (draws * len(decided))
    return found


def batch_rows(count: int, size: int, seed: int, step: int) -> Tensor:
    """Rows of one step: seeded permutations of ``count`` laid end to end, cut into pieces of ``size``."""
    first, last = step * size // count, ((step + 1) * size - 1) // count
    orders = [torch.randperm(count, generator=generator(seed, 1, epoch)) for epoch in range(first, last + 1)]
    start = step * size - first * count
    return torch.cat(orders)[start : start + size]


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """``sqrt(A_t) x_0 + sqrt(1 - A_t) noise``, on the CPU in float32."""
    alpha = alphas_cumprod.float().cpu()[timesteps].reshape(-1, 1, 1, 1)
    return alpha.sqrt() * latents.float().cpu() + (1.0 - alpha).sqrt() * noise


def agreement(margin: Tensor, label: Tensor) -> Tensor:
    """1 where the sign of the margin is the label's, 1/2 where it is zero."""
    return 0.5 * (1.0 + torch.sign(margin) * torch.sign(label - 0.5))


def texts_of(pairs: LatentPairs, rows: Tensor) -> list[str]:
    """Prompts of the pairs at ``rows``."""
    return [pairs.prompts[row] for row in rows.tolist()]


def noise(shape: Sequence[int], *address: int) -> Tensor:
    """Standard normal numbers that belong to an address."""
    return torch.randn(tuple(shape), generator=generator(*address))


def generator(*address: int) -> torch.Generator:
    """A generator that belongs to an address."""
    value = 0
    for part in address:
        value = (value * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(value)
