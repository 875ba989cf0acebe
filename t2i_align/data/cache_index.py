"""Where everything in a cache is, in files that are mapped and not loaded: a start costs the same for any number.

The shards say themselves what they hold; the index is worked out from them and only ever a copy. It belongs to the
names and sizes of the shards it was made from: another set of shards has another identity and gets another index.
``index-<identity>/`` holds numpy arrays, sorted by key, and ``index.json``:

=======================  ===================================================
``pairs``                ``[N]`` keys
``pair_pictures``        ``[N, 2]`` keys of each pair's pictures
``pictures, captions``   ``[M]`` keys
``*_places``             ``[M, 2]`` shard and row of each
``index.json``           layouts of the shards, pairs that were rejected
=======================  ===================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from reward_models.files import TEMPORARY
from t2i_align.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
FORMAT = 1
KINDS = ("pictures-", "prompts-")
PREFIX = "index-"
PLANS = "pairs-*.arrow"  # see `cache_plan`: they belong to one identity


@dataclass(frozen=True)
class Slot:
    """Where a tensor's rows are in a shard: byte of the first, shape of each."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Layouts:
    """Layouts of the shards of one kind. Shards are alike: what differs is only where their tensors begin.

    Args:
        names: file of each shard.
        shapes: tensor -> dtype and shape of a row, in any shard that has it.
        starts: tensor -> first byte in each shard ``[S]``; -1 where a shard lacks it.
    """

    def __init__(
        self, names: list[str], shapes: dict[str, tuple[str, tuple[int, ...]]], starts: dict[str, np.ndarray]
    ) -> None:
        self.names, self._shapes, self._starts = names, shapes, starts

    @classmethod
    def of(cls, names: list[str], headers: list[dict[str, Slot]]) -> Layouts:
        """From what each file's header says."""
        shapes = {name: (slot.dtype, slot.shape) for header in headers for name, slot in header.items()}
        starts = {
            name: np.array([header[name].start if name in header else -1 for header in headers], dtype=np.int64)
            for name in shapes
        }
        return cls(names, shapes, starts)

    def has(self, tensor: str) -> bool:
        """Whether the shards hold such a tensor."""
        return tensor in self._shapes

    def slot(self, shard: int, tensor: str) -> Slot:
        """Where a shard's tensor is."""
        return Slot(*self._shapes[tensor], int(self._starts[tensor][shard]))

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        starts = {name: values.tolist() for name, values in self._starts.items()}
        return {"names": self.names, "shapes": self._shapes, "starts": starts}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Layouts:
        """What `as_json` gave."""
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["shapes"].items()}
        starts = {name: np.array(values, dtype=np.int64) for name, values in content["starts"].items()}
        return cls(content["names"], shapes, starts)


