"""The pairs of a run as a cache remembers them: mapped from one file, so that a start reads none of them.

Opening a source reads every caption, settles ties and hold-out, and looks every pair up in the cache: minutes where
there are millions. The outcome is a function of the files, the data section and the cache, so it is written once, as
an Arrow file ``pairs-<key>.arrow`` in the cache's folder, and mapped by every later start. Its key holds name, size
and time of change of the source's files, what the selection reads of the data section, and the identity of the cache:
when one changes, the pairs are worked out again. Sources whose pictures are files of their own, and ranked lists, are
opened as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reward_models.files import complete_file
from t2i_align.config.schema import DataConfig
from t2i_align.data.hub import dataset_files
from t2i_align.data.layout import recognise
from t2i_align.data.pair_source import PairSource
from t2i_align.data.parquet import holds_paths
from t2i_align.data.remote import remote_files
from t2i_align.data.selection import Which, loser_captioner
from t2i_align.data.sources import heldout_table, is_remote, resolve_address, training_table
from t2i_align.data.tables import PairColumns, PairTable
from t2i_align.errors import UserError

FORMAT = 1
PREFIX = "pairs-"
TEXTS = ("pair_ids", "captions", "captions_1", "users")
SELECTING = (
    *("source", "format", "columns", "split", "heldout_source", "heldout_split", "heldout_fraction", "ties"),
    *("max_pairs", "loser_captions", "shuffle_labels"),
)
BLOCK = 65536


class Texts(Sequence[str]):
    """A column of texts that stays in its file until one is asked for."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return Texts(self._column[index]) if isinstance(index, slice) else self._column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self._column.slice(start, BLOCK).to_pylist()


class PlannedTable(PairTable):
    """The pairs a run uses, without those it leaves out. Their pictures are the source's, opened when one is asked for.

    Args:
        address, columns, fingerprint: of the source's table, less the rows that are not here.
        rows: ``[N]`` rows of the source's table.
        open_source_table: opens it.
    """

    def __init__(
        self,
        address: str,
        columns: PairColumns,
        fingerprint: str,
        rows: np.ndarray,
        open_source_table: Callable[[], PairTable],
    ) -> None:
        super().__init__(address, columns)
        self.__dict__["fingerprint"] = fingerprint  # takes the place of the cached property
        self._source_rows, self._open_source_table = rows, open_source_table
        self._source_table: PairTable | None = None

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Encoded pictures 0 and 1; see `PairTable.images`."""
        return self._table().images(int(self._source_rows[row]))

    def location(self, row: int) -> str:
        """Where a person finds the row."""
        return self._table().location(int(self._source_rows[row]))

    def source_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the source's table."""
        return self._source_rows[rows]

    def picture_signature(self) -> Iterable[bytes]:
        """Of the source's whole table."""
        return self._table().picture_signature()

    def _table(self) -> PairTable:
        if self._source_table is None:
            self._source_table = self._open_source_table()
        return self._source_table


def plan_file(folder: Path, identity: str, config: DataConfig, which: Which, seed: int) -> Path | None:
    """Where the pairs of a run are remembered; None for sources that are opened as they are.

    Args:
        folder: of the cache.
        identity: of its shards.
        config: the data section.
        which: training or held-out pairs.
        seed: of the coins for ties and shuffled labels.

    Raises:
        UserError: there is nothing at the address.
    """
    files = source_files(config.source, config.format, config.split, config.columns)
    if config.heldout_source is not None and which == "heldout":  # less the prompts of the training pairs
        others = source_files(config.heldout_source, "auto", config.heldout_split, config.columns)
        files = None if files is None or others is None else files + others
    if files is None:
        return None
    coins = seed if config.ties == "coin" or config.shuffle_labels else None
    wanted = [FORMAT, identity, which, coins, config.model_dump(mode="json", include=set(SELECTING)), files]
    digest = hashlib.blake2b(json.dumps(wanted, sort_keys=True).encode(), digest_size=16).hexdigest()
    return folder / f"{PREFIX}{which}-{digest}.arrow"


