"""A training that is kept: done once, gone on with after a kill, read back afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reward_models.files import write_json
from t2i_align.config.loading import resolved
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.training.metrics import read_metrics
from t2i_align.training.resuming import ChangedSettingsError
from t2i_align.training.run import train

DONE_FILE = "trial.json"


class OtherRunError(UserError):
    """The folder holds a run of other settings: its results would stand for what was not trained."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        folder: the run folder.
        train_seconds: inside optimiser steps.
        metrics: the last value of everything it logged.
    """

    folder: Path
    train_seconds: float
    metrics: dict[str, float]


def train_once(config: RunConfig) -> Trained:
    """Train, go on where a killed training was, or read what is there.

    Args:
        config: with ``training.resume_from_checkpoint: latest``.

    Raises:
        OtherRunError: the folder holds a run with other settings, finished or not.
        UserError: training failed.
    """
    folder = Path(config.output_dir)
    settings = _settings(config)
    done = folder / DONE_FILE
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        kept = _as_read_today(record["settings"], config.output_dir)
        if changed := sorted(key for key in kept.keys() | settings if kept.get(key) != settings.get(key)):
            raise OtherRunError(
                "The folder holds a run with other settings.",
                f"{folder}: {', '.join(changed)}",
                "delete that folder, or choose another output_dir",
            )
        return Trained(folder, record["train_seconds"], record["metrics"])
    try:
        result = train(config, may_change=False)
    except ChangedSettingsError as error:
        raise OtherRunError(error.what, error.found, error.fix) from error
    rows = read_metrics(folder / "metrics.jsonl")
    metrics = {key: value for row in rows for key, value in row.items() if isinstance(value, int | float)}
    record = {"settings": settings, "train_seconds": round(result.train_seconds, 2), "metrics": metrics}
    write_json(done, record, indent=1)
    return Trained(folder, record["train_seconds"], metrics)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What makes one training differ from another: everything but where it is kept."""
    settings = json.loads(json.dumps(resolved(config)))
    settings.pop("output_dir", None)
    return settings


def _as_read_today(settings: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Settings of an earlier version: keys that have come since are at their defaults, which change nothing."""
    try:
        return _settings(RunConfig.model_validate({**settings, "output_dir": output_dir}))
    except ValidationError:
        return settings
