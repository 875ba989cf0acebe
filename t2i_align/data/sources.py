"""From ``data.source`` to pairs: which format an address holds, and which pairs of it a run uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t2i_align.config.schema import DataConfig
from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import Which, normalise, select
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError

if TYPE_CHECKING:
    from t2i_align.data.ranked import RankedSource

BUILT_IN = "shapes:"
SCHEME = "://"
JSONL_SUFFIXES = (".jsonl", ".ndjson")
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
        return select(open_table(config.source, config.format, config.split), config, which, seed)
    training = open_table(config.source, config.format, config.split)
    held_out = open_table(config.heldout_source, "auto", config.heldout_split)
    prompts = frozenset(map(normalise, training.columns.captions))
    return select(held_out, config, which, seed, prompts)


def has_heldout(config: DataConfig) -> bool:
    """Whether some pairs are kept out of training."""
    return config.heldout_source is not None or config.heldout_fraction > 0


def open_table(address: str, format: str = "auto", split: str = "train") -> PairTable:
    """All rows of an address, as found.

    Args:
        address: parquet file or folder, the URL of either, dataset folder or hub id, JSONL file or its folder, or
            ``shapes:...``.
        format: ``auto`` looks at the address.
        split: of a dataset, or of a folder whose files are named by split.

    Raises:
        UserError: nothing there, or not in that format.
    """
    if is_remote(address):
        if format not in ("auto", "pickapic"):
            raise UserError(
                f"{address} cannot be read as format {format!r}.",
                "only parquet files are read in place from another file system",
                "convert them with t2i-align data convert and upload the result, or download them",
            )
        from t2i_align.data.remote import open_remote

        return open_remote(address, split)
    path = resolve_address(address)
    if path is None:
        if format not in ("auto", "pickapic"):
            raise _no_such_path(address)
        from t2i_align.data.hub import open_hub

        return open_hub(address, split)
    if path.is_dir():
        return _open_folder(address, path, format, split)
    return _open_file(address, path, format)


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
    return open_ranked(config.source, _jsonl_in(path, config.source, config.split) if path.is_dir() else path)


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


def _open_folder(address: str, folder: Path, format: str, split: str) -> PairTable:
    from t2i_align.data.hub import is_saved_dataset, open_saved
    from t2i_align.data.parquet import ParquetPairs, split_files

    if format in ("auto", "pickapic"):
        if is_saved_dataset(folder):
            return open_saved(folder, f"{address} ({split})", split)
        files = split_files(folder, split)
        if files:
            return ParquetPairs(f"{address} ({split})", files)
    if format == "pickapic":
        raise UserError(f"{folder} holds no parquet files.", _listing(folder), "check data.source and data.format")
    return _open_file(address, _jsonl_in(folder, address, split), format)


def _open_file(address: str, file: Path, format: str) -> PairTable:
    from t2i_align.data.jsonl import JsonlPairs
    from t2i_align.data.parquet import ParquetPairs
    from t2i_align.data.ranked import RankedPairs, looks_ranked, open_ranked

    if file.suffix == ".parquet" and format in ("auto", "pickapic"):
        return ParquetPairs(address, [file])
    if file.suffix in JSONL_SUFFIXES and format in ("auto", "jsonl", "ranked"):
        if format == "ranked" or (format == "auto" and looks_ranked(file)):
            return RankedPairs(open_ranked(address, file))
        return JsonlPairs(address, file)
    raise UserError(
        f"{address} cannot be read as format {format!r}.",
        f"a file ending in {file.suffix or 'nothing'}",
        "give a .parquet file for pickapic, a .jsonl file for jsonl or ranked",
    )


def _jsonl_in(folder: Path, address: str, split: str) -> Path:
    """The folder's JSONL file: the one named like the split, or the only one."""
    files = sorted(file for file in folder.iterdir() if file.suffix in JSONL_SUFFIXES)
    named = [file for file in files if file.stem == split]
    if named or len(files) == 1:
        return (named or files)[0]
    raise UserError(
        f"{address} holds no pairs in a known layout." if not files else f"{address} holds several JSONL files.",
        _listing(folder),
        "give parquet files, a dataset folder, or the path of one .jsonl file",
    )


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
