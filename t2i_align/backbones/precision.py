"""Mixed precision that travels with a network, so that every caller gets the same arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Under autocast these run in half precision whatever their storage, so storing half loses nothing.
MATMUL_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Autocast:
    """Forward hooks that open an autocast region before a network runs and close it afterwards, also on an error.

    Hooks rather than a replaced ``forward``: a deep copy of the network keeps them and calls its own weights.
    """

    def __init__(self, device_type: str, dtype: torch.dtype) -> None:
        self._device_type, self._dtype = device_type, dtype
        self._open: list[torch.autocast] = []

    def enter(self, module: nn.Module, args: tuple) -> None:
        region = torch.autocast(self._device_type, dtype=self._dtype)
        region.__enter__()
        self._open.append(region)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._open.pop().__exit__(None, None, None)


def autocast_inside(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Make `network` run under autocast to `dtype` from now on; float32 changes nothing."""
    if dtype == torch.float32:
        return
    region = _Autocast(device.type, dtype)
    network.register_forward_pre_hook(region.enter)
    network.register_forward_hook(region.leave, always_call=True)


def frozen_copy(network: nn.Module, dtype: torch.dtype, beside_trained: bool = False) -> nn.Module:
    """A copy that never trains, in evaluation mode; `FrozenCopy` lends it without gradients.

    Under autocast to `dtype` it returns what the float32 original returns, in half the memory: only layers whose
    weights autocast would round anyway are stored in `dtype`; normalisations keep float32.

    Args:
        network: the original.
        dtype: compute precision.
        beside_trained: whether the original's weights train. The copy's are then marked alike: torch multiplies by
            weights that want gradients in other shapes than by frozen ones, and the two would round differently.
    """
    clone = copy.deepcopy(network).eval().requires_grad_(beside_trained)
    if dtype != torch.float32:
        for module in clone.modules():
            if isinstance(module, MATMUL_LAYERS):
                module.to(dtype)
    return clone
