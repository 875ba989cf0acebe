"""Small pair files and configurations for tests that train."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from t2i_align.config.loading import load_config
from t2i_align.config.schema import RunConfig
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

CAPTIONS = ("a red circle", "a blue square", "a green star", "a small yellow ring")


def picture(seed: int, size: int = 32) -> bytes:
    """A smooth random picture as PNG bytes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pairs(path: Path, count: int = 12, size: int = 32, seed: int = 0) -> Path:
    """A parquet file in the Pick-a-Pic schema; picture 0 and 1 win in turn."""
    rows = range(count)
    table = {
        "ranking_id": list(rows),
        "user_id": [index % 3 for index in rows],
        "caption": [f"{CAPTIONS[index % len(CAPTIONS)]} {index // len(CAPTIONS)}" for index in rows],
        "jpg_0": [picture(seed + 2 * index, size) for index in rows],
        "jpg_1": [picture(seed + 2 * index + 1, size) for index in rows],
        "label_0": [float(index % 2) for index in rows],
        "label_1": [1.0 - index % 2 for index in rows],
        "has_label": [True] * count,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def run_settings(folder: Path, pairs: Path, output_dir: Path, **sections: dict) -> dict:
    """A whole run of four steps as plain data; keyword arguments update its sections."""
    settings: dict = {
        "output_dir": str(output_dir),
        "seed": 3,
        "report_to": [],
        "model": {"pretrained_model_name_or_path": str(folder), "lora": {"rank": 4}},
        "data": {"source": str(pairs), "resolution": 32},
        "objective": {"preset": "dpo", "beta": 2000.0},
        "training": {
            "train_batch_size": 2,
            "max_train_steps": 4,
            "learning_rate": 1e-3,
            "checkpointing_steps": 2,
        },
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values} if isinstance(values, dict) else values
    return settings


def run_config(folder: Path, pairs: Path, output_dir: Path, **sections: dict) -> RunConfig:
    """The same as a checked configuration."""
    return RunConfig.model_validate(run_settings(folder, pairs, output_dir, **sections))


def start(pipeline: Path, source: Path, folder: Path, objective: dict, **sections: Any) -> list[dict]:
    """Logged steps of a run of two steps, started from a YAML file as a user does."""
    sections["training"] = {"max_train_steps": 2, **sections.get("training", {})}
    settings = run_settings(pipeline, source, folder / "run", **sections)
    settings["objective"] = objective
    if settings["model"].get("train") == "full":
        del settings["model"]["lora"]  # full training does not read it
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    train(load_config(file, []))
    return [row for row in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in row]


def write_scored(pairs: Path) -> Path:
    """The same pairs beside the file, with a score of every picture, the preferred one's higher."""
    table = pq.read_table(pairs)
    wins = [label == 1.0 for label in table["label_0"].to_pylist()]
    better = [0.5 + 0.04 * index for index in range(len(wins))]
    for side in (0, 1):
        scores = [high if wins[index] == (side == 0) else 0.3 for index, high in enumerate(better)]
        table = table.append_column(f"score_{side}", pa.array(scores))
    path = pairs.with_name("scored.parquet")
    pq.write_table(table, path)
    return path


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: when it was written, and what it holds."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
