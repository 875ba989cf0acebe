"""Synthetic people: a shared direction, and a few along which they differ."""

from __future__ import annotations

import torch
from torch import Tensor

from reward_models.personal.records import PreferencePairs

WIDTH, RANK, COMMON = 32, 3, 0.3


def directions(seed: int = 0) -> tuple[Tensor, Tensor]:
    """w_0 ``[D]`` and V ``[D, R]`` of the world."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, RANK + 1, generator=generator, dtype=torch.float64))
    return COMMON * basis[:, 0], basis[:, 1:]


def answers(names: list[str], tastes: Tensor, per_user: int, seed: int, sharpness: float = 3.0) -> PreferencePairs:
    """Noisy Bradley-Terry answers of users with tastes ``[U, R]`` over items of their own."""
    common, basis = directions()
    generator = torch.Generator().manual_seed(seed)
    count = len(names) * per_user
    features = torch.randn(2 * count, WIDTH, generator=generator, dtype=torch.float64)
    index = torch.arange(2 * count).reshape(count, 2)
    weights = (common + tastes @ basis.T).repeat_interleave(per_user, 0)
    margin = sharpness * ((features[index[:, 0]] - features[index[:, 1]]) * weights).sum(1)
    label = (torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(margin)).double()
    return PreferencePairs.build(features, index, label, [name for name in names for _ in range(per_user)])


def tastes(count: int, seed: int) -> Tensor:
    """``[U, R]`` standard normal."""
    return torch.randn(count, RANK, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
