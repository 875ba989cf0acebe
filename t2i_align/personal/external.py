"""User embeddings made elsewhere: one safetensors file, an array ``[L, F]`` per user name.

A file may say in its metadata which pairs made it (``extraction`` does), so that nobody trains on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.personal.config import NULL_USER

SHOWN, LEFT_OUT = "t2i_align_shown", "t2i_align_left_out"  # metadata: {user: [pair id]} and [user], as JSON


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from, as far as their file says; empty for files of other makers.

    Attributes:
        shown: user -> ids of the pairs that made the user's array.
        left_out: users who answered too little to be embedded.
    """

    shown: dict[str, frozenset[str]] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()


def read_origin(path: str | Path) -> Origin:
    """The metadata of a file that `read_external` reads.

    Raises:
        UserError: not a safetensors file.
    """
    try:
        with safe_open(Path(path), "pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    shown = {user: frozenset(pairs) for user, pairs in json.loads(metadata.get(SHOWN, "{}")).items()}
    return Origin(shown, frozenset(json.loads(metadata.get(LEFT_OUT, "[]"))))


def read_external(path: str | Path) -> dict[str, Tensor]:
    """Arrays by user name, float32 ``[L, F]``, all of one shape.

    Raises:
        UserError: not a safetensors file, no users, a user called null, shapes that differ, or values not finite.
    """
    try:
        arrays = {name: array.float() for name, array in load_file(Path(path)).items()}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
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


def _unreadable(path: str | Path, error: Exception) -> UserError:
    return UserError("The user embeddings cannot be read.", f"{path}: {error}", "give a safetensors file")
