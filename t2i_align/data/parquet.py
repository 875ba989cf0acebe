"""Parquet files in the Pick-a-Pic schema, read in place, one row group at a time."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i_align.data.pickapic import CHEAP, PICTURES, picture_bytes, read_columns, require_columns
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError

Name = TypeVar("Name", bound=PurePath)
CACHED_BYTES = 256 * 1024**2  # of row groups held in memory
SHARD_NAME = re.compile(r"^(?P<split>.+)-\d+-of-\d+")
SPLIT_NAMES = frozenset(
    ("train", "validation", "valid", "val", "dev", "test", "heldout", "validation_unique", "test_unique")
)


class ParquetPairs(PairTable):
    """Pairs of one or many parquet files.

    A random read costs one row group, so files written with small row groups (`t2i-align data convert` does)
    suit live training; files with large ones should be cached.

    Args:
        address: what the user wrote.
        files: in order.
        opened: opens one of them; local files are mapped.
    """

    def __init__(
        self, address: str, files: Sequence[PurePath], opened: Callable[[Any], pq.ParquetFile] | None = None
    ) -> None:
        self.files = files
        self._readers = [opened(file) if opened else _open(Path(file)) for file in files]
        for reader in self._readers:
            require_columns(reader.schema_arrow.names, address)
        tables = [_cheap(reader) for reader in self._readers]
        columns, self._rows = read_columns(pa.concat_tables(tables, promote_options="permissive"), address)
        super().__init__(address, columns)
        groups = [
            (file, group, reader.metadata.row_group(group).num_rows)
            for file, reader in enumerate(self._readers)
            for group in range(reader.num_row_groups)
        ]
        self._groups = [(file, group) for file, group, _ in groups]
        self._starts = np.cumsum([0] + [rows for *_, rows in groups])
        self._file_starts = np.cumsum([0] + [reader.metadata.num_rows for reader in self._readers])
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        absolute = int(self._rows[row])
        group = int(np.searchsorted(self._starts, absolute, side="right")) - 1
        table, offset = self._row_group(group), absolute - int(self._starts[group])
        folder = Path(self.files[self._groups[group][0]].parent)
        first, second = (picture_bytes(table[name][offset].as_py(), folder) for name in PICTURES)
        return first, second

    def location(self, row: int) -> str:
        """File and row in it, counted from 0."""
        absolute = int(self._rows[row])
        file = int(np.searchsorted(self._file_starts, absolute, side="right")) - 1
        return f"{self.files[file].name} row {absolute - int(self._file_starts[file])}"

    def picture_signature(self) -> Iterable[bytes]:
        """Compressed sizes and positions of the picture columns, which stand in every file's footer."""
        for reader in self._readers:
            for group in range(reader.num_row_groups):
                metadata = reader.metadata.row_group(group)
                for column in (metadata.column(i) for i in range(metadata.num_columns)):
                    if column.path_in_schema.split(".")[0] in PICTURES:
                        yield f"{column.total_compressed_size} {column.total_uncompressed_size};".encode()

    def _row_group(self, index: int) -> pa.Table:
        """Picture columns of a row group; the last ones used stay in memory."""
        with self._lock:  # a parquet reader is not thread safe
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            file, group = self._groups[index]
            table = self._readers[file].read_row_group(group, columns=list(PICTURES))
            self._cache[index] = table
            while len(self._cache) > 1 and sum(held.nbytes for held in self._cache.values()) > CACHED_BYTES:
                self._cache.popitem(last=False)
            return table


def split_files(folder: Path, split: str) -> list[Path]:
    """The folder's parquet files that belong to a split.

    A file belongs to the split its name (``train-00000-of-00645.parquet``, ``test.parquet``) or its folder
    says. Where no file names a split, all belong.

    Raises:
        UserError: files name splits, but not this one.
    """
    files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    return of_split(files, folder, split, str(folder))


def of_split(files: list[Name], folder: PurePath, split: str, address: str) -> list[Name]:
    """Those of a folder's files that belong to a split; see `split_files`.

    Raises:
        UserError: files name splits, but not this one.
    """
    named = {file: _split_of(file, folder) for file in files}
    splits = sorted({name for name in named.values() if name is not None})
    chosen = [file for file, name in named.items() if name == split]
    if splits and not chosen:
        raise UserError(
            f"{address} holds no split {split!r}.",
            f"splits {', '.join(splits)}",
            "set data.split to one of them",
        )
    return chosen if splits else files


def _split_of(file: PurePath, folder: PurePath) -> str | None:
    sharded = SHARD_NAME.match(file.name)
    if sharded:
        return sharded["split"]
    parents = [part.name for part in file.relative_to(folder).parents]
    return next((name for name in (file.stem, *parents) if name in SPLIT_NAMES), None)


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{file} cannot be read as parquet.",
            str(error).splitlines()[0],
            "write or download the file again",
        ) from error


def _cheap(reader: pq.ParquetFile) -> pa.Table:
    names = [name for name in CHEAP if name in reader.schema_arrow.names]
    return reader.read(columns=names)
