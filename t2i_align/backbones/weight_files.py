"""Which files hold a component's weights, and what they contain, without reading the weights."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from t2i_align.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

# model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors, and both orders of variant and shard
STEM = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<before>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<after>\w+))?"
)
REFETCH = "download or copy the file again"


@dataclass(frozen=True)
class Header:
    """Names and shapes of the tensors in a safetensors file, and its metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)


def component_files(folder: Path, variant: str | None, needs_variant: bool) -> list[Path]:
    """The weight files that ``from_pretrained`` reads for a component, safetensors before pickles.

    Args:
        folder: component folder, such as ``unet/``.
        variant: requested variant; None for the plain files.
        needs_variant: refuse plain files when the variant is missing (otherwise they are the fallback).

    Raises:
        UserError: no weights, or not in this variant.
    """
    if not folder.is_dir():
        raise UserError("A component of the model is missing.", f"no folder {folder}", "copy the whole pipeline folder")
    by_variant = weight_files(folder)
    if variant in by_variant:
        return by_variant[variant]
    if variant is not None and None in by_variant and not needs_variant:
        return by_variant[None]
    present = ", ".join(sorted(name or "(none)" for name in by_variant)) or "no weights at all"
    raise UserError(
        f"There are no weights {f'of variant {variant}' if variant else 'without a variant'}.",
        f"{folder} has: {present}",
        "set model.variant, or --variant, to one of these (null for none)"
        if by_variant
        else "copy the weights into this folder",
    )


def weight_files(folder: Path) -> dict[str | None, list[Path]]:
    """Variant (None: the plain files) -> its weight files in a component folder; empty without any."""
    by_variant: dict[str | None, list[Path]] = {}
    for suffix in (".safetensors", ".bin"):
        for path in sorted(folder.glob(f"*{suffix}")):
            match = STEM.fullmatch(path.name.removesuffix(suffix))
            if match:
                name = match["before"] or match["after"]
                files = by_variant.setdefault(name, [])
                if not files or files[0].suffix == suffix:
                    files.append(path)
    return by_variant


def only_variant(folder: Path) -> str | None:
    """The variant of a folder that has one and no plain weights; None otherwise."""
    variants = list(weight_files(folder))
    return variants[0] if len(variants) == 1 else None


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape over all shards.

    Raises:
        UserError: a truncated or foreign file, or a pickle that holds more than tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes.update(read_header(path).shapes if path.suffix == ".safetensors" else _pickled_shapes(path))
    return shapes


def read_header(path: Path) -> Header:
    """Parse the header of a safetensors file and compare it with the file's size.

    Raises:
        UserError: missing, truncated, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            text = file.read(length) if len(prefix) == 8 and length <= size - 8 else b""
    except OSError as error:
        raise UserError("A weight file cannot be read.", f"{path}: {error}", REFETCH) from error
    if prefix == b"version ":
        raise UserError("A weight file is a Git LFS pointer, not the weights.", str(path), "run `git lfs pull`")
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("A weight file is truncated or not safetensors.", f"{path}, {size} bytes", REFETCH) from error
    if size != 8 + length + end:
        raise UserError(
            "A weight file is truncated.", f"{path}: {size} bytes, its header promises {8 + length + end}", REFETCH
        )
    return Header(shapes, metadata)


def _pickled_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes in a ``.bin``, through the restricted unpickler that runs no code."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError, OSError) as error:
        raise UserError(
            "A pickle was refused: it is damaged, or holds more than tensors and could run code.",
            f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "get the safetensors version of this model",
        ) from error
