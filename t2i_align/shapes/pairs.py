"""Preference pairs of the base model's own samples, labelled by the oracle, in the schema of Pick-a-Pic v2."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from .assets import resolve
from .oracle import Oracle
from .render import contact_sheet
from .sampling import load_pipeline, sample
from .world import split_prompts

logger = logging.getLogger(__name__)

TIE_MARGIN = 0.006  # differences of the overall score up to this are ties: about one pair in ten
NUM_ANNOTATORS = 25  # ids that the rows are dealt to; they all judge as the oracle does
PROMPTS_PER_SPLIT = {"train": 600, "heldout": 200}
JPEG_QUALITY = 95
MODEL_NAME = "shapes-base"
START = datetime(2024, 1, 1)

SCHEMA = pa.schema(
    [
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("created_at", pa.timestamp("ns")),
        ("caption", pa.string()),
        ("image_0_uid", pa.string()),
        ("image_1_uid", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("best_image_uid", pa.string()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("are_different", pa.bool_()),
        ("has_label", pa.bool_()),
        ("num_example_per_prompt", pa.int64()),
    ]
)


def run(
    model: str | Path, output_dir: str | Path, num_train: int = 1000, num_heldout: int = 200, seed: int = 0
) -> Path:
    """Sample, label and write `pairs/{train,heldout}.parquet`, `prompts/*.txt` and a sheet; returns `output_dir`.

    `model` is a pipeline folder or `shapes:base`. The prompts of the two splits have none in common.
    """
    folder = Path(output_dir)
    pipeline = load_pipeline(resolve(str(model)) if str(model).startswith("shapes:") else model)
    train, heldout = split_prompts(PROMPTS_PER_SPLIT["train"], PROMPTS_PER_SPLIT["heldout"], seed)
    for number, (split, prompts, count) in enumerate((("train", train, num_train), ("heldout", heldout, num_heldout))):
        (folder / "prompts").mkdir(parents=True, exist_ok=True)
        (folder / "prompts" / f"{split}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
        rows = build_pairs(pipeline, prompts, count, seed=seed, split_number=number)
        path = folder / "pairs" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd", compression_level=22)
        ties = sum(row["label_0"] == 0.5 for row in rows) / len(rows)
        logger.info("%s: %d pairs, %.1f %% ties, %.2f MB", path, count, 100 * ties, path.stat().st_size / 1e6)
        write_sheet(rows, folder / "pairs" / f"{split}.png")
    return folder


def build_pairs(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    count: int,
    seed: int,
    split_number: int = 0,
    tie_margin: float = TIE_MARGIN,
) -> list[dict[str, Any]]:
    """`count` rows: two samples of one prompt each, prompts in turn.

    Both pictures of a pair have seeds of their own, which no other row, split or `seed` shares. The oracle judges
    the pictures as they are stored, after compression.
    """
    captions = [prompts[i % len(prompts)] for i in range(count)]
    first_seed = (seed * 10 + split_number) * 10_000_000
    seeds = [first_seed + i for i in range(2 * count)]
    sampled = sample(pipeline, [caption for caption in captions for _ in range(2)], seeds)
    files = [encode_jpeg(image) for image in sampled]
    decoded = [Image.open(io.BytesIO(file)) for file in files]
    overall = Oracle().score([caption for caption in captions for _ in range(2)], decoded)["overall"]
    per_prompt = Counter(captions)
    rng = np.random.default_rng([seed, 5, split_number])
    rows = []
    for i, caption in enumerate(captions):
        label = preference(overall[2 * i], overall[2 * i + 1], tie_margin)
        uids = [hashlib.sha1(f"{s}/{caption}".encode()).hexdigest()[:16] for s in seeds[2 * i : 2 * i + 2]]
        rows.append(
            {
                "ranking_id": first_seed // 1000 + i,
                "user_id": int(rng.integers(NUM_ANNOTATORS)),
                "created_at": START + timedelta(minutes=i),
                "caption": caption,
                "image_0_uid": uids[0],
                "image_1_uid": uids[1],
                "jpg_0": files[2 * i],
                "jpg_1": files[2 * i + 1],
                "model_0": MODEL_NAME,
                "model_1": MODEL_NAME,
                "best_image_uid": {1.0: uids[0], 0.0: uids[1]}.get(label, ""),
                "label_0": label,
                "label_1": 1.0 - label,
                "are_different": files[2 * i] != files[2 * i + 1],
                "has_label": True,
                "num_example_per_prompt": per_prompt[caption],
            }
        )
    return rows


def preference(score_0: float, score_1: float, tie_margin: float) -> float:
    """Label of picture 0: 1 where it is better, 0 where it is worse, 0.5 within `tie_margin`."""
    if abs(score_0 - score_1) <= tie_margin:
        return 0.5
    return 1.0 if score_0 > score_1 else 0.0


def encode_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG without chroma subsampling, which would smear the small coloured figures."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def write_sheet(rows: Sequence[dict[str, Any]], path: Path, count: int = 32) -> None:
    """A sheet of pairs, the preferred picture on the left of each."""
    images = []
    for row in [row for row in rows if row["label_0"] != 0.5][:count]:
        order = ("jpg_0", "jpg_1") if row["label_0"] == 1.0 else ("jpg_1", "jpg_0")
        images += [Image.open(io.BytesIO(row[name])) for name in order]
    if images:
        contact_sheet(images, columns=8).save(path)
