"""Does a cache of a million pairs start, shuffle, resume and read like one of a thousand?

    python benchmarks/growth.py --folder /scratch/growth --out runs/growth.json

Every size gets a parquet source and a cache with small latents, written as shards without any encoder, and a process
of its own that opens them as a run does: once when nobody has looked at the pairs yet, then again. Columns: seconds
of the processor until the first batch stands there; of a resumed run's first batch, in its fourth pass over the data;
pairs read per second in shuffled order; memory of the process (anonymous, and mapped files, which the system may take
back) before opening, at the first batch and after `--batches` batches. The folder is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import write_report

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.config.schema import RunConfig
from t2i_align.data.cache_build import SHARD_PROMPTS
from t2i_align.data.cache_key import CacheKey
from t2i_align.data.cache_store import key_of, write_shard
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import open_table

LATENTS = (4, 4, 4)
PROMPT = (2, 8)
PAIRS_OF_A_PROMPT = 4
SHARD_PAIRS = 256
BATCH = 16


class NoModel:
    """What a provider asks of a backbone, without one."""

    vae_scale_factor = 8
    unet = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,)))

    def encoder_fingerprint(self) -> str:
        """Always the same."""
        return "none"

    def empty_prompt(self, count: int) -> PromptEmbeddings:
        """Zeros."""
        return PromptEmbeddings(torch.zeros(count, *PROMPT), None)

    def time_ids(self, *sizes: object) -> None:
        """No micro-conditioning."""


def run_config(folder: Path) -> RunConfig:
    """A run on the folder's pairs."""
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"pretrained_model_name_or_path": "none"},
            "data": {"source": str(folder / "pairs.parquet"), "cache_dir": str(folder / "cache"), "resolution": 32},
            "objective": {"preset": "dpo"},
            "training": {"max_train_steps": 1, "learning_rate": 1e-5, "train_batch_size": BATCH},
        }
    )


def write_source(folder: Path, count: int) -> None:
    """Pairs whose pictures are a few bytes that nobody decodes."""
    folder.mkdir(parents=True)
    numbers = range(count)
    columns = {
        "ranking_id": [f"pair {i}" for i in numbers],
        "caption": [f"a picture of the thing with number {i // PAIRS_OF_A_PROMPT}, in some detail" for i in numbers],
        "jpg_0": [f"{i} left".encode() for i in numbers],
        "jpg_1": [f"{i} right".encode() for i in numbers],
        "label_0": [float(i % 2) for i in numbers],
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet", row_group_size=4096)


def write_cache(folder: Path, count: int) -> None:
    """The shards that `t2i-align data cache` would have written."""
    config = run_config(folder).data
    table, cache = open_table(config.source), folder / "cache"
    cache.mkdir()
    CacheKey.of(config, NoModel().encoder_fingerprint(), [table]).write(cache)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, SHARD_PAIRS):
        rows = range(start, min(start + SHARD_PAIRS, count))
        pictures = torch.tensor([[key_of(f"{i} {side}") for side in ("left", "right")] for i in rows])
        latents = torch.randn(2 * len(rows), 1, *LATENTS, generator=generator)
        tensors = {
            "pairs": torch.tensor([key_of(table.fingerprint, f"pair {i}") for i in rows]),
            "pair_pictures": pictures,
            "pictures": pictures.flatten().clone(),
            "latents": latents,
            "original_size": torch.full((2 * len(rows), 2), 32, dtype=torch.int32),
            "crop": torch.zeros(2 * len(rows), 1, 2, dtype=torch.int32),
        }
        write_shard(cache, "pictures", tensors, {"rejected": "{}"})
    captions = list(dict.fromkeys(table.columns.captions))
    for start in range(0, len(captions), SHARD_PROMPTS):
        shard = captions[start : start + SHARD_PROMPTS]
        hidden = torch.randn(len(shard), *PROMPT, generator=generator)
        write_shard(cache, "prompts", {"captions": torch.tensor([key_of(c) for c in shard]), "hidden": hidden}, {})


def memory_mb() -> dict[str, float]:
    """Resident anonymous and file-backed megabytes of this process (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[f"Rss{name}"].split()[0]) / 1024 for name in ("Anon", "File")}


def open_and_read(folder: Path, batches: int) -> dict[str, float]:
    """What one start and its reading cost; runs in a process of its own."""
    config, before = run_config(folder), memory_mb()
    clock, started = time.perf_counter(), time.process_time()
    provider = PairProvider(config, NoModel(), batch_size=BATCH, accumulation=1, device="cpu")  # type: ignore[arg-type]
    provider.batch(0, 0)
    start, start_clock, opened = time.process_time() - started, time.perf_counter() - clock, memory_mb()
    started = time.process_time()
    provider.batch(3 * provider.num_pairs // BATCH + 7, 0)
    resume = time.process_time() - started
    started = time.process_time()
    for step in range(1, batches + 1):
        provider.batch(step, 0)
    reading, after = time.process_time() - started, memory_mb()
    return {
        "start s": start,
        "start clock s": start_clock,
        "resume s": resume,
        "pairs/s": batches * BATCH / reading,
        "MB before": before["Anon"] + before["File"],
        "anon MB at start": opened["Anon"] - before["Anon"],
        "anon MB after": after["Anon"] - before["Anon"],
        "mapped MB after": after["File"] - before["File"],
    }


def measured(folder: Path, batches: int) -> dict[str, float]:
    """`open_and_read` in another process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    words = [sys.executable, __file__, "--open", str(folder), "--batches", str(batches)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, action="append", help="default: 1000, 100000 and 1000000")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("runs/growth"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open is not None:
        print(json.dumps(open_and_read(arguments.open, arguments.batches)))
        return
    rows = []
    for count in arguments.pairs or [1_000, 100_000, 1_000_000]:
        folder = arguments.folder / str(count)
        shutil.rmtree(folder, ignore_errors=True)
        write_source(folder, count)
        write_cache(folder, count)
        for look in ("first", "later"):
            rows.append({"pairs": count, "start": look, **measured(folder, arguments.batches)})
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows[-1]["GB on disk"] = rows[-2]["GB on disk"] = size / 1e9
        shutil.rmtree(folder)
    write_report(arguments.out, "Growth", rows, numpy=np.__version__)


if __name__ == "__main__":
    main()
