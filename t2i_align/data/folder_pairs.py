"""Pairs as two folders: ``chosen/`` and ``rejected/`` with pictures of the same names, captions beside them.

A picture's caption is a text file of its name (``chosen/a.txt``, ``rejected/a.txt``, ``captions/a.txt`` or ``a.txt``),
or stands in a table of the folder with a column of file names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath

from t2i_align.data.layout import BARE_SIDES, Layout
from t2i_align.data.picture_names import picture_files
from t2i_align.data.row_pairs import RowPairs
from t2i_align.errors import UserError
from t2i_align.text_tables import FILE_COLUMNS, PROMPT_COLUMNS, Row, read_table, text_lines

CAPTION_FOLDERS = ("captions", "prompts", ".")
SHOWN = 5
HOW = "a .txt file of the picture's name, or one table with columns file_name and prompt"


def side_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of preferred and other pictures, by the names that `layout` knows; None where there are none."""
    known = {path.name.casefold(): path for path in folder.iterdir() if path.is_dir()}
    found = [(known[first], known[second]) for first, second in BARE_SIDES if first in known and second in known]
    return found[0] if found else None


def open_folders(address: str, folder: Path, sides: tuple[Path, Path], table: Path | None) -> RowPairs:
    """Pairs of the pictures that have one name in both folders.

    Args:
        address: what the user wrote.
        folder: holds both.
        sides: of the preferred and the other pictures.
        table: of captions; None reads text files.

    Raises:
        UserError: a picture without its partner or caption, two of one name, or captions that contradict each other.
    """
    pictures = [_by_name(side) for side in sides]
    for own, other, place in ((0, 1, sides[1]), (1, 0, sides[0])):
        alone = [name for key, name in pictures[own].items() if key not in pictures[other]]
        if alone:
            raise UserError(
                f"{len(alone)} pictures of {sides[own].name}/ have no partner in {place.name}/.",
                f"{', '.join(alone[:SHOWN])} in {sides[own]}",
                "give both pictures of a pair one name; what comes after the dot may differ",
            )
    if not pictures[0]:
        raise UserError(f"{address} holds no pictures.", f"{sides[0]} and {sides[1]}", "put the pictures there")
    captions = _of_files(folder, sides, pictures[0]) if table is None else _of_table(table, pictures[0])
    without = [key for key in pictures[0] if key not in captions]
    if without:
        where = folder if table is None else table
        found = f"{', '.join(without[:SHOWN])} in {where}"
        raise UserError(f"{len(without)} pairs of {address} have no caption.", found, HOW)
    names = sides[0].name, sides[1].name
    rows = [
        Row(
            number,
            {"caption": captions[key], names[0]: f"{names[0]}/{first}", names[1]: f"{names[1]}/{pictures[1][key]}"},
        )
        for number, (key, first) in enumerate(pictures[0].items(), start=1)
    ]
    layout = Layout(names, names, True, {"caption": ("caption",)})
    return RowPairs(address, folder / names[0], rows, layout, [f"pair {key}" for key in pictures[0]])


def _by_name(side: Path) -> dict[str, str]:
    """Name without suffix -> name of every picture, in natural order."""
    found: dict[str, str] = {}
    for name in picture_files(side):
        key = str(PurePosixPath(name).with_suffix(""))
        if key in found:
            raise UserError(f"Two pictures of {side} have one name.", f"{found[key]}, {name}", "rename or remove one")
        found[key] = name
    return found


def _of_files(folder: Path, sides: tuple[Path, Path], keys: Mapping[str, str]) -> dict[str, str]:
    """Captions in text files of the pictures' names."""
    places = [*sides, *(folder / name for name in CAPTION_FOLDERS)]
    captions: dict[str, str] = {}
    for key in keys:
        found = {place / f"{key}.txt" for place in places if (place / f"{key}.txt").is_file()}
        texts = {file: " ".join(line.strip() for _, line in text_lines(file)).strip() for file in sorted(found)}
        if len(set(texts.values())) > 1:
            raise UserError(
                f"The captions of pair {key} contradict each other.",
                "; ".join(f"{file}: {text[:60]!r}" for file, text in texts.items()),
                "keep one; for captions that differ make a table with caption, chosen, rejected and caption_1",
            )
        if text := next(iter(texts.values()), ""):
            captions[key] = text
    return captions


def _of_table(path: Path, keys: Mapping[str, str]) -> dict[str, str]:
    """Captions of a table that names pictures, by their name with or without folder and suffix."""
    table = read_table(path)
    file, text = table.column(FILE_COLUMNS), table.column(PROMPT_COLUMNS)
    if file is None or text is None:
        raise UserError(f"{path} holds no captions of pictures.", f"columns {', '.join(table.columns)}", HOW)
    captions: dict[str, str] = {}
    for row in table.rows:
        name, caption = str(row.cells.get(file) or ""), row.cells.get(text)
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(
                f"{path} line {row.line} has no caption.", str(row.cells)[:120], "write one text per picture"
            )
        key = next((key for key in _keys_of(name) if key in keys), None)
        if key is None:
            raise UserError(
                f"{path} line {row.line} names no picture of a pair.", repr(name), "correct the name, or remove the row"
            )
        if captions.setdefault(key, caption.strip()) != caption.strip():
            found = f"{captions[key][:60]!r} and {caption[:60]!r} (line {row.line})"
            raise UserError(f"The captions of pair {key} contradict each other.", found, "keep one")
    return captions


def _keys_of(name: str) -> list[str]:
    """What a written name may be among the pictures: ``chosen/a.png`` is ``a``."""
    path = PurePath(name.replace("\\", "/"))
    return [str(PurePosixPath(*path.parts[start:])) for start in range(len(path.parts))] + [
        str(PurePosixPath(*path.parts[start:]).with_suffix("")) for start in range(len(path.parts))
    ]
