"""Tensors in pieces: any rows of any number of files, and nothing where rows are missing."""

from pathlib import Path

import pytest
import torch

from t2i_align.backbones.pieces import NamedTensors, Piece, part_files, write_pieces
from t2i_align.errors import UserError

TENSORS = {"a": torch.arange(14.0).view(7, 2), "b": torch.arange(2.0), "c": torch.tensor(3.0)}


def write(folder: Path, count: int) -> list[Path]:
    """Divide as FSDP does: rows in equal shares rounded up, the last ones smaller or empty; numbers whole."""
    for index in range(count):
        pieces = {}
        for name, tensor in TENSORS.items():
            share = -(-tensor.shape[0] // count) if tensor.ndim else 0
            rows = tensor[index * share : (index + 1) * share] if tensor.ndim else tensor
            held = rows if tensor.ndim or index == 0 else rows.new_empty(0)
            pieces[name] = Piece(held, min(index * share, len(tensor)) if tensor.ndim else 0, tuple(tensor.shape))
        write_pieces(pieces, folder, "part", index, count)
    return part_files(folder, "part")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_rows_come_back_from_any_number_of_pieces(tmp_path, count):
    files = write(tmp_path, count)
    assert len(files) == count and (count > 1 or files[0].name == "part.safetensors")
    read = NamedTensors(files)
    assert read.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert all(torch.equal(read.rows(name), tensor) for name, tensor in TENSORS.items())
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(read.rows("a", start, stop), TENSORS["a"][start:stop])


def test_missing_rows_are_named(tmp_path):
    write(tmp_path, 3)[1].unlink()
    with pytest.raises(UserError, match=r"(?s)several processes wrote is missing.*a in .*rows 0-3, 6-7 of \(7, 2\)"):
        NamedTensors(part_files(tmp_path, "part"))
