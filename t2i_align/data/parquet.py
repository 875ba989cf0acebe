"""Parquet files of pairs, read in place, one row group at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2i_align.data.layout import Layout, recognise
from t2i_align.data.pickapic import canonical, cheap_columns, picture_bytes, read_columns
from t2i_align.data.splits import of_split
from t2i_align.data.tables import PairTable, picture_sizes
from t2i_align.errors import UserError

CACHED_BYTES = 256 * 1024**2  # of row groups held in memory


class ParquetPairs(PairTable):
    """Pairs of one or many parquet files.

    A random read costs one row group, so files written with small row groups (`t2i-align data convert` does)
    suit live training; files with large ones should be cached.

    Args:
        address: what the user wrote.
        files: in order; at least one.
        opened: opens one of them; local files are mapped.
        chosen: our field -> column, see `layout.recognise`.

    Raises:
        UserError: a file is damaged, in no known layout, or its cells make no sense.
    """

    layout: Layout

    def __init__(
        self,
        address: str,
        files: Sequence[PurePath],
        opened: Callable[[Any], pq.ParquetFile] | None = None,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        self.files = files
        self._readers = [opened(file) if opened else _open(Path(file)) for file in files]
        self.layout = _one_layout(self._readers, files, chosen or {}, address)
        self._file_starts = np.cumsum([0] + [reader.metadata.num_rows for reader in self._readers])
        tables = [_cheap(reader, self.layout) for reader in self._readers]
        columns, self._rows = read_columns(
            pa.concat_tables(tables, promote_options="permissive"), self.layout, self._place, address, self._names()
        )
        super().__init__(address, columns)
        groups = [
            (file, group, reader.metadata.row_group(group).num_rows)
            for file, reader in enumerate(self._readers)
            for group in range(reader.num_row_groups)
        ]
        self._groups = [(file, group) for file, group, _ in groups]
        self._starts = np.cumsum([0] + [rows for *_, rows in groups])
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures; see `PairTable.images`."""
        absolute = int(self._rows[row])
        group = int(np.searchsorted(self._starts, absolute, side="right")) - 1
        table, offset = self._row_group(group), absolute - int(self._starts[group])
        folder = Path(self.files[self._groups[group][0]].parent)
        first, second = (picture_bytes(table[name][offset].as_py(), folder) for name in self.layout.pictures)
        return first, second

    def location(self, row: int) -> str:
        """File and row in it, counted from 0."""
        return self._place(int(self._rows[row]))

    def _place(self, absolute: int) -> str:
        file = int(np.searchsorted(self._file_starts, absolute, side="right")) - 1
        return f"{self.files[file].name} row {absolute - int(self._file_starts[file])}"

    def _names(self) -> pa.Table | None:
        """Both picture columns where they hold paths; None where they hold pictures."""
        if not holds_paths(self._readers[0].schema_arrow, self.layout):
            return None
        return pa.concat_tables([reader.read(columns=list(self.layout.pictures)) for reader in self._readers])

    def picture_signature(self) -> Iterable[bytes]:
        """Compressed sizes of the picture columns, which stand in every file's footer; sizes of files behind paths."""
        for reader in self._readers:
            for group in range(reader.num_row_groups):
                metadata = reader.metadata.row_group(group)
                for column in (metadata.column(i) for i in range(metadata.num_columns)):
                    if column.path_in_schema.split(".")[0] in self.layout.pictures:
                        yield f"{column.total_compressed_size} {column.total_uncompressed_size};".encode()
        names = self._names()
        if names is not None:
            for name in self.layout.pictures:
                yield from picture_sizes(Path(self.files[0].parent), names[name].to_pylist())

    def _row_group(self, index: int) -> pa.Table:
        """Picture columns of a row group; the last ones used stay in memory."""
        with self._lock:  # a parquet reader is not thread safe
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            file, group = self._groups[index]
            table = self._readers[file].read_row_group(group, columns=list(self.layout.pictures))
            self._cache[index] = table
            while len(self._cache) > 1 and sum(held.nbytes for held in self._cache.values()) > CACHED_BYTES:
                self._cache.popitem(last=False)
            return table


def split_files(folder: Path, split: str) -> tuple[list[Path], str]:
    """The folder's parquet files that belong to a split, and its name there; see `splits.of_split`.

    Raises:
        UserError: files name splits, but not this one.
    """
    files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    return of_split(files, folder, split, str(folder)) if files else ([], split)


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{file} cannot be read as parquet.",
            str(error).splitlines()[0],
            "write or download the file again",
        ) from error


def holds_paths(schema: pa.Schema, layout: Layout) -> bool:
    """Whether the picture columns hold paths of files, not pictures."""
    types = [schema.field(name).type for name in layout.pictures]
    return any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in types)


def _one_layout(
    readers: Sequence[pq.ParquetFile], files: Sequence[PurePath], chosen: Mapping[str, str], address: str
) -> Layout:
    """The layout of the first file, which the others must share; optional columns may be missing there."""
    layout = recognise(readers[0].schema_arrow.names, chosen, address)
    needed = [
        *layout.pictures,
        *(layout.cheap[name] for name in ("caption", "label_0", "winner") if name in layout.cheap),
    ]
    for reader, file in zip(readers, files, strict=True):
        if missing := [name for name in needed if name not in reader.schema_arrow.names]:
            raise UserError(
                f"The files of {address} have different columns.",
                f"{file.name} has no {', '.join(missing)}, which {files[0].name} has",
                "write them alike, or name some of them alone",
            )
    return layout


def _cheap(reader: pq.ParquetFile, layout: Layout) -> pa.Table:
    columns = cheap_columns(layout, reader.schema_arrow.names)
    return canonical(reader.read(columns=list(columns.values())), columns)
