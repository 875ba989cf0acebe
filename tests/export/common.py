"""Run configurations for export tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2i_align.config.schema import RunConfig


def run_config(folder: Path | str, output_dir: Path | str = "run", **sections: Any) -> RunConfig:
    """A small run on a tiny pipeline; `sections` are merged over it, one level deep."""
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "model": {"pretrained_model_name_or_path": str(folder)},
        "data": {"source": "pairs.parquet", "resolution": 64},
        "objective": {"preset": "dpo", "beta": 2000},
        "training": {"max_train_steps": 7, "learning_rate": 1e-4},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return RunConfig.model_validate(values)
