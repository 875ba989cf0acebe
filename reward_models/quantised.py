"""Weights in 8 bits for files that must be small: one scale per output row, computed in float32 again when loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SUFFIX = ".row_scale"
LEVELS = 127


def quantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 with ``NAME.row_scale`` ``[rows]`` float16; vectors as float16.

    The error of a weight is at most half a 127th of its row's largest.
    """
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point() or value.ndim < 2:
            stored[name] = value.to(torch.float16) if value.is_floating_point() else value
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / LEVELS).clamp(min=1e-7).to(torch.float16)
        levels = (rows / scale.float().clamp(min=1e-7).unsqueeze(1)).round().clamp(-LEVELS, LEVELS)
        stored[name], stored[name + SUFFIX] = levels.to(torch.int8).reshape(value.shape), scale
    return stored


def restore(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that :func:`quantise` stored, float32; anything else unchanged."""
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SUFFIX):
            continue
        scale = stored.get(name + SUFFIX)
        if scale is not None:
            value = (value.float().flatten(1) * scale.float().clamp(min=1e-7).unsqueeze(1)).reshape(value.shape)
        state[name] = value
    return state
