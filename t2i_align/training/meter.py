"""Counts what a piece of torch code holds in memory and computes, operation by operation, also on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


COUNTS = {
    **flop_registry,  # torch knows the attention of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class Meter(TorchDispatchMode):
    """Inside, every storage that an operation makes is counted until nothing refers to it.

    Works on real tensors and on fake ones, whose operations only work out shapes. A kernel's own workspace, the
    allocator's gaps and what existed before are not counted.

    Args:
        known: tensors that existed before, such as weights: their views are nothing new.

    Attributes:
        live, peak: bytes now, and at most so far.
        flops: of matrix products, convolutions and attention; a multiplication and an addition are two.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._storages: dict[int, Any] = {}
        for tensor in known:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        count = COUNTS.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: Any) -> None:
        self._storages.pop(key, None)
        self.live -= size
