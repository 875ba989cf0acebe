"""Tensors that are divided among processes by rows (FSDP2's DTensors), and plain ones, behind the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from t2i_align.backbones.pieces import Piece


def is_divided(tensor: Any) -> bool:
    """Whether this process holds only some rows of the tensor."""
    return hasattr(tensor, "device_mesh")


def is_sharded(network: nn.Module) -> bool:
    """Whether the network's weights are divided, also while they are gathered."""
    return hasattr(network, "unshard")


def own(tensor: Any) -> Tensor:
    """What this process holds, sharing its storage."""
    if not is_divided(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def own_parameters(trained: Mapping[str, Any]) -> list[nn.Parameter]:
    """The same for trained parameters, which stay parameters."""
    return [nn.Parameter(own(value)) if is_divided(value) else value for value in trained.values()]


def span(tensor: Any) -> tuple[int, int | None]:
    """First row that this process holds, and the one after the last; of a plain tensor all (None)."""
    if not is_divided(tensor):
        return 0, None
    rows, mesh = tensor.shape[0], tensor.device_mesh
    share = -(-rows // mesh.size())  # as torch.chunk divides: the last ones may get less, or nothing
    start = min(mesh.get_local_rank() * share, rows)
    return start, start + own(tensor).shape[0]


def piece(tensor: Any, index: int) -> Piece:
    """What process `index` writes of a tensor: its rows, or of a plain tensor everything by process 0."""
    held = own(tensor)
    if not is_divided(tensor) and index:
        held = held.new_empty(0)
    return Piece(held, span(tensor)[0], tuple(tensor.shape))


def divided_like(rows: Tensor, parameter: Any) -> Tensor:
    """A tensor of this process's `rows` that is divided as `parameter` is; of a plain parameter the rows themselves."""
    if not is_divided(parameter):
        return rows
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    shape, stride = parameter.shape, parameter.stride()
    local = rows.to(own(parameter).device)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def whole(tensor: Any) -> Tensor:
    """All of it, on every process; all must call it together."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def collect(tensors: Mapping[str, Any], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the processes that `keep` them, one after another; all must call it together."""
    kept = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if keep:
            kept[name] = complete.cpu()
    return kept
