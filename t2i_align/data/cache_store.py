"""The files of a cache: encoded pictures and prompts in safetensors shards that are complete or absent.

A shard is written under a temporary name and renamed, and says itself what it holds: whatever was killed, the shards
that are there are valid, and the rest is encoded by the next build. `cache_index` saves reading them at every start.
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
from collections import OrderedDict
from io import FileIO
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from reward_models.files import complete_file
from t2i_align.data.cache_index import DTYPES, Layouts, StoreIndex

OPEN_SHARDS = 256


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
    with complete_file(folder / name) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)


class ShardReader:
    """Rows of the shards' tensors, read at their place in the file; at most `OPEN_SHARDS` files are open. Thread safe.

    Nothing is mapped into memory, so what a run holds does not grow with what it has read.

    Args:
        folder: of the cache.
        layouts: of each shard, by number.
    """

    def __init__(self, folder: Path, layouts: Layouts) -> None:
        self._folder, self._layouts = folder, layouts
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, shard: int, name: str, row: int, part: int | None = None) -> Tensor:
        """One row of a tensor, or one part of the row along its first dimension."""
        slot = self._layouts.slot(shard, name)
        shape, size, start = slot.shape, slot.row_bytes, slot.start + row * slot.row_bytes
        if part is not None:
            shape, size = shape[1:], size // shape[0]
            start += part * size
        file = self._file(shard)
        data = os.pread(file.fileno(), size, start)
        if len(data) != size:
            raise ValueError(f"{self._folder / self._layouts.names[shard]} ends within row {row} of {name}")
        return torch.frombuffer(bytearray(data), dtype=DTYPES[slot.dtype]).reshape(shape)

    def _file(self, shard: int) -> FileIO:
        """The open file. One that leaves the list closes when the last thread is done with it."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = FileIO(self._folder / self._layouts.names[shard])
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]


class CacheStore:
    """What the shards of a folder hold. Opening maps the folder's index; latents and prompts are read row by row.

    Args:
        folder: of the cache.
        keep_index: write the index where there is none for these shards; not for a look at a growing cache.

    Attributes:
        identity: changes with every shard that comes or goes.
        pairs: index of cached pairs.
        pictures: index of pictures.
        captions: index of prompts.
        rejected: pair key -> reason, for pairs with a picture that cannot be decoded.
        has_pooled: whether prompts have pooled states.
    """

    def __init__(self, folder: Path, keep_index: bool = True) -> None:
        self.folder = folder
        index = StoreIndex.of(folder, keep_index)
        self.identity, self.rejected = index.identity, index.rejected
        self.pairs, self.pictures, self.captions = index.pairs, index.pictures, index.captions
        self._pair_pictures = index.pair_pictures
        self.has_pooled = index.prompt_files.has("pooled")
        self._pictures = ShardReader(folder, index.picture_files)
        self._prompts = ShardReader(folder, index.prompt_files)

    def pair(self, key: int) -> tuple[int, int]:
        """Keys of the pair's pictures."""
        first, second = self._pair_pictures[self.pairs.position(key)].tolist()
        return first, second

    def picture(self, key: int, flip: bool) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """Latents ``[C, h, w]``, original size (height, width) and crop (top, left)."""
        shard, row = self.pictures.find(key)
        latents = self._pictures.row(shard, "latents", row, int(flip))
        height, width = self._pictures.row(shard, "original_size", row).tolist()
        top, left = self._pictures.row(shard, "crop", row, int(flip)).tolist()
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
