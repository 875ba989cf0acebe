"""Pairs of a Hugging Face dataset: a folder written by ``save_to_disk``, or a hub id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from t2i_align.data.layout import Layout, recognise
from t2i_align.data.pickapic import canonical, cheap_columns, picture_bytes, read_columns
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError


class DatasetPairs(PairTable):
    """Pairs of a ``datasets.Dataset``, memory mapped; pictures are never decoded by it.

    Args:
        address: what the user wrote.
        dataset: the split.
        chosen: our field -> column, see `layout.recognise`.
    """

    layout: Layout

    def __init__(self, address: str, dataset: Any, chosen: Mapping[str, str] | None = None) -> None:
        import datasets

        self.layout = recognise(dataset.column_names, chosen or {}, address)
        for name in self.layout.pictures:
            if isinstance(dataset.features[name], datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self._pictures = dataset.select_columns(list(self.layout.pictures)).with_format("arrow")
        cheap = cheap_columns(self.layout, dataset.column_names)
        table = dataset.select_columns(list(cheap.values())).with_format("arrow")[:]
        columns, self._rows = read_columns(
            canonical(table, cheap), self.layout, lambda row: f"{address} row {row}", address
        )
        super().__init__(address, columns)

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        cells = self._pictures[int(self._rows[row])]
        first, second = (picture_bytes(cells[name][0].as_py()) for name in self.layout.pictures)
        return first, second

    def location(self, row: int) -> str:
        """Row of the split, counted from 0."""
        return f"{self.address} row {int(self._rows[row])}"

    def picture_signature(self) -> Iterable[bytes]:
        """Lengths of the encoded pictures: Arrow keeps them apart from the bytes."""
        for name in self.layout.pictures:
            for chunk in self._pictures.data.column(name).chunks:
                values = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
                yield np.asarray(pc.fill_null(pc.binary_length(values), -1)).tobytes()


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved(folder: Path, address: str, split: str, chosen: Mapping[str, str] | None = None) -> DatasetPairs:
    """Open a folder written by ``save_to_disk``.

    Raises:
        UserError: the folder has no such split.
    """
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise _no_split(address, split, list(loaded))
        loaded = loaded[split]
    elif loaded.split is not None and str(loaded.split) != split:
        raise _no_split(address, split, [str(loaded.split)])
    return DatasetPairs(address, loaded, chosen)


def open_hub(address: str, split: str, chosen: Mapping[str, str] | None = None) -> DatasetPairs:
    """Open a dataset of the hub; it is downloaded once and memory mapped afterwards.

    Raises:
        UserError: it cannot be loaded.
    """
    return DatasetPairs(f"{address} ({split})", _loaded(address, split), chosen)


def dataset_files(address: str, split: str) -> list[Path]:
    """The files on this machine that hold a dataset of the hub.

    Raises:
        UserError: it cannot be loaded.
    """
    return [Path(file["filename"]) for file in _loaded(address, split).cache_files]


@lru_cache(maxsize=8)
def _loaded(address: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(address, split=split)
    except ValueError as error:
        if "split" in str(error).lower():
            raise UserError(
                f"Dataset {address} has no split {split!r}.", str(error).splitlines()[0], "set data.split"
            ) from error
        raise _unreachable(address, error) from error
    except (OSError, RuntimeError) as error:
        raise _unreachable(address, error) from error


def _no_split(address: str, split: str, splits: list[str]) -> UserError:
    return UserError(
        f"{address} holds no split {split!r}.", f"splits {', '.join(splits)}", "set data.split to one of them"
    )


def _unreachable(address: str, error: Exception) -> UserError:
    return UserError(
        f"{address} is neither a local path nor a hub dataset that can be loaded.",
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        "check the spelling of data.source; for the hub check the network and, for gated data, the login",
    )
