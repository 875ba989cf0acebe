"""How a run begins: afresh in a folder of its own, or from a checkpoint that it may go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.files import write_json
from t2i_align.config.loading import RESOLVED_HEADER
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.training.checkpoints import STATE, check_identity, list_checkpoints
from t2i_align.training.datasets import pairs_fingerprint
from t2i_align.training.identity import settings_identity
from t2i_align.training.parts import is_offline
from t2i_align.training.resume_rules import PAIRS, Changes, Rule, in_text, rule_of

CONFIG, FINISHED = "config.yaml", "finished.json"
OF_A_RUN = ("metrics.jsonl", "environment.json", "export")
NO_SETTINGS = ("output_dir", "training.resume_from_checkpoint")  # where, not what


class ChangedSettingsError(UserError):
    """A resumed run has other settings than before, where none may change."""


@dataclass(frozen=True)
class Resumption:
    """A checkpoint that a run goes on from.

    Attributes:
        checkpoint: its folder.
        step: optimiser steps that it holds.
        changes: settings that are others from here on.
        train_seconds: spent in optimiser steps so far.
        finished: nothing is left to do: all steps are made, and exported as asked.
    """

    checkpoint: Path
    step: int
    changes: Changes
    train_seconds: float
    finished: bool

    @property
    def acting(self) -> dict[str, dict[str, Any]]:
        """Settings that act on what is trained and are others from here on: key -> ``{"then", "now"}``."""
        return _plain(self.changes.used)

    @property
    def beside(self) -> dict[str, dict[str, Any]]:
        """Other settings that have changed, alike."""
        return {key: value for key, value in _plain(self.changes.free).items() if key not in NO_SETTINGS}

    def entry(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """For the run's history; `environment` holds what of the machine is another than before."""
        parts = {"changed": self.acting, "beside": self.beside, "environment": dict(environment)}
        return {"step": self.step, "checkpoint": self.checkpoint.name, **parts}


def _plain(changes: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {"then": then, "now": now} for key, (then, now) in changes.items()}


def plan_resume(
    config: RunConfig, objective: Objective, num_processes: int, *, may_change: bool = True
) -> Resumption | None:
    """The checkpoint to go on from, known to be one of this run; None starts afresh. No model is loaded.

    Args:
        config: the run.
        objective: its objective.
        num_processes: that share each batch.
        may_change: whether settings that act may be others than before.

    Raises:
        UserError: no such checkpoint, one of another run, one beyond the end of this one, or a folder that must not be
            written into.
        ChangedSettingsError: a setting that acts is another one, and none may change.
    """
    output_dir = Path(config.output_dir)
    path = resolve_resume(output_dir, config.training.resume_from_checkpoint)
    if path is None:
        return None
    identity = settings_identity(config, objective, num_processes)
    saved, changes = check_identity(path, identity)
    if is_offline(config) and config.data.cache_dir is None and _other_data(changes):
        check_identity(path, identity | {PAIRS: pairs_fingerprint(config, objective)})
    if changes.used and not may_change:
        raise ChangedSettingsError(
            "The folder holds a run with other settings.",
            f"{path}: {in_text(changes.used)}",
            "restore them, delete that folder, or choose another output_dir",
        )
    step, last = saved["step"], config.training.max_train_steps
    if step > last:
        raise UserError(
            "The checkpoint is beyond the end of the run.",
            f"{path} has {step} steps, training.max_train_steps is {last}",
            f"set training.max_train_steps to {step} or more",
        )
    exports_alike = not any(key.startswith("export.") for key in changes.free)
    done = step == last and exports_alike and _finished_steps(output_dir) == step
    if done and changes.used:
        raise UserError(
            "The run is finished; what has changed would not be used.",
            f"{path}: {in_text(changes.used)}",
            "raise training.max_train_steps to train on with it, or choose another output_dir",
        )
    return Resumption(path, step, changes, saved["train_seconds"], done)


def mark_finished(output_dir: Path, steps: int) -> None:
    """Note that all steps are made and exported; a launch of the same run then rewrites nothing."""
    write_json(output_dir / FINISHED, {"steps": steps})


def _finished_steps(output_dir: Path) -> int | None:
    file = output_dir / FINISHED
    whole = file.is_file() and (output_dir / "export").is_dir()
    return json.loads(file.read_text(encoding="utf-8"))["steps"] if whole else None


def resolve_resume(output_dir: Path, request: str | None) -> Path | None:
    """Which checkpoint to resume from, or None for a fresh run.

    ``latest`` in an empty folder starts from the beginning, so that one command serves both launches of a job.

    Raises:
        UserError: no such checkpoint; one that later ones of the folder follow; a fresh run into a folder that already
            holds a run, or another file called ``config.yaml``.
    """
    existing = list_checkpoints(output_dir)
    if request in (None, "latest"):
        if request == "latest" and existing:
            return existing[-1][1]
        _refuse_to_overwrite(output_dir, bool(existing), wants_latest=request == "latest")
        return None
    for path in (Path(str(request)), output_dir / str(request)):
        if (path / STATE).is_file():
            _refuse_to_go_back(path, existing)
            return path
    names = ", ".join(path.name for _, path in existing) or "none"
    raise UserError("No such checkpoint.", f"{request}; in {output_dir}: {names}", "name one of them, or latest")


def _refuse_to_overwrite(output_dir: Path, has_checkpoints: bool, wants_latest: bool) -> None:
    held = [name for name in OF_A_RUN if (output_dir / name).exists()]
    if has_checkpoints or (held and not wants_latest):
        raise UserError(
            "The output folder already holds a run.",
            str(output_dir),
            "resume it with training.resume_from_checkpoint=latest, or choose another output_dir",
        )
    if "export" in held:
        raise UserError(
            "The output folder holds an exported run whose checkpoints are gone; starting over would replace it.",
            str(output_dir),
            "choose another output_dir, or delete the folder",
        )
    config = output_dir / CONFIG
    if config.is_file() and not config.read_text(encoding="utf-8").startswith(RESOLVED_HEADER):
        raise UserError(
            "The run would overwrite a file of yours.",
            f"{config}: every run writes its resolved configuration there",
            "keep the YAML file you wrote in another folder, or choose another output_dir",
        )


def _refuse_to_go_back(path: Path, existing: list[tuple[int, Path]]) -> None:
    """Checkpoints after the resumed one would be those of a branch that was given up, and `latest` would take them."""
    here = next((step for step, other in existing if other.resolve() == path.resolve()), None)
    later = [] if here is None else [other.name for step, other in existing if step > here]
    if later:
        raise UserError(
            "The folder holds later checkpoints than the one to resume from.",
            f"{path}; later: {', '.join(later)}",
            f"choose another output_dir with training.resume_from_checkpoint={path}, or delete the later ones",
        )


def _other_data(changes: Changes) -> bool:
    return any(rule_of(path) is Rule.PAIRS for path in changes.free)
