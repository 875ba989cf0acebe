"""What a path that cannot be used is answered with: the nearest one that exists, or why nothing can be written."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from t2i_align.errors import UserError

SHOWN = 5


def beside(path: str | Path) -> str:
    """Advice for a path that does not exist: the nearest name in the deepest of its folders that does.

    ``did you mean 'runs/mini'? `` or, where nothing is near, ``runs holds: dpo, sft; ``; empty for an empty folder.
    """
    path = Path(path).expanduser()
    folder, name = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, name = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if _reads(folder) else []
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean '{folder / near[0]}'? "
    if not names:
        return ""
    return f"{folder} holds: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}; "


def check_writable(folder: str | Path) -> None:
    """Whether files can be written into a folder, which need not exist yet; nothing is made.

    Raises:
        UserError: it, or a part of its path, is a file or may not be written to.
    """
    folder = place = Path(folder).expanduser()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        what = "The output folder is a file." if place == folder else "A part of the output folder's path is a file."
        raise UserError(what, str(place), "name another folder to write into")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            "The output folder cannot be written to.", str(place), "name another folder, or change its permissions"
        )


def _reads(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.R_OK)
