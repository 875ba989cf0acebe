"""Scorers on the small golden weights, loaded once; they read pictures as the official codes that made the numbers."""

from __future__ import annotations

import pytest

from reward_models import load
from tests.reward_models.golden import GOLDEN, TOKENIZER


@pytest.fixture(scope="session")
def pickscore():
    return load("pickscore", checkpoint=GOLDEN / "pickscore", tokenizer=TOKENIZER, device="cpu", decoding="published")


@pytest.fixture(scope="session")
def hpsv2():
    folder = GOLDEN / "hpsv2"
    config = folder / "tiny_model_cfg.json"
    return load(
        "hpsv2", checkpoint=folder / "model.safetensors", model_config=config, device="cpu", decoding="published"
    )


@pytest.fixture(scope="session")
def mps():
    return load("mps", checkpoint=GOLDEN / "mps", tokenizer=TOKENIZER, device="cpu", decoding="published")


@pytest.fixture(scope="session")
def clip_score():
    return load("clip_score", checkpoint=GOLDEN / "pickscore", tokenizer=TOKENIZER, device="cpu", decoding="published")


@pytest.fixture(scope="session")
def aesthetic():
    head = GOLDEN / "mlp_head" / "model.safetensors"
    return load("aesthetic", checkpoint=head, tower=GOLDEN / "pickscore", device="cpu", decoding="published")