def source_files(
    address: str, format: str, split: str, columns: Mapping[Any, str] | None = None
) -> list[list[Any]] | None:
    """Name, size and time of change of the files behind an address; None where pictures are files of their own.

    Raises:
        UserError: nothing there.
    """
    if is_remote(address):
        return remote_files(address, split)
    path = resolve_address(address)
    if path is None:
        return _signatures(dataset_files(address, split)) if format in ("auto", "pickapic") else None
    if path.is_file():
        whole = path.suffix == ".parquet" and not _names_files(path, columns or {}, address)
        return _signatures([path]) if whole else None
    files = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".arrow"))
    if not files or format not in ("auto", "pickapic"):
        return None
    if files[0].suffix == ".parquet" and _names_files(files[0], columns or {}, address):
        return None
    return _signatures([*files, *path.rglob("*.json")])


def _names_files(file: Path, columns: Mapping[Any, str], address: str) -> bool:
    """Whether a parquet file holds paths in place of pictures."""
    try:
        schema = pq.read_schema(file)
        return holds_paths(schema, recognise(schema.names, columns, address))
    except (pa.ArrowInvalid, OSError, UserError):
        return True  # whoever opens it says what is wrong


def _signatures(files: list[Path]) -> list[list[Any]]:
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def write_plan(file: Path, source: PairSource, keys: np.ndarray) -> None:
    """Remember a source whose pairs are all in the cache; one process writes it whole, or not at all.

    Args:
        file: from `plan_file`.
        source: the pairs.
        keys: ``[N]`` of the pairs in the cache.
    """
    columns = source.table.columns
    if columns.lists is not None or not os.access(file.parent, os.W_OK):
        return
    rows = source.rows
    table = {"keys": keys, "rows": rows.astype(np.int64), "labels": source.labels(), "weights": source.weights()}
    table |= {f"gap {name}": source.gaps(name) for name in source.margin_names}
    if source.has_scores:
        table |= {f"score {side}": source.scores()[:, side] for side in (0, 1)}
    arrays = {name: pa.array(np.ascontiguousarray(values)) for name, values in table.items()}
    for name in TEXTS:
        texts = getattr(columns, name)
        if texts is not None:
            arrays[name] = pa.array((texts[row] for row in rows.tolist()), pa.large_string(), size=len(rows))
    about = {
        "address": source.table.address,
        "table_fingerprint": source.table.fingerprint,
        "fingerprint": source.fingerprint,
        "left_out": source.left_out,
    }
    batch = pa.record_batch(arrays).replace_schema_metadata({"about": json.dumps(about)})
    with (
        complete_file(file) as temporary,
        pa.OSFile(str(temporary), "wb") as stream,
        pa.ipc.new_file(stream, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_plan(file: Path, config: DataConfig, which: Which) -> tuple[PairSource, np.ndarray]:
    """The source and the keys that `write_plan` was given, mapped."""
    batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
    about = json.loads(batch.schema.metadata[b"about"])

    def numbers(name: str) -> np.ndarray:
        return batch.column(name).to_numpy()

    names = batch.schema.names
    texts = {name: Texts(batch.column(name)) if name in names else None for name in TEXTS}
    scores = [numbers(f"score {side}") for side in (0, 1)] if "score 0" in names else None
    columns = PairColumns(
        captions=texts["captions"] or (),
        labels=numbers("labels"),
        pair_ids=texts["pair_ids"] or (),
        captions_1=texts["captions_1"],
        users=texts["users"],
        gaps={name.removeprefix("gap "): numbers(name) for name in names if name.startswith("gap ")},
        scores=None if scores is None else np.stack(scores, axis=1),
    )
    heldout = which == "heldout" and config.heldout_source is not None
    opened = partial(heldout_table if heldout else training_table, config)
    table = PlannedTable(about["address"], columns, about["table_fingerprint"], numbers("rows"), opened)
    everything = np.arange(len(table))
    captioner = loser_captioner(config, which)
    source = PairSource(table, everything, columns.labels, numbers("weights"), about["left_out"], captioner)
    source.__dict__["fingerprint"] = about["fingerprint"]  # what the cached property would work out from all pairs
    return source, numbers("keys")
