"""What a training step computes and holds at the published sizes, worked out on fake tensors: no GPU, no weights.

    python benchmarks/step_arithmetic.py --json runs/step-arithmetic.json
    python benchmarks/step_arithmetic.py --rate 650 --pairs 4        # TFLOP/s that the card's matrix products reach

TFLOP are of matrix products, convolutions and attention, a multiply and an add being two. ``floor s`` is the time of a
DPO step at the given rate if nothing else took any; the share of it that a run reaches is its share of the matrix rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write_report
from random_models import unet_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from t2i_align.backbones.adapters import add_lora, train_everything
from t2i_align.backbones.frugal import keep_less
from t2i_align.backbones.precision import autocast_inside
from t2i_align.config.schema import LoraConfig
from t2i_align.training.memory import ALLOWANCE, OPTIMIZER_BYTES, forward_and_backward
from t2i_align.training.meter import Meter

SIZES = {"sd15": ("sd15", 64), "sdxl-512": ("sdxl", 64), "sdxl-1024": ("sdxl", 128)}
ENCODER_GB = {"sd15": 0.42, "sdxl": 1.80}  # VAE and text encoders in half precision
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, torch's own layers": {"own_layers": True},
    "LoRA, recomputed": {"recompute": True},
    "LoRA, recomputed, 8-bit": {"recompute": True, "optimizer": "adamw_8bit"},
    "full, recomputed, 8-bit": {"recompute": True, "optimizer": "adamw_8bit", "full": True},
}


def measure(
    family: str,
    side: int,
    rows: int,
    *,
    full: bool = False,
    recompute: bool = False,
    own_layers: bool = False,
    optimizer: str = "adamw",
    accumulate: bool = False,
) -> dict[str, float]:
    """FLOPs and bytes of a policy pass over `rows` pictures with its backward, in bf16.

    Args:
        side: of the latents.
        accumulate: gradients of an earlier pass are there and are added to, as with gradient_accumulation_steps > 1.
    """
    unet = unet_of(family, "meta").eval()
    autocast_inside(unet, CPU, torch.bfloat16)
    if full:
        train_everything(unet)
    else:
        unet.to(torch.bfloat16)
        add_lora(unet, LoraConfig(rank=8), torch.bfloat16)
    if not own_layers:
        keep_less(unet)
    if recompute:
        unet.enable_gradient_checkpointing()
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in unet.parameters())
    with FakeTensorMode():
        given = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in tensors(unet)
        }
        inputs = [torch.zeros(rows, 4, side, side), torch.zeros(rows, dtype=torch.long)]
        hidden = torch.zeros(rows, 77, unet.config.cross_attention_dim, dtype=torch.bfloat16)
        condition = {"encoder_hidden_states": hidden, "return_dict": False}
        if family == "sdxl":
            added = {"text_embeds": torch.zeros(rows, 1280), "time_ids": torch.zeros(rows, 6)}
            condition["added_cond_kwargs"] = added
        for weight in given.values() if accumulate else ():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        kept = [weight.grad for weight in given.values() if weight.grad is not None]
        with Meter([*given.values(), *kept, *inputs, hidden]) as meter:
            forward_and_backward(unet, given, inputs, condition)
        with torch.no_grad(), Meter() as forward:
            functional_call(unet, given, tuple(inputs), condition)
    state = OPTIMIZER_BYTES[optimizer] * trained
    step = meter.peak + (4 * trained if accumulate else 0)
    total = (weights + state + step + ENCODER_GB[family] * 1e9) * ALLOWANCE
    parts = {"weights GB": weights / 1e9, "optimiser GB": state / 1e9, "step GB": step / 1e9, "total GB": total / 1e9}
    return {"forward": forward.flops, "both": meter.flops, "parameters": unet_parameters(unet), **parts}


def unet_parameters(unet: nn.Module) -> int:
    """Numbers of the network without its adapters."""
    return sum(parameter.numel() for name, parameter in unet.named_parameters() if "lora_" not in name)


def tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return [*network.named_parameters(), *network.named_buffers()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1, help="pairs that go through the UNet at once")
    parser.add_argument(
        "--rate", type=float, default=650.0, help="TFLOP/s of bf16 matrix products, measured on the card"
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="only these")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for size in arguments.size or SIZES:
        family, side = SIZES[size]
        for kind, options in KINDS.items():
            found = measure(family, side, 2 * arguments.pairs, **options)
            live = (found["both"] + found["forward"]) / 1e12 / arguments.pairs
            kept = found["both"] / 1e12 / arguments.pairs
            row = {"size": size, "kind": kind, "TFLOP/pair, live reference": live, "precomputed": kept}
            row |= {"floor s, live": arguments.pairs * live / arguments.rate}
            row |= {"floor s, precomputed": arguments.pairs * kept / arguments.rate}
            rows.append(row | {"step GB": found["step GB"], "total GB": found["total GB"]})
    title = f"step arithmetic, bf16, {arguments.pairs} pairs at once, {arguments.rate:g} TFLOP/s"
    write_report(arguments.json, title, rows)


if __name__ == "__main__":
    main()
