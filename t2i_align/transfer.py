"""Moving what the CPU made to the training device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, in `dtype` where one is given.

    To a GPU it goes from pinned memory and the host does not wait: a copy from ordinary memory would first let
    everything finish that the GPU has to do.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype, non_blocking=True)
