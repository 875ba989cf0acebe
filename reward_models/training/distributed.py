"""Losses over the batches of all processes; with one process everything here is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from reward_models.training.losses import weighted_mean


def processes() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the tensors [B, ...] of all processes to [W * B, ...]; gradients flow back to their owners."""
    if processes() == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor.contiguous()))


def globally_weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """This process's share of the weighted mean over the global batch, such that the mean over processes is it."""
    total = weights.detach().sum()
    if processes() > 1:
        dist.all_reduce(total)
    return processes() * weighted_mean(losses, weights, total)
