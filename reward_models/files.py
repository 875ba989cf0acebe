"""Files that are complete or not there: written under a temporary name beside the target, then renamed over it.

Whatever kills a process, a reader finds the old file, or the new one, or none, and never half of one. Imports nothing
but the standard library, so that every room of both packages may use it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"  # how every temporary name ends: no reader of ours looks for it
STALE_SECONDS = 3600.0  # what was last written to longer ago belongs to a process that was killed


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """A path to write to instead of ``path``, which is replaced when the block ends, or left alone when it fails.

        with complete_file("scores.parquet") as temporary:
            pq.write_table(table, temporary)

    The temporary file is hidden, lies beside the target and has a name of its own: several processes may write the same
    file, and the last to finish wins. It ends in ``.tmp``. For writers to whom a name means something (``np.save``
    appends a suffix, ``torch.save`` keeps the name inside the file), open it and hand them the stream; name the format
    where a writer guesses it. The file gets the permissions of any new one. A failed block leaves nothing behind; a
    killed process leaves its temporary file, see `remove_leftovers`.

    Args:
        path: the target; parent folders are made.

    Yields:
        The temporary path; nothing is there yet.

    Raises:
        FileNotFoundError: the block has written nothing.
        OSError: the folder cannot be made or written to, or the target is a folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        share(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Give a file, or every file in a folder, the permissions that any new file gets there: 0666 less the umask.

    safetensors 0.8 writes its files for their owner alone, and then colleagues on the same machine cannot read a cache
    or an exported model.

    Raises:
        FileNotFoundError: the file is not there.
        OSError: the folder cannot be written to.
    """
    probe = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")  # the umask itself cannot be read without changing it
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not file.is_dir() and stat.S_IMODE(file.stat().st_mode) != mode:  # not every mounted disk can change it
            file.chmod(mode)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, completely or not at all.

    Raises:
        OSError: see `complete_file`.
    """
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON document and a line break, completely or not at all.

    Args:
        indent: spaces per level; None writes one line.

    Raises:
        TypeError: JSON has no such value; the target is left alone.
        OSError: see `complete_file`.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files, and folders so named, that killed processes have left directly in a folder.

    What was written to within the last hour may still be in work and stays.
    """
    for entry in folder.glob(f"*{TEMPORARY}"):
        with suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - entry.stat().st_mtime <= STALE_SECONDS:
                continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
