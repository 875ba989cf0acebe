"""How fast is `score`, side by side with the bare image tower and with loading the model per call?

    python benchmarks/reward_throughput.py --size ViT-B/32 --images 64 --device auto --out throughput.json

One run, one random-weight tower, three ways in turn, best of several rounds:

* bare: the image tower alone on tensors that are preprocessed and on the device;
* score: `scorer.score` on decoded 512-pixel pictures, preprocessing included;
* per call: the HPS v2 package's habit of loading the checkpoint for every scored picture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reward_models import load
from reward_models.checkpoints import write_random
from reward_models.clip_like import ClipLikeScorer

SIZES = {"ViT-B/32": "ViT-B-32", "ViT-L/14": "ViT-L-14", "ViT-H/14": "ViT-H-14"}


def pictures(count: int) -> list[Image.Image]:
    """Decoded 512 x 512 pictures."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(count)]


def seconds(work: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Time of one call, waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(
    size: str, count: int, batch_size: int, device: str, dtype: str, rounds: int, clock: str = "wall"
) -> dict[str, Any]:
    """Pictures per second of the three ways."""
    images = pictures(count)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_random("hpsv2.1", Path(folder) / "model", SIZES[size])
        scorer = load("hpsv2.1", checkpoint, device, dtype)
        assert isinstance(scorer, ClipLikeScorer)
        inputs = torch.stack([scorer.preprocessor(image) for image in images[:batch_size]]).to(scorer.device)
        batches = -(-count // batch_size)

        @torch.no_grad()
        def bare() -> None:
            for _ in range(batches):
                scorer.tower.encode_image(inputs)

        def score() -> None:
            scorer.score("a red fox", images, batch_size)

        def per_call() -> None:
            load("hpsv2.1", checkpoint, device, dtype).score("a red fox", images[:1])

        if clock == "cpu" and scorer.device.type != "cpu":
            raise SystemExit(f"--clock cpu does not see what a {scorer.device.type} does: leave it out")
        now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        bare(), score()  # warm up
        best = {"bare": float("inf"), "score": float("inf")}
        for _ in range(rounds):  # in turn, so that a busy machine hits both
            best["bare"] = min(best["bare"], seconds(bare, scorer.device, now))
            best["score"] = min(best["score"], seconds(score, scorer.device, now))
        calling = min(seconds(per_call, scorer.device, now) for _ in range(2))
    rates = {"bare": batches * batch_size / best["bare"], "score": count / best["score"], "per_call": 1 / calling}
    where = torch.cuda.get_device_name() if scorer.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "size": size,
        "device": where,
        "dtype": dtype,
        "clock": clock,
        "batch_size": batch_size,
        "images_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "score_over_bare": round(rates["score"] / rates["bare"], 4),
        "score_over_per_call": round(rates["score"] / rates["per_call"], 1),
    }


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), action="append", help="default: ViT-B/32 and ViT-L/14")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: CPU seconds, for a machine that others use too"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = arguments.size or ["ViT-B/32", "ViT-L/14"]
    rest = [vars(arguments)[name] for name in ("images", "batch_size", "device", "dtype", "rounds", "clock")]
    results = [measure(size, *rest) for size in sizes]
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
