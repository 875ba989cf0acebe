"""Files of precomputed reference errors: safetensors shards that are complete or absent, and what they were made from.

Beside the shards lies ``reference.json``. A shard holds ``items [M]``, 64-bit keys of (item, draw), and ``errors
[M, P]`` float32, one error for each of an item's P pictures. As in the cache of latents there is no index to corrupt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reward_models.files import complete_file, remove_leftovers, write_json
from t2i_align.data.cache_store import key_of
from t2i_align.errors import UserError

KEY_FILE = "reference.json"
FORMAT = 1


class ReferenceStore:
    """Reference errors by (item, draw), all in memory: 12 bytes a key and picture and less.

    Args:
        folder: made unless it is there.
        made_from: whatever decides the errors, as plain JSON values by name.

    Raises:
        UserError: the folder holds errors that were made from something else, or is damaged.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        _require(folder, {"format": FORMAT, **made_from})
        remove_leftovers(folder)
        self._pending: dict[int, Tensor] = {}
        self._keys, self._errors = _load(folder)

    def __len__(self) -> int:
        return len(self._keys)

    def missing(self, ids: Sequence[str], draws: Sequence[int]) -> list[bool]:
        """Which of the items have no errors yet, in memory or on disk."""
        keys = item_keys(ids, draws)
        there = np.isin(keys, self._keys)
        return [not on_disk and key not in self._pending for key, on_disk in zip(keys.tolist(), there, strict=True)]

    def add(self, ids: Sequence[str], draws: Sequence[int], errors: Tensor) -> None:
        """Keep errors ``[N, P]`` until `flush`."""
        self._pending.update(zip(item_keys(ids, draws).tolist(), errors.float().cpu(), strict=True))

    def flush(self) -> None:
        """Write what was added as one shard; its name follows from its keys, so processes never overwrite others."""
        if not self._pending:
            return
        items = torch.tensor(list(self._pending))
        name = f"errors-{hashlib.blake2b(items.numpy().tobytes(), digest_size=8).hexdigest()}.safetensors"
        with complete_file(self.folder / name) as temporary:
            save_file({"items": items, "errors": torch.stack(list(self._pending.values()))}, temporary)
        self._pending.clear()

    def reload(self) -> None:
        """Read what all processes wrote."""
        self._keys, self._errors = _load(self.folder)

    def find(self, ids: Sequence[str], draws: Sequence[int]) -> Tensor:
        """Errors ``[N, P]`` of items that were written, float32 on the CPU.

        Raises:
            KeyError: one of them was not.
        """
        keys = item_keys(ids, draws)
        rows = np.searchsorted(self._keys, keys).clip(max=max(len(self._keys) - 1, 0))
        if not len(self._keys) or (self._keys[rows] != keys).any():
            raise KeyError(f"{self.folder} lacks reference errors of {', '.join(map(str, ids))}")
        return self._errors[torch.from_numpy(rows)]


def item_keys(ids: Sequence[str], draws: Sequence[int]) -> np.ndarray:
    """``[N]`` int64 keys of items in a draw."""
    return np.array([key_of(item, str(draw)) for item, draw in zip(ids, draws, strict=True)], dtype=np.int64)


def _load(folder: Path) -> tuple[np.ndarray, Tensor]:
    """Sorted keys ``[M]`` and their errors ``[M, P]``."""
    items, errors = [], []
    for file in sorted(folder.glob("errors-*.safetensors")):
        try:
            shard = load_file(file)
            items.append(shard["items"])
            errors.append(shard["errors"])
        except (SafetensorError, OSError, KeyError) as error:
            raise UserError(
                f"{file} is not a readable shard of reference errors.",
                str(error),
                "delete it; the next run measures again what it held",
            ) from error
    if not items:
        return np.zeros(0, dtype=np.int64), torch.zeros(0, 0)
    keys, order = np.unique(torch.cat(items).numpy(), return_index=True)
    return keys, torch.cat(errors)[torch.from_numpy(order)]


def _require(folder: Path, wanted: dict[str, Any]) -> None:
    """Make the folder ours, or refuse one whose errors would be other numbers than this run's reference."""
    file = folder / KEY_FILE
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            first = next(folder.iterdir()).name
            fix = "set model.reference_dir to a new or empty folder"
            raise UserError("The folder for reference errors holds something else.", f"{folder / first}", fix)
        write_json(file, wanted)
        return
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file} does not describe reference errors.", str(error), f"delete {folder}") from error
    changes = [
        f"{name}: kept {_short(found.get(name))}, run {_short(wanted.get(name))}"
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]
    if changes:
        raise UserError(
            f"The reference errors in {folder} are stale.",
            "; ".join(changes),
            f"delete {folder}, or set model.reference_dir to another folder",
        )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)
