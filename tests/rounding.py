"""Another processor, by arithmetic: the last bit of a product depends on the shapes it was computed in.

Kernels for matrix products, convolutions, attention and normalisation are chosen by the shapes of their inputs and by
what the processor offers, so the same row has other last bits in another batch on one machine and the same ones on the
next. A test that asserts equal bits across batches passes only where it was written. Loaded with ``-p tests.rounding``,
this plugin moves every result of such an operation by up to two units in the last place, by an amount that its shapes
decide: the same operation on the same shapes still gives the same bits, and nothing else does. What holds here holds
anywhere.

Eight-bit pictures hide so small a change most of the time: ``ROUNDING_UNITS=2000`` makes it one that shows, to find
tests that compare pictures across batches exactly. Tests with a tolerance may fail then; they say so by how much.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SHAPED = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    aten._scaled_dot_product_attention_math,
    aten._softmax,
    aten.native_group_norm,
    aten.native_layer_norm,
}
LIMIT = int(os.environ.get("ROUNDING_UNITS", "2"))  # in the last place


def units(shapes: list[tuple[int, ...]]) -> int:
    """How far the results of an operation on inputs of these shapes are moved, in [-LIMIT, LIMIT]."""
    return zlib.crc32(repr(shapes).encode()) % (2 * LIMIT + 1) - LIMIT


class ShapedRounding(TorchDispatchMode):
    """Inside, results of `SHAPED` operations differ in their last bits by the shapes of the inputs."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in SHAPED:
            moved = units([tuple(value.shape) for value in args if isinstance(value, torch.Tensor)])
            for tensor in found if isinstance(found, (tuple, list)) else (found,):
                if moved and _is_result(tensor):
                    _move(tensor, moved, args[0] if operation.overloadpacket is aten.addmm else None)
        return found


def _move(result: torch.Tensor, moved: int, bias: torch.Tensor | None) -> None:
    """In place; a bias to which nothing was added is exact on every processor."""
    factor = 1.0 + moved * torch.finfo(result.dtype).eps
    if bias is None:
        result.mul_(factor)
    else:
        result.copy_(torch.where(result == bias, result, result * factor))


def _is_result(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return False
    # In half precision a unit in the last place is no rounding: kernels add in float32 and round once.
    return value.dtype in (torch.float32, torch.float64) and value.device.type == "cpu"


_mode = ShapedRounding()


def pytest_sessionstart() -> None:
    _mode.__enter__()


def pytest_sessionfinish() -> None:
    _mode.__exit__(None, None, None)