class KeyIndex:
    """Where each key is.

    Args:
        keys: ``[M]`` int64, sorted.
        places: ``[M, 2]`` int32 shard and row in it.
    """

    def __init__(self, keys: np.ndarray, places: np.ndarray) -> None:
        self.keys, self.places = keys, places

    @classmethod
    def of(cls, shards: list[np.ndarray]) -> KeyIndex:
        """From the keys ``[M]`` of each shard, in the shard's order."""
        keys = np.concatenate([np.zeros(0, dtype=np.int64), *shards])
        order = np.argsort(keys, kind="stable")
        shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(one) for one in shards])
        row = np.concatenate([np.zeros(0, dtype=np.int32), *(np.arange(len(one), dtype=np.int32) for one in shards)])
        return cls(keys[order], np.stack([shard, row], axis=1)[order])

    def __len__(self) -> int:
        return len(self.keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys, of any shape, are there. Costs a search per key, however many are indexed."""
        if len(self.keys) == 0:
            return np.zeros(keys.shape, dtype=bool)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[places] == keys

    def position(self, key: int) -> int:
        """Place of a key in `keys`.

        Raises:
            KeyError: it is not there.
        """
        position = int(np.searchsorted(self.keys, key))
        if position == len(self.keys) or self.keys[position] != key:
            raise KeyError(key)
        return position

    def find(self, key: int) -> tuple[int, int]:
        """(shard, row in it) of a key.

        Raises:
            KeyError: it is not there.
        """
        shard, row = self.places[self.position(key)].tolist()
        return shard, row


@dataclass(frozen=True)
class StoreIndex:
    """Everything about a cache except latents and prompts; see the module.

    Attributes:
        identity: of the shards.
        pairs: pairs whose pictures are there, whatever shards somebody deleted; places belong to `pair_pictures`.
        pair_pictures: ``[N, 2]`` keys, in the order of ``pairs.keys``.
        pictures, captions: where each is.
        picture_files, prompt_files: layouts of the shards.
        rejected: pair key -> reason.
    """

    identity: str
    pairs: KeyIndex
    pair_pictures: np.ndarray
    pictures: KeyIndex
    captions: KeyIndex
    picture_files: Layouts
    prompt_files: Layouts
    rejected: dict[int, str]

    @classmethod
    def of(cls, folder: Path, keep: bool) -> StoreIndex:
        """The index of the shards that are there now, mapped where it was written before.

        Args:
            folder: of the cache.
            keep: write it where it was not; indices of other shards are removed.

        Raises:
            UserError: a shard cannot be read.
        """
        shards = _shards(folder)
        identity = hashlib.blake2b(json.dumps([FORMAT, shards]).encode(), digest_size=16).hexdigest()
        where = folder / f"{PREFIX}{identity}"
        if where.is_dir():
            with suppress(FileNotFoundError):  # another process that knows newer shards may just be removing it
                return cls._mapped(where, identity)
        index = cls._worked_out(folder, [name for name, _ in shards], identity)
        if keep and shards and os.access(folder, os.W_OK):
            index._write(where)
        return index

    @classmethod
    def _worked_out(cls, folder: Path, names: list[str], identity: str) -> StoreIndex:
        found: dict[str, list[np.ndarray]] = {"pairs": [], "pair_pictures": [], "pictures": [], "captions": []}
        files: dict[str, list[str]] = {"pictures": [], "prompts": []}
        headers: dict[str, list[dict[str, Slot]]] = {"pictures": [], "prompts": []}
        rejected: dict[int, str] = {}
        for name in names:
            kind = "pictures" if name.startswith("pictures") else "prompts"
            with _opened(folder / name) as shard:
                for tensor in ("pairs", "pair_pictures", "pictures") if kind == "pictures" else ("captions",):
                    found[tensor].append(shard.get_tensor(tensor))
                if kind == "pictures":
                    rejected |= {int(key): why for key, why in json.loads(shard.metadata()["rejected"]).items()}
            files[kind].append(name)
            headers[kind].append(read_header(folder / name))
        pictures = KeyIndex.of(found["pictures"])
        whole = [pictures.has(both).all(axis=1) for both in found["pair_pictures"]]
        pairs = KeyIndex.of([keys[there] for keys, there in zip(found["pairs"], whole, strict=True)])
        both = [two[there] for two, there in zip(found["pair_pictures"], whole, strict=True)]
        return cls(
            identity,
            pairs,
            _in_order(both, pairs.places),
            pictures,
            KeyIndex.of(found["captions"]),
            Layouts.of(files["pictures"], headers["pictures"]),
            Layouts.of(files["prompts"], headers["prompts"]),
            rejected,
        )

    def _write(self, where: Path) -> None:
        """Whole or not at all; several processes may do so at once."""
        temporary = where.with_name(f"{where.name}.{uuid.uuid4().hex}{TEMPORARY}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, array in self._arrays().items():
            np.save(temporary / f"{name}.npy", array)
        content = {
            "picture_files": self.picture_files.as_json(),
            "prompt_files": self.prompt_files.as_json(),
            "rejected": {str(key): reason for key, reason in self.rejected.items()},
        }
        (temporary / "index.json").write_text(json.dumps(content))
        for old in where.parent.glob(f"{PREFIX}*"):
            if old.suffix != TEMPORARY and old != where:
                shutil.rmtree(old, ignore_errors=True)
                for plan in where.parent.glob(PLANS):
                    plan.unlink(missing_ok=True)
        try:
            temporary.replace(where)
        except OSError:  # another process was faster, with the same content
            shutil.rmtree(temporary)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"pair_pictures": self.pair_pictures}
        for name in ("pairs", "pictures", "captions"):
            index: KeyIndex = getattr(self, name)
            arrays |= {name: index.keys, f"{name}_places": index.places}
        return arrays

    @classmethod
    def _mapped(cls, where: Path, identity: str) -> StoreIndex:
        def array(name: str) -> np.ndarray:
            return np.load(where / f"{name}.npy", mmap_mode="r")

        content = json.loads((where / "index.json").read_text())
        keys = {name: KeyIndex(array(name), array(f"{name}_places")) for name in ("pairs", "pictures", "captions")}
        return cls(
            identity=identity,
            pair_pictures=array("pair_pictures"),
            picture_files=Layouts.from_json(content["picture_files"]),
            prompt_files=Layouts.from_json(content["prompt_files"]),
            rejected={int(key): reason for key, reason in content["rejected"].items()},
            **keys,
        )


def read_header(file: Path) -> dict[str, Slot]:
    """Where the tensors of a safetensors file are: 8 bytes of length, that many of JSON, then the data."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: Slot(entry["dtype"], tuple(entry["shape"][1:]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _shards(folder: Path) -> list[tuple[str, int]]:
    """Name and size of every shard. Other files lie beside them: features of users' pairs, reference errors."""
    with os.scandir(folder) as entries:
        shards = (entry for entry in entries if entry.name.startswith(KINDS) and entry.name.endswith(".safetensors"))
        return sorted((entry.name, entry.stat().st_size) for entry in shards)


def _in_order(parts: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """``[N, 2]`` rows of the parts in the order of their places (part, row)."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    joined = np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts])
    return joined[starts[places[:, 0]] + places[:, 1]]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a readable shard of a cache.",
            str(error),
            "delete it and run t2i-align data cache CONFIG; only what it held is encoded again",
        ) from error
