"""Trained weights by name: what a checkpoint holds, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.backbones.base import Backbone
from t2i_align.backbones.fit import shape_problems, summary
from t2i_align.backbones.weight_files import read_header
from t2i_align.errors import UserError

TRAINABLE_FILE = "trainable.safetensors"


def trainable_state(backbone: Backbone) -> dict[str, Tensor]:
    """Name in ``unet.named_parameters()`` -> trained parameter (live, not copied)."""
    return {name: parameter for name, parameter in backbone.unet.named_parameters() if parameter.requires_grad}


def load_trainable(backbone: Backbone, path: str | Path) -> None:
    """Copy trained weights into `backbone`, in place.

    Args:
        backbone: adapted as in the run that wrote the file.
        path: a ``trainable.safetensors`` or ``ema.safetensors``, or the checkpoint folder that holds the first.

    Raises:
        UserError: no such file, a damaged one, or names or shapes that differ from the backbone's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TRAINABLE_FILE
    target = trainable_state(backbone)
    problems = shape_problems(read_header(path).shapes, {name: tuple(p.shape) for name, p in target.items()})
    if problems:
        raise UserError(
            "The checkpoint belongs to another architecture.",
            f"{path}: {summary(problems)}",
            "use the model and adapter settings (model.train, model.lora) of the run that wrote it",
        )
    weights = load_file(path)
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(weights[name])
