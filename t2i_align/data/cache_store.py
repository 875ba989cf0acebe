"""The files of a cache: encoded pictures and prompts in safetensors shards that are complete or absent.

A shard is written under a temporary name and renamed, and says itself what it holds, so there is no index to
corrupt: whatever was killed, the shards that are there are valid, and the rest is encoded by the next build.
Keys are 64-bit hashes (among ten million pictures two share one with probability 3e-6). Tensors keep the
encoder's dtype: reading gives exactly what encoding gave.

=====================  ==================  =====================================================
file                   tensor              content
=====================  ==================  =====================================================
pictures-*.safetensors  pairs [K]           pair keys
                       pair_pictures [K,2] picture keys of each pair
                       pictures [M]        picture keys, each picture once
                       latents [M,V,C,h,w] V = 2 where the second is of the mirrored picture, else 1
                       original_size [M,2] (height, width) before scaling
                       crop [M,V,2]        (top, left)
prompts-*.safetensors   captions [M]        caption keys, each caption once
                       hidden [M,L,D], pooled [M,P]
=====================  ==================  =====================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t2i_align.errors import UserError

OPEN_SHARDS = 64
STALE_SECONDS = 3600.0  # temporary files older than this belong to a build that was killed
TEMPORARY = ".tmp"


def key_of(*parts: bytes | str) -> int:
    """Signed 64-bit hash of a picture, a caption, or a table's fingerprint and a pair id."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little", signed=True)


def write_shard(folder: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a shard. Its name follows from its keys: two builders never overwrite other work."""
    keys = tensors["pairs" if kind == "pictures" else "captions"]
    content = keys.numpy().tobytes() + json.dumps(metadata).encode()
    name = f"{kind}-{hashlib.blake2b(content, digest_size=8).hexdigest()}.safetensors"
    temporary = folder / f"{name}.{os.getpid()}{TEMPORARY}"
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
    os.replace(temporary, folder / name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed builds were writing."""
    for file in folder.glob(f"*{TEMPORARY}"):
        if time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.unlink(missing_ok=True)


class KeyIndex:
    """Where each key is: sorted keys, 16 bytes an entry.

    Args:
        shards: keys ``[M]`` of each shard, in the shard's order.
    """

    def __init__(self, shards: list[np.ndarray]) -> None:
        keys = np.concatenate([np.zeros(0, dtype=np.int64), *shards])
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard) for shard in shards])[order]
        rows = [np.arange(len(shard), dtype=np.int32) for shard in shards]
        self._row = np.concatenate([np.zeros(0, dtype=np.int32), *rows])[order]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> np.ndarray:
        """All keys, sorted."""
        return self._keys

    def has(self, keys: np.ndarray) -> np.ndarray:
        """``[N]`` bool: which of the keys are there."""
        return np.isin(keys, self._keys)

    def find(self, key: int) -> tuple[int, int]:
        """(shard, row in it) of a key.

        Raises:
            KeyError: it is not there.
        """
        position = int(np.searchsorted(self._keys, key))
        if position == len(self._keys) or self._keys[position] != key:
            raise KeyError(key)
        return int(self._shard[position]), int(self._row[position])


class ShardReader:
    """Rows of the shards' tensors, memory mapped; at most `OPEN_SHARDS` files are open. Thread safe."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, shard: int, name: str, row: int) -> Tensor:
        """One row of a tensor, copied."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = safe_open(self._files[shard], framework="pt")
            self._open.move_to_end(shard)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[shard].get_slice(name)[row : row + 1][0].clone()


class CacheStore:
    """What the shards of a folder hold. Opening reads the keys; latents and prompts are read row by row.

    Attributes:
        pairs: index of cached pairs.
        pictures: index of pictures.
        captions: index of prompts.
        rejected: pair key -> reason, for pairs with a picture that cannot be decoded.
        has_pooled: whether prompts have pooled states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        picture_files = sorted(folder.glob("pictures-*.safetensors"))
        prompt_files = sorted(folder.glob("prompts-*.safetensors"))
        self.rejected: dict[int, str] = {}
        pairs, pair_pictures, pictures = [], [], []
        for file in picture_files:
            with _opened(file) as shard:
                pairs.append(shard.get_tensor("pairs"))
                pair_pictures.append(shard.get_tensor("pair_pictures"))
                pictures.append(shard.get_tensor("pictures"))
                self.rejected.update({int(k): r for k, r in json.loads(shard.metadata()["rejected"]).items()})
        captions = []
        self.has_pooled = False
        for file in prompt_files:
            with _opened(file) as shard:
                captions.append(shard.get_tensor("captions"))
                self.has_pooled = "pooled" in shard.keys()  # noqa: SIM118 - not a dict
        self.pictures, self.captions = KeyIndex(pictures), KeyIndex(captions)
        # A pair counts when both pictures are there, whatever shards somebody deleted.
        whole = [self.pictures.has(both).all(axis=1) for both in pair_pictures]
        self.pairs = KeyIndex([keys[there] for keys, there in zip(pairs, whole, strict=True)])
        self._pair_pictures = [both[there] for both, there in zip(pair_pictures, whole, strict=True)]
        self._pictures = ShardReader(picture_files)
        self._prompts = ShardReader(prompt_files)

    def pair(self, key: int) -> tuple[int, int]:
        """Keys of the pair's pictures."""
        shard, row = self.pairs.find(key)
        first, second = self._pair_pictures[shard][row].tolist()
        return first, second

    def picture(self, key: int, flip: bool) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """Latents ``[C, h, w]``, original size (height, width) and crop (top, left)."""
        shard, row = self.pictures.find(key)
        latents = self._pictures.row(shard, "latents", row)[int(flip)]
        height, width = self._pictures.row(shard, "original_size", row).tolist()
        top, left = self._pictures.row(shard, "crop", row)[int(flip)].tolist()
        return latents, (height, width), (top, left)

    def prompt(self, key: int) -> tuple[Tensor, Tensor | None]:
        """Hidden ``[L, D]`` and pooled ``[P]`` states."""
        shard, row = self.captions.find(key)
        pooled = self._prompts.row(shard, "pooled", row) if self.has_pooled else None
        return self._prompts.row(shard, "hidden", row), pooled

    @property
    def bytes(self) -> int:
        """Size of the shards on disk."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a readable shard of a cache.",
            str(error),
            "delete it and run t2i-align data cache CONFIG; only what it held is encoded again",
        ) from error
