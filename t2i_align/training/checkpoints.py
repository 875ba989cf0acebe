"""Checkpoints that resume bit for bit: written to a temporary name, renamed when complete, limited in number.

Random numbers are addressed by step and pair, so weights, optimiser, schedule, EMA and the step are the whole state.
Where that is divided among processes, each writes its rows into files of its own; any number of processes reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reward_models.files import share
from t2i_align.backbones.pieces import NamedTensors, part_files, write_pieces
from t2i_align.backbones.trainable import TRAINABLE
from t2i_align.errors import UserError
from t2i_align.training.identity import both
from t2i_align.training.optimizer_state import apart, restore_optimizer, restore_schedule
from t2i_align.training.resume_rules import Changes, compare, in_text
from t2i_align.training.rows import own, piece, span

PATTERN = re.compile(r"checkpoint-(\d+)")
EMA, MOMENTS = "ema", "moments"  # as trainable weights: in one file, or in one for every process
OPTIMIZER, STATE, PROVIDER = "optimizer.pt", "state.json", "provider.safetensors"


@dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
        trainable: name -> parameter that is trained, as in ``unet.named_parameters()``; may be divided by rows.
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


@dataclass(frozen=True)
class Writers:
    """The processes that write a checkpoint together: one, or all among whom the state is divided.

    Attributes:
        index, count: this process among them; number 0 makes the folder and names it.
        wait: until all are here.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first, as ``(step, folder)``."""
    found = []
    for path in output_dir.glob("checkpoint-*"):
        match = PATTERN.fullmatch(path.name)
        if match and (path / STATE).is_file():
            found.append((int(match.group(1)), path))
    return sorted(found)


def save_checkpoint(
    output_dir: Path, step: int, state: TrainState, identity: dict, limit: int | None, writers: Writers | None = None
) -> Path:
    """Write ``checkpoint-<step>`` and drop the oldest beyond ``limit``; all `writers` must call it, by default one."""
    final, writers = output_dir / f"checkpoint-{step}", writers or Writers()
    temporary = output_dir / f".checkpoint-{step}.writing"
    if writers.index == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    writers.wait()
    optimizer, divided = apart(state.optimizer.state_dict(), state.trainable)
    for part, tensors in {TRAINABLE: state.trainable, EMA: state.ema, MOMENTS: divided}.items():
        if tensors:
            pieces = {name: piece(tensor, writers.index) for name, tensor in tensors.items()}
            write_pieces(pieces, temporary, part, writers.index, writers.count)
    writers.wait()
    if writers.index == 0:
        _write_rest(temporary, state, optimizer)
        record = {"step": step, "ema_step": state.ema_step, "train_seconds": state.train_seconds, "identity": identity}
        (temporary / STATE).write_text(json.dumps(record, indent=1))
        _publish(temporary, final, limit)
    return final


def _write_rest(folder: Path, state: TrainState, optimizer: dict) -> None:
    """What one process holds alone."""
    if state.provider:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.provider.items()}, folder / PROVIDER
        )
    scaler = None if state.scaler is None else state.scaler.state_dict()
    rest = {"optimizer": optimizer, "scheduler": state.scheduler.state_dict(), "scaler": scaler}
    torch.save(rest, folder / OPTIMIZER)


def _publish(temporary: Path, final: Path, limit: int | None) -> None:
    if final.exists():  # the same step written again after a resume
        shutil.rmtree(final)
    share(temporary)
    os.replace(temporary, final)
    if limit is not None:
        for _, old in list_checkpoints(final.parent)[:-limit]:
            shutil.rmtree(old)


def load_checkpoint(path: Path, state: TrainState, identity: dict) -> int:
    """Restore ``state`` in place and return the step. Rates, decays and the schedule stay those of the live objects.

    Raises:
        UserError: a damaged checkpoint, one of another architecture, or one made by a run whose model, data,
            objective or seed differ (the remaining steps would not be the same run).
    """
    saved, _ = check_identity(path, identity)
    try:
        weights = NamedTensors(_files(path, TRAINABLE))
        ema = NamedTensors([] if state.ema is None else _files(path, EMA))
        divided = NamedTensors(part_files(path, MOMENTS))
        provider = load_file(path / PROVIDER) if (path / PROVIDER).is_file() else {}
        rest = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, ValueError, SafetensorError, RuntimeError, UserError) as error:
        raise _unreadable(path, error) from error
    copy_weights(weights, state.trainable, path)
    if state.ema is not None:
        copy_weights(ema, state.ema, path)
    state.provider = provider
    state.ema_step, state.train_seconds = saved["ema_step"], saved["train_seconds"]
    restore_optimizer(state.optimizer, rest["optimizer"], divided, state.trainable)
    restore_schedule(state.scheduler, rest["scheduler"])
    if state.scaler is not None and rest["scaler"] is not None:
        state.scaler.load_state_dict(rest["scaler"])
    return saved["step"]


def copy_weights(source: NamedTensors, target: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors by name, in place; of a divided one this process's rows.

    Raises:
        UserError: names or shapes differ; the first differences are listed.
    """
    problems = [f"missing {name}" for name in target.keys() - source.shapes.keys()]
    problems += [f"unexpected {name}" for name in source.shapes.keys() - target.keys()]
    problems += [
        f"{name}: {source.shapes[name]} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in target.items()
        if name in source.shapes and source.shapes[name] != tuple(tensor.shape)
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
            own(tensor).copy_(source.rows(name, *span(tensor)))


def check_identity(path: Path, identity: dict) -> tuple[dict, Changes]:
    """What a checkpoint says of itself, and which of the given settings are others now. No weights are read.

    Raises:
        UserError: it cannot be read, or was made by a run in which a setting was another that may not change.
    """
    try:
        saved = json.loads((path / STATE).read_text())
        then, now = both(saved["identity"], identity)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    changes = compare(then, now)
    if changes.refused:
        raise UserError(
            "The checkpoint was made by a different run; going on would mix the two.",
            f"{path}: {in_text(changes.refused)}",
            "restore these settings, or start a new run in another output_dir",
        )
    return saved, changes


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError("The checkpoint cannot be read.", f"{path}: {error}", "resume from an older checkpoint-N folder")


def _files(folder: Path, part: str) -> list[Path]:
    files = part_files(folder, part)
    if not files:
        raise OSError(f"it holds no {part} weights")
    return files
