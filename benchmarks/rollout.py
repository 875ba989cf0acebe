"""How much of a rollout is the network: sampling, branching and scoring against bare UNet passes of the same rows.

    python benchmarks/rollout.py --config configs/shapes/lpo.yaml --out runs/rollout.json

One rollout samples `rollout.prompts_per_rollout` prompts to the last step that may be branched; the pass counter says
how many rows went through the UNet, and the floor is those rows through the bare UNet in the same batches. Rounds
alternate and the best of each counts: seconds of the processor on a CPU, of the clock on a GPU. The judge's own
network (a latent reward model, a CLIP) is in the rollout and not in the floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from common import seconds, write_report

from t2i_align.backbones import Backbone, load_backbone
from t2i_align.config.loading import load_config
from t2i_align.config.schema import RunConfig
from t2i_align.stepwise.brancher import RolloutAddress
from t2i_align.stepwise.build import build_rollout, rollout_prompts
from t2i_align.stepwise.denoiser import PassCounter
from t2i_align.stepwise.rollout import RolloutPrompts


def rollout_of(
    run: RunConfig, backbone: Backbone, counter: PassCounter
) -> tuple[Callable[[int], object], RolloutPrompts]:
    """A function that samples one round, and the prompts it samples."""
    assert run.rollout is not None, "the configuration has no rollout section"
    parts = build_rollout(run, run.rollout, backbone, counter)
    texts = rollout_prompts(run.rollout, run.data, run.seed)[: run.rollout.prompts_per_rollout]
    size = (run.data.resolution, run.data.resolution)
    time_ids = backbone.time_ids(size, (0, 0), size)
    ids = None if time_ids is None else time_ids.to(backbone.device).repeat(len(texts), 1)
    prompts = RolloutPrompts(texts, torch.arange(len(texts)), backbone.encode_prompt(texts), ids)

    def sample(number: int) -> object:
        return parts.rollout.run(prompts, RolloutAddress(run.seed, number, range(len(texts))), version=0)

    return sample, prompts


@torch.no_grad()
def bare(backbone: Backbone, prompts: RolloutPrompts, side: int, rows: int, per_pass: int) -> None:
    """`rows` rows through the UNet, `per_pass` at a time."""
    repeats = -(-per_pass // len(prompts.texts))
    embeddings = prompts.embeddings.repeat(repeats)
    ids = None if prompts.time_ids is None else prompts.time_ids.repeat(repeats, 1)
    latents = torch.randn(repeats * len(prompts.texts), backbone.latent_channels, side, side, device=backbone.device)
    timesteps = torch.full((len(latents),), 500, device=backbone.device)
    for _ in range(-(-rows // len(latents))):
        backbone.predict(latents, timesteps, embeddings, ids)


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes/lpo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the configuration")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run = load_config(arguments.config, arguments.set)
    device, counter = Accelerator().device, PassCounter()
    dtype = torch.float32 if run.training.mixed_precision == "no" else torch.bfloat16
    backbone = load_backbone(run.model, device, dtype)
    sample, prompts = rollout_of(run, backbone, counter)
    pairs, _ = sample(0)  # type: ignore[misc]
    rows = counter.rollout + counter.scoring
    assert run.rollout is not None
    guided = 2 if run.rollout.guidance_scale > 1 else 1
    side = run.data.resolution // backbone.vae_scale_factor
    best = {"rollout": float("inf"), "bare": float("inf")}
    for number in range(1, arguments.rounds + 1):
        best["rollout"] = min(best["rollout"], seconds(lambda number=number: sample(number)))
        floor = seconds(lambda: bare(backbone, prompts, side, rows, guided * len(prompts.texts)))
        best["bare"] = min(best["bare"], floor)
    row = {
        "config": arguments.config,
        "prompts": len(prompts.texts),
        "UNet rows": rows,
        "pairs": len(pairs),
        "rollout s": best["rollout"],
        "prompts/s": len(prompts.texts) / best["rollout"],
        "bare passes s": best["bare"],
        "bare / rollout": best["bare"] / best["rollout"],
    }
    write_report(arguments.out, "Rollout", [row], device=str(device))


if __name__ == "__main__":
    main()
