"""Attention kernels at the shapes of the published UNets: time of a forward and backward pass, and how far they agree.

    python benchmarks/attention.py --json runs/attention.json
    python benchmarks/attention.py --size sdxl-1024 --dtype bfloat16 --pictures 16

Kernels take turns on the same inputs; medians count. ``error`` is the largest difference of outputs and gradients from
attention written out in float32, over the largest value there. A kernel that cannot run a shape shows why.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import write_report
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from t2i_align.backbones.attention import KERNELS

PROMPT = 77
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """One attention layer: queries of `tokens` positions, `heads` of `width` channels, keys of `context` positions."""

    tokens: int
    heads: int
    width: int
    context: int

    def __str__(self) -> str:
        return f"{self.tokens} x {self.context}, {self.heads} heads of {self.width}"


def _levels(*levels: tuple[int, int, int]) -> list[Shape]:
    """Self- and cross-attention of every (tokens, heads, width)."""
    return [Shape(*level, context) for level in levels for context in (level[0], PROMPT)]


SIZES = {
    "shapes": _levels((64, 3, 32), (16, 3, 32)),
    "sd15": _levels((4096, 8, 40), (1024, 8, 80), (256, 8, 160)),
    "sdxl-512": _levels((1024, 10, 64), (256, 20, 64)),
    "sdxl-1024": _levels((4096, 10, 64), (1024, 20, 64)),
}


def kernels(device: str) -> dict[str, Kernel]:
    """Everything that may run on the device, by the name `model.attention` gives it."""
    found: dict[str, Kernel] = {"sdpa": scaled_dot_product_attention, **{name: _pinned(name) for name in KERNELS}}
    if device == "cuda":
        found |= {"xformers": _xformers, "flex, compiled": _flex()}
    return found


def _pinned(name: str) -> Kernel:
    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(KERNELS[name]):
            return scaled_dot_product_attention(query, key, value)

    return kernel


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    swapped = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return memory_efficient_attention(*swapped).transpose(1, 2)


def _flex() -> Kernel:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def run(kernel: Kernel, inputs: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and backward pass; output and gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    started = time.perf_counter()
    output = kernel(*leaves)
    output.sum().backward()
    if output.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, [output.detach(), *(leaf.grad for leaf in leaves)]


def compare(shape: Shape, pictures: int, dtype: torch.dtype, device: str, rounds: int) -> list[dict[str, Any]]:
    """One row per kernel."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.tokens, shape.context, shape.context)
    draws = [torch.randn(pictures, shape.heads, size, shape.width, generator=generator) for size in sizes]
    inputs = [draw.to(device, dtype) for draw in draws]
    exact = run(lambda q, k, v: ((q @ k.mT) / shape.width**0.5).softmax(-1) @ v, [i.float() for i in inputs])[1]
    seconds: dict[str, list[float]] = {}
    notes: dict[str, Any] = {}
    for turn in range(rounds + 1):  # the first turn warms up, and says what runs
        for name, kernel in kernels(device).items():
            if turn and name not in seconds:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    took, found = run(kernel, inputs)
            except (RuntimeError, ValueError, ImportError) as error:
                notes[name] = f"cannot: {str(error).strip().splitlines()[0][:60]}"
                continue
            seconds.setdefault(name, []).append(took)
            if not turn:
                pairs = zip(found, exact, strict=True)
                notes[name] = max(float((ours.float() - true).abs().max() / true.abs().max()) for ours, true in pairs)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    best = min(medians, key=lambda name: medians[name])
    return [
        {
            "shape": str(shape),
            "kernel": name + (" *" if name == best else ""),
            "ms": medians[name] * 1e3 if name in medians else None,
            "error": note,
        }
        for name, note in notes.items()
    ]


def main() -> None:
    """Print the table; a star marks the fastest at a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="only these; all on a GPU, shapes on a CPU")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = arguments.dtype or ("bfloat16" if device == "cuda" else "float32")
    rows = []
    for size in arguments.size or (list(SIZES) if device == "cuda" else ["shapes"]):
        for shape in SIZES[size]:
            found = compare(shape, arguments.pictures, getattr(torch, dtype), device, arguments.rounds)
            rows += [{"size": size, **row} for row in found]
    write_report(arguments.json, f"attention, {arguments.pictures} pictures, {dtype} on {device}", rows)


if __name__ == "__main__":
    main()
