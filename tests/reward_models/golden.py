"""Access to the numbers of the official code, and small helpers shared by these tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "reward_models"
TOKENIZER = GOLDEN / "tokenizer"


@cache
def expected(folder: str) -> dict[str, Any]:
    return json.loads((GOLDEN / folder / "expected.json").read_text())


@cache
def arrays(folder: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / folder / "arrays.npz"))


def image_path(name: str) -> Path:
    return GOLDEN / "images" / f"{name}.png"


def image_paths(folder: str) -> list[Path]:
    return [image_path(name) for name in expected(folder)["images"]]


def noise_image(seed: int, width: int = 80, height: int = 64) -> Image.Image:
    """A reproducible RGB picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def table(scorer: Any, folder: str, columns: int | None = None) -> np.ndarray:
    """Scores of every prompt (row) with every picture (column) of a golden file."""
    paths = image_paths(folder)[:columns]
    return np.stack([scorer.score(prompt, paths).numpy() for prompt in expected(folder)["prompts"]])
