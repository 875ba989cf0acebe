"""User embeddings made elsewhere: one safetensors file, an array ``[L, F]`` per user name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.personal.config import NULL_USER


def read_external(path: str | Path) -> dict[str, Tensor]:
    """Arrays by user name, float32 ``[L, F]``, all of one shape.

    Raises:
        UserError: not a safetensors file, no users, a user called null, shapes that differ, or values not finite.
    """
    try:
        arrays = {name: array.float() for name, array in load_file(Path(path)).items()}
    except (OSError, SafetensorError) as error:
        raise UserError("The user embeddings cannot be read.", f"{path}: {error}", "give a safetensors file") from error
    if not arrays or NULL_USER in arrays:
        raise UserError(
            "A file of user embeddings has one array per user.",
            f"{path}: {', '.join(list(arrays)[:5]) or 'no arrays'}",
            f"'{NULL_USER}' is the name of the built-in null user",
        )
    for name, array in arrays.items():
        first = next(iter(arrays.values())).shape
        if array.ndim != 2 or array.shape != first:
            raise UserError(
                "All user embeddings of a file need one shape [L, F].", f"{name}: {list(array.shape)}, {list(first)}"
            )
        if not torch.isfinite(array).all():
            raise UserError("User embeddings must be finite.", f"{path}: {name}")
    return arrays
