"""Checkpoints that resume bit for bit: written to a temporary name, renamed when complete, limited in number.

Random numbers are addressed by step and pair, so weights, optimiser, schedule, EMA and the step are the whole state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from t2i_align.errors import UserError

PATTERN = re.compile(r"checkpoint-(\d+)")
TRAINABLE, OPTIMIZER, EMA, STATE = "trainable.safetensors", "optimizer.pt", "ema.safetensors", "state.json"
PROVIDER = "provider.safetensors"


@dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
        trainable: name -> parameter that is trained, as in ``unet.named_parameters()``.
        optimizer, scheduler: the live objects.
        ema: name -> averaged weight, or None.
        ema_step: number of updates the average has seen.
        scaler: the fp16 gradient scaler, or None.
        train_seconds: time spent in optimiser steps so far, over all launches.
        provider: state of what fills the batches; a dataset has none, a rollout the pairs that wait.
    """

    trainable: dict[str, torch.nn.Parameter]
    optimizer: Any
    scheduler: Any
    ema: dict[str, torch.Tensor] | None = None
    ema_step: int = 0
    scaler: Any = None
    train_seconds: float = 0.0
    provider: dict[str, torch.Tensor] = field(default_factory=dict)


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first, as ``(step, folder)``."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        match = PATTERN.fullmatch(path.name)
        if match and (path / STATE).is_file():
            found.append((int(match.group(1)), path))
    return sorted(found)


def save_checkpoint(output_dir: Path, step: int, state: TrainState, identity: dict, limit: int | None) -> Path:
    """Write ``checkpoint-<step>`` (main process only) and drop the oldest beyond ``limit``."""
    final = output_dir / f"checkpoint-{step}"
    temporary = output_dir / f".checkpoint-{step}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_on_cpu(state.trainable), temporary / TRAINABLE)
    if state.ema is not None:
        save_file(_on_cpu(state.ema), temporary / EMA)
    if state.provider:
        save_file(_on_cpu(state.provider), temporary / PROVIDER)
    torch.save(
        {
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
            "scaler": None if state.scaler is None else state.scaler.state_dict(),
        },
        temporary / OPTIMIZER,
    )
    record = {"step": step, "ema_step": state.ema_step, "train_seconds": state.train_seconds, "identity": identity}
    (temporary / STATE).write_text(json.dumps(record, indent=1))
    if final.exists():  # the same step written again after a resume
        shutil.rmtree(final)
    os.replace(temporary, final)
    if limit is not None:
        for _, old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, state: TrainState, identity: dict) -> int:
    """Restore ``state`` in place and return the step.

    Raises:
        UserError: a damaged checkpoint, one of another architecture, or one made by a run whose model, data,
            objective or seed differ (the remaining steps would not be the same run).
    """
    saved = check_identity(path, identity)
    try:
        weights = load_file(path / TRAINABLE)
        ema = load_file(path / EMA) if state.ema is not None else {}
        provider = load_file(path / PROVIDER) if (path / PROVIDER).is_file() else {}
        rest = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    copy_weights(weights, state.trainable, path)
    if state.ema is not None:
        copy_weights(ema, state.ema, path)
    state.provider = provider
    state.ema_step, state.train_seconds = saved["ema_step"], saved["train_seconds"]
    state.optimizer.load_state_dict(rest["optimizer"])
    state.scheduler.load_state_dict(rest["scheduler"])
    if state.scaler is not None and rest["scaler"] is not None:
        state.scaler.load_state_dict(rest["scaler"])
    return saved["step"]


def copy_weights(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors by name, in place.

    Raises:
        UserError: names or shapes differ; the first differences are listed.
    """
    problems = [f"missing {name}" for name in target.keys() - source.keys()]
    problems += [f"unexpected {name}" for name in source.keys() - target.keys()]
    problems += [
        f"{name}: {tuple(source[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            "The checkpoint belongs to another architecture.",
            f"{path}: " + "; ".join(sorted(problems)[:3]) + more,
            "use the model and adapter settings (model.train, model.lora) of the run that wrote it",
        )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def resolve_resume(output_dir: Path, request: str | None) -> Path | None:
    """Which checkpoint to resume from, or None for a fresh run.

    ``latest`` in an empty folder starts from the beginning, so that one command serves both launches of a job.

    Raises:
        UserError: no such checkpoint; or a fresh run into a folder that already holds a run.
    """
    existing = list_checkpoints(output_dir)
    if request is None:
        if existing or (output_dir / "metrics.jsonl").exists():
            raise UserError(
                "The output folder already holds a run.",
                str(output_dir),
                "resume it with training.resume_from_checkpoint=latest, or choose another output_dir",
            )
        return None
    if request == "latest":
        return existing[-1][1] if existing else None
    for path in (Path(request), output_dir / request):
        if (path / STATE).is_file():
            return path
    names = ", ".join(path.name for _, path in existing) or "none"
    raise UserError("No such checkpoint.", f"{request}; in {output_dir}: {names}", "name one of them, or latest")


def check_identity(path: Path, identity: dict) -> dict:
    """What a checkpoint says of itself, once it is known to share the given settings. No weights are read.

    Raises:
        UserError: it cannot be read, or was made by a run in which one of the settings was another.
    """
    try:
        saved = json.loads((path / STATE).read_text())
        then = saved["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    different = [key for key in identity if then.get(key) != identity[key]]
    if different:
        detail = "; ".join(f"{key}: {then.get(key)!r} then, {identity[key]!r} now" for key in different[:3])
        raise UserError(
            "The checkpoint was made by a different run; going on would mix the two.",
            f"{path}: {detail}",
            "restore these settings, or start a new run in another output_dir",
        )
    return saved


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError("The checkpoint cannot be read.", f"{path}: {error}", "resume from an older checkpoint-N folder")


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
