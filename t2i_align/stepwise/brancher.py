"""Candidates of one parent state: K draws of the same Gaussian transition, with addressed noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_align.randomness import addressed_normal, addressed_uniform
from t2i_align.stepwise.transition import GaussianTransition


@dataclass(frozen=True)
class RolloutAddress:
    """Which random numbers a rollout uses, whatever process it runs on.

    Attributes:
        seed: of the run.
        round: number of the rollout.
        positions: of the prompts in the (global) round; one rollout may hold the same prompt twice.
    """

    seed: int
    round: int
    positions: Sequence[int]

    def initial_noise(self, shape: Sequence[int]) -> Tensor:
        """``[N, C, h, w]`` float32: where each prompt starts."""
        return self._stack(shape, "initial")

    def step_noise(self, shape: Sequence[int], step: int, candidate: int) -> Tensor:
        """``[N, C, h, w]`` float32 noise of one candidate of one sampler step."""
        return self._stack(shape, "step", step, candidate)

    def choice(self, step: int, candidates: int) -> Tensor:
        """``[N]`` long, uniform on 0 .. candidates - 1 and independent of everything else."""
        uniforms = [addressed_uniform(self.seed, "rollout", "choice", self.round, p, step) for p in self.positions]
        return torch.tensor([int(uniform * candidates) for uniform in uniforms], dtype=torch.long)

    def _stack(self, shape: Sequence[int], *what: str | int) -> Tensor:
        return torch.stack(
            [addressed_normal(shape, self.seed, "rollout", self.round, p, *what) for p in self.positions]
        )


def branch(transition: GaussianTransition, candidates: int, address: RolloutAddress, step: int) -> Tensor:
    """``[K, N, C, h, w]`` successors of the N states; no network is asked again."""
    shape = transition.mean.shape[1:]
    noise = torch.stack([address.step_noise(shape, step, k) for k in range(candidates)])
    return transition.sample(noise)


def pick(candidates: Tensor, index: Tensor) -> Tensor:
    """Candidate ``index`` ``[N]`` of every state: ``[K, N, ...] -> [N, ...]``."""
    return candidates[index.to(candidates.device), torch.arange(len(index), device=candidates.device)]
