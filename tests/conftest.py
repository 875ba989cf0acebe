"""Shared fixtures: tiny pipelines, written once per session. Treat the folders as read-only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Tests never reach the network, and one thread makes sums reproducible and keeps small tensors quick.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SDXL: 64 px pictures, 4x16x16 latents, epsilon prediction."""
    from tests.tiny import make_sdxl

    return make_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SD1.x: 64 px pictures, 4x16x16 latents, epsilon prediction."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SD2.x: 8x VAE, 64 px pictures, 4x8x8 latents, v-prediction."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd_v", "v_prediction", downsamples=3, sample_size=8)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state per process: without this, the first test's precision would be everybody's."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
