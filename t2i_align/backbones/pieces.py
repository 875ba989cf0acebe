"""Named tensors that lie in one safetensors file, or in pieces: rows of them, one file for each process that wrote.

``trainable.safetensors`` is whole; ``trainable-00001-of-00002.safetensors`` holds the rows of one of two processes, and
its header says where they begin and how large the whole tensor is. So any number of processes reads either, each no
more than its own rows, and nothing but tensors and JSON is ever parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from t2i_align.backbones.weight_files import read_header
from t2i_align.errors import UserError

PIECES = "pieces"  # in the header's metadata: name -> [first row, whole shape]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor.

    Attributes:
        rows: ``[stop - start, ...]``; or a whole tensor of any shape.
        start: number of the first row.
        shape: of the whole tensor.
    """

    rows: Tensor
    start: int
    shape: tuple[int, ...]


def write_pieces(pieces: Mapping[str, Piece], folder: Path, part: str, index: int, count: int) -> None:
    """Write what process `index` of `count` holds of the named tensors; pieces without rows are left out."""
    held = {name: piece for name, piece in pieces.items() if piece.rows.numel()}
    places = {name: [piece.start, list(piece.shape)] for name, piece in held.items()}
    tensors = {name: piece.rows.detach().cpu().contiguous() for name, piece in held.items()}
    number = "" if count == 1 else f"-{index + 1:05d}-of-{count:05d}"
    metadata = None if count == 1 else {PIECES: json.dumps(places)}
    save_file(tensors, folder / f"{part}{number}.safetensors", metadata=metadata)


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of one part of a checkpoint, such as ``trainable``; empty where there are none."""
    whole = folder / f"{part}.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{part}-*-of-*.safetensors"))


class NamedTensors:
    """Tensors by name, read when asked for.

    Args:
        files: one, or all pieces.

    Raises:
        UserError: a damaged file, or rows that no file holds.

    Attributes:
        shapes: of the whole tensors.
    """

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[tuple[int, int, Path]]] = {}
        self._open = lru_cache(maxsize=None)(lambda path: safe_open(path, framework="pt"))
        for path in files:
            header = read_header(path)
            places: dict[str, Any] = json.loads(header.metadata.get(PIECES, "{}"))
            for name, shape in header.shapes.items():
                start, whole = places.get(name, (0, shape))
                self.shapes[name] = tuple(whole)
                self._places.setdefault(name, []).append((start, start + (shape[0] if shape else 1), path))
        for name, pieces in self._places.items():
            pieces.sort()
            self._check(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, by default all; on the CPU, as stored."""
        shape = self.shapes[name]
        if not shape:
            return self._open(self._places[name][0][2]).get_tensor(name)
        stop = shape[0] if stop is None else stop
        found = [
            self._open(path).get_slice(name)[max(start, first) - first : min(stop, end) - first]
            for first, end, path in self._places[name]
            if max(start, first) < min(stop, end)
        ]
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0, *shape[1:])

    def _check(self, name: str) -> None:
        pieces, shape = self._places[name], self.shapes[name]
        joints = [0, *(end for _, end, _ in pieces)]
        if [start for start, _, _ in pieces] != joints[:-1] or joints[-1] != (shape[0] if shape else 1):
            raise UserError(
                "A file of a checkpoint that several processes wrote is missing.",
                f"{name} in {pieces[0][2].parent}: rows {', '.join(f'{a}-{b}' for a, b, _ in pieces)} of {shape}",
                "copy the whole folder, or resume from an older checkpoint",
            )
