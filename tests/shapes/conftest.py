"""A pipeline pretrained for a few steps: the right layout, and pictures of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TINY = {
    "num_threads": 1,
    "num_scenes": 8,
    "vae": {
        "block_out_channels": [8, 16, 16],
        "phases": [
            {"fit": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}},
            {"crop_rate": 1.0, "fit": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3}},
        ],
    },
    "unet": {
        "block_out_channels": [16, 32],
        "attention_head_dim": 16,
        "addition_time_embed_dim": 8,
        "text_hidden_size": 16,
        "phases": [
            {"fit": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3}},
            {"max_noise_weight": 3.0, "fit": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}},
        ],
    },
}


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "pretrain.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished `shapes pretrain`."""
    from t2i_align.shapes.pretrain import run

    folder = tmp_path_factory.mktemp("run")
    run(tiny_config, folder)
    return folder
