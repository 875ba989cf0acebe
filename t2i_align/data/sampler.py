"""Which pairs an optimiser step uses: a function of the seed and the step, with no state to save.

The passes over n pairs, each in its own random order, are laid end to end; step s takes the s-th stretch of G
= batch * world size * accumulation of them. A stretch that ends a pass goes on into the next, so nothing is
dropped. A step uses the same pairs however they are divided over processes and micro-steps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from t2i_align.randomness import addressed_generator


def step_indices(
    step: int,
    micro_step: int,
    rank: int,
    world_size: int,
    batch: int,
    accumulation: int,
    n: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Pairs of one process in one micro-step.

    Args:
        step: optimiser step, from 0.
        micro_step: part of the step, from 0 to accumulation - 1.
        rank: process, from 0 to world_size - 1.
        world_size: number of processes.
        batch: pairs per process and micro-step.
        accumulation: micro-steps per optimiser step.
        n: pairs in the source.
        seed: of the orders.

    Returns:
        ``batch`` indices below n, and the pass over the data each belongs to.
    """
    start = step * batch * world_size * accumulation + (micro_step * world_size + rank) * batch
    positions = range(start, start + batch)
    epochs = [position // n for position in positions]
    indices = [
        int(permutation(epoch, n, seed)[position % n]) for position, epoch in zip(positions, epochs, strict=True)
    ]
    return indices, epochs


@lru_cache(maxsize=4)
def permutation(epoch: int, n: int, seed: int) -> np.ndarray:
    """``[n]`` order of one pass over the data. Treat as read-only: it is shared."""
    return torch.randperm(n, generator=addressed_generator(seed, "order", epoch)).numpy()
