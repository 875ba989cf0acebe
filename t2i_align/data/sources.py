"""From ``data.source`` to pairs: which format an address holds, and which pairs of it a run uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_align.config.schema import DataConfig
from t2i_align.data.layout import is_pair_table
from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import Which, normalise, select
from t2i_align.data.splits import of_split
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError
from t2i_align.text_tables import JSON_SUFFIXES, TABLE_SUFFIXES, read_table

if TYPE_CHECKING:
    from t2i_align.data.ranked import RankedSource

BUILT_IN = "shapes:"
SCHEME = "://"
ARROW_FORMATS = ("auto", "pickapic")
TABLES = (*JSON_SUFFIXES, *TABLE_SUFFIXES)
__all__ = ["PairSource", "has_heldout", "open_source", "open_table", "ranked_source", "resolve_address"]


def open_source(config: DataConfig, which: Which = "train", seed: int = 0) -> PairSource:
    """The training or held-out pairs of a run; no picture is read.

    Ties, hold-out (by prompt, never by row), ``max_pairs`` and ``shuffle_labels`` are applied.

    Args:
        config: the data section.
        which: "train" or "heldout".
        seed: of the coins for ties and shuffled labels.

    Raises:
        UserError: the address cannot be opened, rows cannot be trained on, or nothing is left.
    """
    _check_heldout(config)
    if which == "train" or config.heldout_source is None:
        if which == "heldout" and not has_heldout(config):
            raise UserError(
                "No pairs are held out.",
                "neither heldout_source nor heldout_fraction is set",
                "set one of them",
            )
        return select(training_table(config), config, which, seed)
    training, held_out = training_table(config), heldout_table(config)
    prompts = frozenset(map(normalise, training.columns.captions))
    return select(held_out, config, which, seed, prompts)


def has_heldout(config: DataConfig) -> bool:
    """Whether some pairs are kept out of training."""
    return config.heldout_source is not None or config.heldout_fraction > 0


def training_table(config: DataConfig) -> PairTable:
    """All rows of ``data.source``.

    Raises:
        UserError: see `open_table`.
    """
    return open_table(config.source, config.format, config.split, config.columns)


def heldout_table(config: DataConfig) -> PairTable:
    """All rows of ``data.heldout_source``; ``data.columns`` count where it has all of them, else it speaks for itself.

    Raises:
        UserError: see `open_table`.
    """
    address = config.heldout_source or ""
    try:
        return open_table(address, "auto", config.heldout_split, config.columns)
    except UserError:
        if not config.columns:
            raise
        return open_table(address, "auto", config.heldout_split)


def open_table(
    address: str, format: str = "auto", split: str = "train", columns: Mapping[Any, str] | None = None
) -> PairTable:
    """All rows of an address, as found.

    Args:
        address: parquet file or folder, the URL of either, dataset folder or hub id, JSONL, CSV or TSV file or its
            folder, a folder with ``chosen/`` and ``rejected/``, or ``shapes:...``.
        format: ``auto`` looks at the address.
        split: of a dataset, or of a folder whose files are named by split.
        columns: our field -> column, where `layout` does not recognise it.

    Raises:
        UserError: nothing there, or not in that format.
    """
    if is_remote(address):
        if format not in ARROW_FORMATS:
            raise UserError(
                f"{address} cannot be read as format {format!r}.",
                "only parquet files are read in place from another file system",
                "convert them with t2i-align data convert and upload the result, or download them",
            )
        from t2i_align.data.remote import open_remote

        return open_remote(address, split, columns)
    path = resolve_address(address)
    if path is None:
        if format not in ARROW_FORMATS:
            raise _no_such_path(address)
        from t2i_align.data.hub import open_hub

        return open_hub(address, split, columns)
    if path.is_dir():
        return _open_folder(address, path, format, split, columns or {})
    return _open_file(address, path, format, columns or {})


def is_remote(address: str) -> bool:
    """Whether an address names a file system of its own, such as ``s3://``; see `remote`."""
    return SCHEME in address


def ranked_source(config: DataConfig) -> RankedSource:
    """The ranked lists of ``data.source``, unexpanded, for objectives that compare whole lists.

    Raises:
        UserError: the source does not hold ranked lists.
    """
    from t2i_align.data.ranked import open_ranked

    path = resolve_address(config.source)
    if path is None:
        raise _no_such_path(config.source)
    return open_ranked(
        config.source, _table_in(path, config.source, config.split, JSON_SUFFIXES) if path.is_dir() else path
    )


