"""One training of a study, and the judgement of what came out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from t2i_align.config.loading import resolved
from t2i_align.config.schema import RunConfig
from t2i_align.evaluation import generate, score
from t2i_align.evaluation.manifest import read_settings
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.scorers import Scorer, open_scorer
from t2i_align.study.config import Judging, Method
from t2i_align.study.table import StudyFolderError
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

DONE_FILE = "trial.json"
BASE = "base"


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

    Raises:
        StudyFolderError: the folder holds a run with other settings.
        UserError: training failed.
    """
    folder = Path(config.output_dir)
    settings = _settings(config)
    done = folder / DONE_FILE
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        kept = _as_read_today(record["settings"], config.output_dir)
        if changed := sorted(key for key in kept.keys() | settings if kept.get(key) != settings.get(key)):
            raise StudyFolderError(
                "The study's folder holds a run with other settings.",
                f"{folder}: {', '.join(changed)}",
                "delete that folder, or choose another output_dir",
            )
        return Trained(folder, record["train_seconds"], record["metrics"])
    result = train(config)
    rows = read_metrics(folder / "metrics.jsonl")
    metrics = {key: value for row in rows for key, value in row.items() if isinstance(value, int | float)}
    record = {"settings": settings, "train_seconds": round(result.train_seconds, 2), "metrics": metrics}
    temporary = done.with_suffix(".writing")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, done)
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


class Judge:
    """Pictures and scores of the base model and of trained ones, on one prompt set; the base is drawn once.

    Args:
        folder: receives ``pictures/`` and ``scores/``.
        base: the base model.
        prompts: to draw.
        judging: sampler and scorer.
    """

    def __init__(self, folder: Path, base: str, prompts: PromptSet, judging: Judging) -> None:
        self._folder, self._base, self._prompts, self._judging = folder, base, prompts, judging
        self._scorer: Scorer | None = None

    def scores(self, name: str, runs: Mapping[str, Path], method: Method) -> dict[str, np.ndarray]:
        """Dimension -> ``[1 + runs, prompts]`` scores, the base first and then each run; the first dimension judges.

        Args:
            name: of the table of scores.
            runs: name of the pictures -> run folder.
            method: says whether a run is a negative model.
        """
        models = [BASE, *runs]
        folders = self._draw({BASE: self._base}, {})
        negative = method.judged_as == "negative"
        for model, run in runs.items():
            drawn = {model: self._base if negative else str(run)}
            folders |= self._draw(drawn, {model: str(run)} if negative else {}, self._outdated(model, run))
        self._scorer = self._scorer or open_scorer(self._judging.scorer)
        table = score.run(folders, [self._scorer], self._folder / "scores" / name, first_prompts=len(self._prompts))
        return {
            dimension: np.stack([np.nanmean(table.matrix(model, scorer, dimension), axis=1) for model in models])
            for scorer, dimension in table.dimensions
        }

    def _outdated(self, model: str, run: Path) -> bool:
        """Whether the pictures under a name are another training's: of a setting or of weights that were replaced."""
        kept = read_settings(self._folder / "pictures" / model)
        return bool(kept) and generate.identify(str(run), None)[1] not in kept["fingerprint"]

    def _draw(self, models: Mapping[str, str], negative: Mapping[str, str], overwrite: bool = False) -> dict[str, Path]:
        return generate.run(
            models,
            self._prompts,
            self._folder / "pictures",
            num_inference_steps=self._judging.num_inference_steps,
            guidance_scale=self._judging.guidance_scale,
            batch_size=self._judging.batch_size,
            negative=negative,
            overwrite=overwrite,
            show_progress=False,
        )

    @property
    def precision(self) -> str:
        """What the pictures were drawn in."""
        return read_settings(self._folder / "pictures" / BASE)["dtype"]
