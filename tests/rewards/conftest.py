"""Rendered pairs of the shapes world and a tiny random PickScore."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2i_align.shapes.render import render
from t2i_align.shapes.world import caption, sample_scene
from tests.data_pkg.make import encoded, pickapic, write_parquet
from tests.reward_models.golden import TOKENIZER
from tests.reward_models.layouts import clip_config

COUNT = 8


def scenes(count: int = COUNT, seed: int = 0):
    """(scene asked for, the same blurred) per pair."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = sample_scene(rng)
        yield scene, type(scene)(**{**vars(scene), "softness": 1.5})


def shapes_columns(count: int = COUNT, **columns: list) -> dict[str, list]:
    """Picture 0 is as asked in pairs of even number, picture 1 in the others; labels say so."""
    rows = list(scenes(count))
    sides = [tuple(encoded(render(scene)) for scene in pair) for pair in rows]
    ordered = [(good, bad) if i % 2 == 0 else (bad, good) for i, (good, bad) in enumerate(sides)]
    return pickapic(
        [float(i % 2 == 0) for i in range(count)],
        caption=[caption(scene) for scene, _ in rows],
        jpg_0=[first for first, _ in ordered],
        jpg_1=[second for _, second in ordered],
        **columns,
    )


@pytest.fixture(scope="session")
def shapes_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of pairs in which the sharper of two renderings wins."""
    return write_parquet(tmp_path_factory.mktemp("pairs") / "pairs.parquet", shapes_columns())


def tiny_clip_config() -> dict:
    """A CLIP of 32-pixel pictures with a few thousand parameters."""
    config = clip_config()
    config["vision_config"] |= {"image_size": 32, "hidden_size": 32, "intermediate_size": 64}
    return config


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random PickScore."""
    from reward_models.checkpoints import write_random

    return write_random("pickscore", tmp_path_factory.mktemp("head") / "pickscore", tiny_clip_config(), TOKENIZER)
