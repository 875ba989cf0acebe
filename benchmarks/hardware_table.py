"""Which cards a run fits, by arithmetic on fake tensors at the published sizes: no GPU, no weights, nothing measured.

    python benchmarks/hardware_table.py --json runs/hardware-table.json
    python benchmarks/hardware_table.py --size sdxl-1024 --pairs 4

bf16, gradients kept between passes (gradient_accumulation_steps above 1), latents and prompts from a cache
(``data.cache_dir``), so that VAE and text encoders rest on the CPU; add ``ENCODER_GB`` without one. ``GB least`` has
every block recomputed, ``GB quickest`` none; ``model.gradient_checkpointing: auto`` chooses between them by what is
free. The 10 % that the trainer plans for beyond tensors are in all figures. A LoRA's reference is the base under the
disabled adapter and a precomputed one is a file: neither takes memory. Of a card's GiB a run is given ``USABLE``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from common import write_report
from step_arithmetic import ENCODER_GB, measure

from t2i_align.training.memory import ALLOWANCE, OPTIMIZER_BYTES

SIZES = {"sd15-512": ("sd15", 64), "sdxl-512": ("sdxl", 64), "sdxl-768": ("sdxl", 96), "sdxl-1024": ("sdxl", 128)}
CARDS = (8, 12, 16, 24, 48, 80)
USABLE = 0.95  # the driver, the CUDA context and the screen have the rest
GIB = 2**30


class Kind(NamedTuple):
    """What is trained, with which states, and beside which copy of the base.

    Attributes:
        full: the whole UNet instead of a LoRA of rank 8.
        optimizer: key of `OPTIMIZER_BYTES`.
        frozen_copy: whether a second UNet in half precision is the reference.
    """

    full: bool
    optimizer: str
    frozen_copy: bool


KINDS = {
    "LoRA of rank 8, AdamW": Kind(False, "adamw", False),
    "whole UNet, AdamW, live reference": Kind(True, "adamw", True),
    "whole UNet, Adafactor, live reference": Kind(True, "adafactor", True),
    "whole UNet, 8-bit AdamW, precomputed or no reference": Kind(True, "adamw_8bit", False),
}


def total_gb(found: dict[str, float], kind: Kind) -> float:
    """Of one training process, from what `measure` found for its pass."""
    trained = found["optimiser GB"] / OPTIMIZER_BYTES["adamw"]
    copy = 2 * found["parameters"] / 1e9 if kind.frozen_copy else 0.0
    return (found["weights GB"] + trained * OPTIMIZER_BYTES[kind.optimizer] + copy + found["step GB"]) * ALLOWANCE


def smallest_card(gigabytes: float) -> str:
    """The first of `CARDS` that holds so many GB (1e9 bytes), in GiB as cards are sold."""
    return next((f"{card} GB" for card in CARDS if gigabytes * 1e9 <= card * GIB * USABLE), "more")


def rows(size: str, pairs: int) -> list[dict[str, Any]]:
    """The table's rows of one model and resolution."""
    family, side = SIZES[size]
    found = {
        (full, recompute): measure(family, side, 2 * pairs, full=full, recompute=recompute, accumulate=True)
        for full in (False, True)
        for recompute in (True, False)
    }
    result = []
    for name, kind in KINDS.items():
        least, quickest = (total_gb(found[kind.full, recompute], kind) for recompute in (True, False))
        row = {"size": size, "trained": name, "GB least": round(least, 1), "fits": smallest_card(least)}
        result.append(row | {"GB quickest": round(quickest, 1), "without recomputing": smallest_card(quickest)})
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1, help="pairs that go through the UNet at once")
    parser.add_argument("--size", choices=SIZES, action="append", help="only these")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = [row for size in arguments.size or SIZES for row in rows(size, arguments.pairs)]
    title = f"hardware, by arithmetic, bf16, {arguments.pairs} pair(s) at once; encoders on the GPU add {ENCODER_GB} GB"
    write_report(arguments.json, title, table)


if __name__ == "__main__":
    main()
