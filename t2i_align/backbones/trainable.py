"""Trained weights by name: what a checkpoint holds, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from t2i_align.backbones.base import Backbone
from t2i_align.backbones.fit import shape_problems, summary
from t2i_align.backbones.pieces import NamedTensors, part_files
from t2i_align.errors import UserError

TRAINABLE = "trainable"


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """Name in ``unet.named_parameters()`` -> trained parameter (live, not copied)."""
    return {name: parameter for name, parameter in backbone.unet.named_parameters() if parameter.requires_grad}


def load_trainable(backbone: Backbone, path: str | Path, part: str = TRAINABLE) -> None:
    """Copy trained weights into `backbone`, in place.

    Args:
        backbone: adapted as in the run that wrote the file.
        path: a ``trainable.safetensors`` or ``ema.safetensors``, or the checkpoint folder that holds the first, whole
            or in pieces.
        part: of a folder: ``trainable``, or ``ema``.

    Raises:
        UserError: no such file, a damaged one, or names or shapes that differ from the backbone's.
    """
    path = Path(path)
    files = part_files(path, part) or [path / f"{part}.safetensors"] if path.is_dir() else [path]
    weights, target = NamedTensors(files), trainable_state(backbone)
    problems = shape_problems(weights.shapes, {name: tuple(p.shape) for name, p in target.items()})
    if problems:
        raise UserError(
            "The checkpoint belongs to another architecture.",
            f"{path}: {summary(problems)}",
            "use the model and adapter settings (model.train, model.lora) of the run that wrote it",
        )
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(weights.rows(name))
