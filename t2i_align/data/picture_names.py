"""Files of pictures below a folder, in the order in which people number them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".pbm", ".pfm"),
)


def picture_files(folder: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, in natural order: 2.png stands before 10.png."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    return sorted((path.relative_to(folder).as_posix() for path in found), key=natural_key)


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts names as people number them: runs of digits count as numbers, folder by folder."""
    pieces = [re.split(r"([0-9]+)", part) for part in name.split("/")]
    numbered = [tuple(int(text) if place % 2 else text for place, text in enumerate(part)) for part in pieces]
    return (*numbered, name)  # 01.png and 1.png have one number: the name decides
