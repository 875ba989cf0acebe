"""Does a cache cost what its encoders cost, and does it give pairs faster than training takes them?

    python benchmarks/cache.py --config configs/shapes/dpo.yaml --out runs/cache.json

Building: `t2i-align data cache` against the bare encoders on the same pictures and prompts, already decoded, in the
same batches; rounds alternate, the best of each counts. Reading: batches of the finished cache in shuffled order,
against training steps of the same configuration. Seconds of the processor are given on a CPU, where other work does
not count against them, and seconds of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from common import seconds, write_report

from t2i_align import objectives
from t2i_align.backbones import Backbone, load_backbone
from t2i_align.config.loading import load_config
from t2i_align.config.schema import RunConfig
from t2i_align.data.cache import build_cache
from t2i_align.data.cache_build import PROMPT_BATCH, unique_captions
from t2i_align.data.cache_pictures import PICTURE_BATCH
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import decode
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import has_heldout, open_source
from t2i_align.data.transform import Geometry, PairTransform
from t2i_align.training.step import Draws, PairStep


def sources_of(run: RunConfig) -> list[PairSource]:
    """Training and held-out pairs, all of which a cache holds."""
    sources = [open_source(run.data)]
    return [*sources, open_source(run.data, "heldout")] if has_heldout(run.data) else sources


def bare_encoders(run: RunConfig, backbone: Backbone) -> Callable[[], None]:
    """The encoders' work for the run's pairs, with everything else done beforehand."""
    sources, transform = sources_of(run), PairTransform(run.data.resolution)
    files = dict.fromkeys(data for one in sources for index in range(len(one)) for data in one.images(index))
    pixels = torch.stack([transform(decode(data), Geometry()).pixels for data in files])
    captions = list(dict.fromkeys(caption for one in sources for caption in unique_captions(one)))

    def work() -> None:
        for start in range(0, len(captions), PROMPT_BATCH):
            backbone.encode_prompt(captions[start : start + PROMPT_BATCH])
        for start in range(0, len(pixels), PICTURE_BATCH):
            backbone.encode_image(pixels[start : start + PICTURE_BATCH])

    return work


def encoding(run: RunConfig, backbone: Backbone, rounds: int) -> dict[str, float]:
    """Pairs per second of both, and their ratio."""
    work, count = bare_encoders(run, backbone), sum(map(len, sources_of(run)))
    best = {"bare": float("inf"), "cache": float("inf")}
    for _ in range(rounds):
        best["bare"] = min(best["bare"], seconds(work))
        with tempfile.TemporaryDirectory() as folder:
            data = run.data.model_copy(update={"cache_dir": folder})
            best["cache"] = min(best["cache"], seconds(lambda data=data: build_cache(data, backbone)))
    return {
        "encoders pairs/s": count / best["bare"],
        "building pairs/s": count / best["cache"],
        "building / encoders": best["bare"] / best["cache"],
    }


def reading(run: RunConfig, backbone: Backbone, batches: int, steps: int) -> dict[str, float]:
    """Pairs per second from the cache and through the training step, and their ratio."""
    accelerator, objective = Accelerator(), objectives.resolve(run.objective)
    size = run.training.train_batch_size
    provider = PairProvider(run, backbone, batch_size=size, accumulation=1, device=accelerator.device)
    step = PairStep(backbone, objective, run.seed, run.training.max_train_steps, accelerator)
    provider.batch(0, 0)
    read = seconds(lambda: [provider.batch(index, 0) for index in range(1, batches + 1)])
    batch = provider.batch(0, 0)

    def train() -> None:
        for index in range(steps):
            step.loss(batch, Draws("train", index), 0)[0].loss.mean().backward()

    step.loss(batch, Draws("train", 0), 0)[0].loss.mean().backward()  # warm up
    trained = seconds(train)
    provider.close()
    rates = {"reading pairs/s": batches * size / read, "training pairs/s": steps * size / trained}
    return {**rates, "reading / training": rates["reading pairs/s"] / rates["training pairs/s"]}


def main() -> None:
    """Print the tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes/dpo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the configuration")
    parser.add_argument("--max-pairs", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        only = [f"data.cache_dir={folder}/cache", f"data.max_pairs={arguments.max_pairs}"]
        run = load_config(arguments.config, [*arguments.set, *only])
        device = Accelerator().device
        dtype = torch.float32 if run.training.mixed_precision == "no" else torch.bfloat16
        backbone = load_backbone(run.model, device, dtype)
        build_cache(run.data, backbone)
        row = {
            "config": arguments.config,
            **encoding(run, backbone, arguments.rounds),
            **reading(run, backbone, arguments.batches, arguments.steps),
        }
    write_report(arguments.out, "Cache", [row], pairs=arguments.max_pairs, device=str(device))


if __name__ == "__main__":
    main()
