"""Checkpoints of a training run as models of an evaluation, for score against training step."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from t2i_align.errors import UserError
from t2i_align.evaluation.manifest import fingerprint

SOURCE_FILE = "source.txt"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def expand(runs: Mapping[str, str | Path], folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Export every checkpoint of the runs that was not exported before.

    Args:
        runs: name -> run folder.
        folder: gets one export per checkpoint, ``NAME-STEP``.

    Returns:
        model name -> its export, in rising order of steps; and run name -> {step: model name}.

    Raises:
        UserError: a run has fewer than two checkpoints, or one cannot be exported.
    """
    models: dict[str, str] = {}
    steps: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        found = checkpoints_of(name, Path(run))
        steps[name] = {str(step): f"{name}-{step}" for step in found}
        for step, checkpoint in found.items():
            models[f"{name}-{step}"] = str(_exported(Path(run), checkpoint, folder / f"{name}-{step}"))
    return models, steps


def checkpoints_of(name: str, run: Path) -> dict[int, Path]:
    """Step -> checkpoint folder of a run, in rising order.

    Raises:
        UserError: no curve can be drawn through fewer than two.
    """
    found = sorted((int(m[1]), path) for path in run.glob("checkpoint-*") if (m := CHECKPOINT.fullmatch(path.name)))
    if len(found) < 2:
        raise UserError(
            f"The run {name} has too few checkpoints for a curve.",
            f"{len(found)} in {run}",
            "train it with training.checkpointing_steps and training.checkpoints_total_limit that keep several",
        )
    return dict(found)


def _exported(run: Path, checkpoint: Path, target: Path) -> Path:
    from t2i_align.export.run import export_checkpoint

    source = fingerprint(checkpoint)
    record = target / SOURCE_FILE
    if not record.is_file() or record.read_text(encoding="utf-8") != source:
        shutil.rmtree(target, ignore_errors=True)
        export_checkpoint(run, checkpoint.name, target)
        record.write_text(source, encoding="utf-8")
    return target
