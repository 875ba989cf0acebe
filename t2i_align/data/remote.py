"""Pairs in an object store or on the hub, read in place: parquet files behind an address such as ``s3://bucket/pairs``.

Nothing is downloaded as a whole. Parquet keeps columns apart, so opening reads captions and labels only; pictures
come row group by row group when they are asked for, in the order of the files while a cache is built. The file
systems are fsspec's, as in the datasets library: ``hf://datasets/owner/name``, ``s3://``, ``gs://``, ``abfs://``,
``https://``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t2i_align.data.parquet import ParquetPairs
from t2i_align.data.splits import of_split
from t2i_align.errors import UserError

BLOCK = 8 * 1024**2  # bytes a file system fetches at once


def open_remote(address: str, split: str, chosen: Mapping[str, str] | None = None) -> ParquetPairs:
    """The pairs of a parquet file, a folder of them, or a pattern with ``*``.

    Args:
        address: URL.
        split: chosen among files that are named by split, see `splits.of_split`.
        chosen: our field -> column, see `layout.recognise`.

    Raises:
        UserError: the file system is not installed or does not answer, or there are no parquet files.
    """
    system, files = _files(address, split)

    def opened(file: PurePosixPath) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(system.open(str(file), "rb", block_size=BLOCK), pre_buffer=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(f"{address}: {file}", error) from error

    return ParquetPairs(f"{address} ({split})" if len(files) > 1 else address, files, opened, chosen)


def remote_files(address: str, split: str) -> list[list[Any]]:
    """Name, size and version of the files behind an address; the version changes when a file is written again.

    Raises:
        UserError: see `open_remote`.
    """
    system, files = _files(address, split)
    return [[str(file), system.size(str(file)), str(system.checksum(str(file)))] for file in files]


def _files(address: str, split: str) -> tuple[Any, list[PurePosixPath]]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(address)
        system.invalidate_cache()
        if address.endswith(".parquet") or "*" in address:
            found = system.glob(root)
        else:
            found = [name for name in system.find(root) if name.endswith(".parquet")]
    except ImportError as error:
        raise UserError(
            f"The file system of {address} is not installed.",
            str(error).splitlines()[0],
            "install the package that the message names, for example s3fs for s3://",
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(address, error) from error
    if not found:
        raise UserError(
            f"{address} holds no parquet files.",
            "no name ends in .parquet",
            "give a file, a folder or a pattern with *",
        )
    files = [PurePosixPath(name) for name in sorted(found)]
    if address.endswith(".parquet") and "*" not in address:
        return system, files  # one file has one split, whatever it is called
    base = root.split("*")[0].rpartition("/")[0] if "*" in address else root
    return system, of_split(files, PurePosixPath(base), split, address)[0]


def _unreadable(address: str, error: Exception) -> UserError:
    return UserError(
        f"{address} cannot be read.",
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        "check the address, the network and the credentials that its file system reads",
    )