def resolve_address(address: str) -> Path | None:
    """Local path of an address, or None for a URL and for what can only be a hub id.

    Raises:
        UserError: it looks like a path, and nothing is there.
    """
    if address.startswith(BUILT_IN):
        from t2i_align.shapes.assets import resolve

        return Path(resolve(address))
    if is_remote(address):
        return None
    path = Path(address).expanduser()
    if path.exists():
        return path
    parts = address.split("/")
    is_hub_id = len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") and not path.suffix
    if is_hub_id:
        return None
    raise _no_such_path(address)


def _open_folder(address: str, folder: Path, format: str, split: str, columns: Mapping[str, str]) -> PairTable:
    from t2i_align.data.folder_pairs import open_folders, side_folders
    from t2i_align.data.hub import is_saved_dataset, open_saved
    from t2i_align.data.parquet import ParquetPairs, split_files

    if format in ARROW_FORMATS:
        if is_saved_dataset(folder):
            return open_saved(folder, f"{address} ({split})", split, columns)
        files, found = split_files(folder, split)
        if files:
            return ParquetPairs(f"{address} ({found})", files, chosen=columns)
    if format == "pickapic":
        raise UserError(f"{folder} holds no parquet files.", _listing(folder), "check data.source and data.format")
    sides = side_folders(folder) if format in ("auto", "folders") else None
    if sides is not None and (format == "folders" or not _has_pair_table(folder, columns)):
        return open_folders(address, folder, sides, _captions_in(folder))
    if format == "folders":
        raise UserError(
            f"{folder} holds no chosen/ and rejected/.", _listing(folder), "check data.source and data.format"
        )
    suffixes = TABLE_SUFFIXES if format == "table" else JSON_SUFFIXES if format in ("jsonl", "ranked") else TABLES
    return _open_file(address, _table_in(folder, address, split, suffixes), format, columns)


def _open_file(address: str, file: Path, format: str, columns: Mapping[str, str]) -> PairTable:
    from t2i_align.data.jsonl import looks_ranked, open_jsonl, open_text_table
    from t2i_align.data.parquet import ParquetPairs
    from t2i_align.data.ranked import RankedPairs, open_ranked

    suffix = file.suffix.lower()
    if suffix == ".parquet" and format in ARROW_FORMATS:
        return ParquetPairs(address, [file], chosen=columns)
    if suffix in JSON_SUFFIXES and format in ("auto", "jsonl", "ranked"):
        if format == "ranked" or (format == "auto" and looks_ranked(file)):
            return RankedPairs(open_ranked(address, file))
        return open_jsonl(address, file, columns)
    if suffix in TABLE_SUFFIXES and format in ("auto", "table"):
        return open_text_table(address, file, columns)
    raise UserError(
        f"{address} cannot be read as format {format!r}.",
        f"a file ending in {file.suffix or 'nothing'}",
        "give a .parquet file for pickapic, a .jsonl file for jsonl or ranked, a .csv or .tsv file for table",
    )


def _tables_of(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")
    )


def _table_in(folder: Path, address: str, split: str, suffixes: Sequence[str]) -> Path:
    """The folder's table: the one named like the split, or the only one."""
    files = _tables_of(folder, suffixes)
    if not files:
        raise UserError(
            f"{address} holds no pairs in a known layout.",
            _listing(folder),
            "give parquet files, a dataset folder, chosen/ and rejected/, or the path of a .jsonl, .csv or .tsv file",
        )
    chosen = of_split(files, folder, split, address)[0]
    if len(chosen) > 1:
        names = ", ".join(file.name for file in chosen)
        raise UserError(
            f"{address} holds several tables.", names, "give the path of one, or set data.split to its name"
        )
    return chosen[0]


def _has_pair_table(folder: Path, columns: Mapping[str, str]) -> bool:
    """Whether a table beside ``chosen/`` and ``rejected/`` says itself what the pairs are."""
    return any(is_pair_table(read_table(file).columns, columns) for file in _tables_of(folder, TABLES))


def _captions_in(folder: Path) -> Path | None:
    tables = _tables_of(folder, TABLES)
    if len(tables) > 1:
        names = ", ".join(file.name for file in tables)
        raise UserError(f"Which table has the captions of {folder}?", names, "keep one there")
    return tables[0] if tables else None


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"


def _no_such_path(address: str) -> UserError:
    return UserError(
        f"{address} does not exist.",
        f"looked in {Path.cwd()}",
        "give a local path, a hub id such as owner/dataset, or shapes:pairs",
    )


def _check_heldout(config: DataConfig) -> None:
    if config.heldout_source is not None and config.heldout_fraction > 0:
        raise UserError(
            "Both data.heldout_source and data.heldout_fraction are set.",
            f"{config.heldout_source} and {config.heldout_fraction}",
            "keep one of them",
        )
