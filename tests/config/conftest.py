"""A small valid configuration file to change one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

VALID = """\
output_dir: runs/x
model: {pretrained_model_name_or_path: "shapes:base", train: full}
data: {source: "shapes:pairs", heldout_source: "shapes:pairs/heldout", resolution: 64}
objective: {preset: dpo, beta: 2000}
training: {max_train_steps: 100, learning_rate: 5e-5}
"""
WriteConfig = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    """write(text, name) -> path of a YAML file in a fresh folder; without text, the valid file."""

    def _write(text: str = VALID, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write
