"""Read the tensors of a torch zip file without ever running what its pickle asks for.

`torch.load(weights_only=True)` is the normal way in. Two published files need more: MPS is a pickled `nn.Module`
whose classes live in its authors' repository, and `HPS_v2.pt` carries numpy scalars beside its weights. Here every
class or function a pickle names is replaced by an inert stand-in that records nothing but its arguments; only the
handful of rebuild functions torch itself uses for tensors have an effect, and those are written in this file. No
module is imported on behalf of the file, no method of a foreign class is called.

    archive/data.pkl   the pickle; tensors are persistent ids ("storage", type, key, location, count)
    archive/data/KEY   the raw bytes of one storage, stored uncompressed
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.errors import RewardModelError

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stand-in for an object of a foreign class: it accepts whatever a pickle does to it and does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a foreign mapping are dropped."""

    def append(self, item: Any) -> None:
        """Items of a foreign list are dropped."""

    def extend(self, items: Any) -> None:
        """Items of a foreign list are dropped."""


class _InertType(type):
    """Class of the stand-ins for classes; calling one makes an `Inert`, whatever the arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Inert:
        return Inert(cls.__name__)


class InertUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Unpickler that resolves every global to a stand-in (see module docstring).

    The pure Python unpickler is used on purpose: its NEWOBJ opcode goes through `cls.__new__`, which the stand-in
    classes answer themselves, and every opcode that could touch an object can be overridden and read.

    Args:
        file: stream of the pickle.
        storages: returns the flat tensor of a storage from its key, dtype and element count.
        allowed: full names of the foreign globals to stand in for; None stands in for all of them.
    """

    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(
        self,
        file: Any,
        storages: Callable[[str, torch.dtype, int], Tensor],
        allowed: frozenset[str] | None = None,
    ) -> None:
        super().__init__(file)
        self._storages, self._allowed = storages, allowed

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path == "collections.OrderedDict":
            return OrderedDict
        if path in ("builtins.set", "__builtin__.set"):
            return set
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if path == "torch._utils._rebuild_tensor_v2":
            return _rebuild_tensor
        if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return _rebuild_parameter
        if self._allowed is not None and path not in self._allowed:
            raise pickle.UnpicklingError(f"the pickle refers to {path}, which is not part of plain weights")
        return _InertType(path, (), {"__new__": lambda cls, *args, **kwargs: Inert(path)})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not allowed in a checkpoint")

    def load_build(self) -> None:
        """BUILD gives an object its state; only a stand-in may take one, real objects stay as they are."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state, target = stack.pop(), stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, OrderedDict):  # a state dict's _metadata attribute is not needed
            raise pickle.UnpicklingError(f"the pickle tries to alter a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r:.80}")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(count, int):
            raise pickle.UnpicklingError("malformed storage reference")
        return self._storages(key, dtype, count)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """The described view, contiguous, after checking that it lies inside its storage."""
    if not isinstance(storage, Tensor) or len(size) != len(stride):
        raise pickle.UnpicklingError("malformed tensor")
    if offset < 0 or any(s < 0 for s in size) or any(s < 0 for s in stride):
        raise pickle.UnpicklingError("malformed tensor")
    last = offset + sum((s - 1) * t for s, t in zip(size, stride, strict=True))
    if all(s > 0 for s in size) and last >= storage.numel():
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    expanded = 1
    for length in size:
        expanded *= length
    if expanded > storage.numel():  # stride 0 could turn one byte into terabytes
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return torch.as_strided(storage, size, stride, offset).contiguous()


def read_inert(path: Path, allowed: frozenset[str] | None = None) -> Any:
    """Return the unpickled structure of a torch zip file with foreign objects as `Inert`.

    Tensors are views of a private memory map: bytes that nobody uses are never read.

    Args:
        path: file written by `torch.save` since torch 1.6.
        allowed: the foreign globals to accept, None for any.

    Raises:
        RewardModelError: not a torch zip file, truncated, or its pickle does what no checkpoint needs.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _read_archive(path, archive, memory, allowed)
    except RewardModelError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise RewardModelError(
            f"{path} is not a torch zip file or is truncated",
            found=f"{type(error).__name__}: {error}",
            fix="download it again; files from before torch 1.6 (2020) must be saved again by their owner",
        ) from error
    except Exception as error:  # a hostile pickle can raise anything from the unpickling machine
        raise RewardModelError(
            f"{path} cannot be read as weights; nothing in it was executed",
            found=f"{type(error).__name__}: {error}",
            fix="get the file again from its official source, or as safetensors",
        ) from error


def _read_archive(path: Path, archive: zipfile.ZipFile, memory: mmap.mmap, allowed: frozenset[str] | None) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1 or any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise RewardModelError(f"{path} is not a torch checkpoint", found=f"zip entries {list(entries)[:5]}")
    root = pickles[0][: -len("data.pkl")]
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise RewardModelError(f"{path} was written on a big-endian machine", fix="save it again elsewhere")

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        info = entries[f"{root}data/{key}"]
        start = _data_offset(memory, info)
        needed = count * dtype.itemsize
        if info.file_size != needed or start + needed > len(memory):
            raise RewardModelError(
                f"{path} is damaged",
                found=f"storage {key} has {info.file_size} bytes, {needed} expected",
                fix="download it again",
            )
        return (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        )

    return InertUnpickler(io.BytesIO(archive.read(pickles[0])), storage, allowed).load()


def _data_offset(memory: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    header = memory[info.header_offset : info.header_offset + 30]
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + name_length + extra_length


def module_state_dict(module: Inert, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers of a pickled `nn.Module`, named as by `state_dict()`."""
    state = module.state
    if not isinstance(state, dict):
        return {}
    tensors: dict[str, Tensor] = {}
    skipped = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in dict(state.get(kind) or {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in skipped):
                tensors[f"{prefix}{name}"] = value
    for name, child in dict(state.get("_modules") or {}).items():
        if isinstance(child, Inert):
            tensors.update(module_state_dict(child, f"{prefix}{name}."))
    return tensors
