"""Trackers that show a run while it goes on, beside ``metrics.jsonl``: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from t2i_align.errors import UserError

WANDB_ID_FILE = "wandb_run_id"  # in the run folder: a resumed run goes on in the same place


class Tracker(Protocol):
    """Receives what is logged: numbers, and files of pictures by name."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, file: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Events in ``tensorboard/`` of the run folder.

    Args:
        output_dir: the run folder.
        resume_step: step the run goes on from; events that a killed run wrote beyond it are hidden.
    """

    def __init__(self, output_dir: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar event per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, file: Path) -> None:
        """A picture file as an image event."""
        with Image.open(file) as opened:
            self._writer.add_image(name, np.asarray(opened.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


class Wandb:
    """A run of the project ``t2i_align``; a resumed training continues it.

    Args:
        output_dir: the run folder, which also remembers the run's id.
        config: the whole configuration as plain values.
        resume_step: step the run goes on from; 0 begins a new one.
    """

    def __init__(self, output_dir: Path, config: dict[str, Any], resume_step: int) -> None:
        import wandb

        kept = output_dir / WANDB_ID_FILE
        known = kept.read_text(encoding="utf-8").strip() if resume_step and kept.is_file() else None
        self._run = wandb.init(
            project="t2i_align", dir=str(output_dir), config=config, id=known, resume="allow" if known else None
        )
        kept.write_text(f"{self._run.id}\n", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        """A picture file in the row of its step."""
        import wandb

        self._run.log({name: wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before long work.

    Raises:
        UserError: says what to install.
    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "report_to: wandb needs the wandb package.",
            "wandb is not installed",
            "pip install 't2i_align[wandb]', or report_to=[tensorboard]",
        )


def open_tracker(name: str, output_dir: Path, config: dict[str, Any], resume_step: int) -> Tracker:
    """The tracker called ``name``, tensorboard or wandb; see the classes."""
    if name == "wandb":
        return Wandb(output_dir, config, resume_step)
    return TensorBoard(output_dir, resume_step)
