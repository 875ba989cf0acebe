"""Evaluation and training mode of a denoiser, such that policy and reference start from the very same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def train_mode(network: nn.Module) -> None:
    """Put only the adapters' dropout into training mode.

    The denoisers' own dropout is 0, but in training mode it still copies its input, which changes the memory layout,
    the kernels chosen after it, and the last bits of the prediction: the policy would differ from a reference in
    evaluation mode before the first step. Gradient checkpointing does not look at the mode.
    """
    network.eval()
    for name, module in network.named_modules():
        if "lora_dropout" in name:
            module.train()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped out; afterwards every module has the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
