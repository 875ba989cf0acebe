"""What one network pass for winner and loser saves: time and losses of a training step, shared against plain.

    python benchmarks/shared_pass.py --pairs 16 --rounds 5

Both take the same pairs of the shapes world; rounds alternate, the best of each counts.
"""

from __future__ import annotations

import argparse
import time

import torch
from accelerate import Accelerator

from t2i_align import objectives
from t2i_align.backbones import load_backbone
from t2i_align.config.loading import load_config
from t2i_align.stepwise.build import build_stepwise
from t2i_align.stepwise.config import RolloutConfig


def main() -> None:
    """Print seconds per step, their ratio and the largest difference of a pair's loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes/dpo.yaml")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    run = load_config(arguments.config, [f"training.train_batch_size={arguments.pairs}"])
    values = {
        "scorer": {"name": "channel_mean"},
        "threshold": {"schedule": "constant", "low": 0.0},
        "prompts_per_rollout": 4,
        "guidance_scale": 3.0,
    }
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    objective = objectives.resolve(run.objective)
    backbone = load_backbone(run.model, accelerator.device, torch.float32)
    steps = {}
    for shared in (True, False):
        rollout = RolloutConfig.model_validate({**values, "shared_pass": shared})
        steps[shared] = build_stepwise(run, rollout, backbone, objective, accelerator)
    batch = steps[True].provider.batch(0, 0)
    with torch.no_grad():  # away from the reference, where every loss is log 2
        for parameter in backbone.trainable_parameters():
            parameter += 1e-3 * parameter.abs().mean() * torch.randn_like(parameter)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    losses = {}
    for _ in range(arguments.rounds):
        for shared, parts in steps.items():
            started = time.perf_counter()
            losses[shared] = parts.step.loss(batch, None, 0)[0].loss
            losses[shared].mean().backward()
            seconds[shared].append(time.perf_counter() - started)
    fast, plain = min(seconds[True]), min(seconds[False])
    print(f"{len(batch)} pairs: shared {fast:.3f} s, plain {plain:.3f} s, ratio {plain / fast:.2f}")
    print(
        f"largest difference of a loss: {(losses[True] - losses[False]).abs().max():.2g} of {losses[True].mean():.4f}"
    )


if __name__ == "__main__":
    main()
