"""Tiny hand-made data sets, and an encoder that costs nothing."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.config.schema import DataConfig, RunConfig


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 16, height: int = 16) -> bytes:
    """The file of a random picture."""
    return encoded(picture(seed, width, height))


def pickapic(labels: list[float | None], **columns: list) -> dict[str, list]:
    """Columns of a Pick-a-Pic table: pair i compares pictures 2i and 2i + 1 for the caption "prompt i"."""
    count = len(labels)
    table = {
        "ranking_id": list(range(count)),
        "caption": [f"prompt {i}" for i in range(count)],
        "jpg_0": [png(2 * i) for i in range(count)],
        "jpg_1": [png(2 * i + 1) for i in range(count)],
        "label_0": labels,
    }
    return {name: values for name, values in {**table, **columns}.items() if values}


def write_parquet(path: Path, columns: dict[str, list], rows_per_group: int = 3) -> Path:
    """A parquet file of several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """A JSONL file, and every picture that its rows name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = sorted({name for row in rows for name in [row.get("image_0"), row.get("image_1"), *row.get("images", [])]
                    if isinstance(name, str)})  # fmt: skip
    for seed, name in enumerate(names):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(png(seed))
    return path


def data_config(source: Path | str, **options: Any) -> DataConfig:
    """The data section of a run on 16 pixel pictures."""
    return DataConfig.model_validate({"source": str(source), "resolution": 16, **options})


def run_config(source: Path | str, seed: int = 0, **options: Any) -> RunConfig:
    """A run with this data section."""
    return RunConfig.model_validate(
        {
            "output_dir": "unused",
            "seed": seed,
            "model": {"pretrained_model_name_or_path": "unused"},
            "data": data_config(source, **options).model_dump(),
            "objective": {"preset": "dpo"},
            "training": {"max_train_steps": 1, "learning_rate": 1e-5},
        }
    )


class FakeBackbone:
    """Encodes pictures by averaging 4 x 4 pixels and prompts by hashing; counts what it was asked."""

    vae_scale_factor = 4

    def __init__(self, fingerprint: str = "encoder one", pooled: bool = True) -> None:
        self.fingerprint, self.pooled = fingerprint, pooled
        self.unet = SimpleNamespace(config=SimpleNamespace(block_out_channels=(8, 8)))
        self.images_encoded = 0
        self.prompts_encoded: list[str] = []
        self.tokenizers: list = []  # none that could cut a caption
        self.told_of_cut_captions = False

    def encoder_fingerprint(self) -> str:
        return self.fingerprint

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.float32 and pixels.abs().max() <= 1
        self.images_encoded += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def encode_prompt(self, prompts: list[str]) -> PromptEmbeddings:
        self.prompts_encoded += prompts
        hidden = torch.stack([self._states(prompt) for prompt in prompts])
        return PromptEmbeddings(hidden, hidden.mean(1) if self.pooled else None)

    def empty_prompt(self, count: int) -> PromptEmbeddings:
        return PromptEmbeddings(torch.zeros(count, 5, 6), torch.zeros(count, 6) if self.pooled else None)

    def time_ids(self, original_size: list, crop_top_left: list, target_size: list) -> torch.Tensor:
        columns = [torch.tensor(pair, dtype=torch.float32) for pair in (original_size, crop_top_left, target_size)]
        return torch.cat(columns, dim=1)

    @staticmethod
    def _states(prompt: str) -> torch.Tensor:
        digest = hashlib.blake2b(prompt.encode(), digest_size=30).digest()
        return torch.tensor(list(digest), dtype=torch.float32).reshape(5, 6) / 255
