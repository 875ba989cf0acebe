"""The recipes that come with the package: where they lie, what each needs, and copies of them to train and edit.

A checkout holds them in ``configs/``; in an installed package they are the folder ``recipes`` of `t2i_align`
(``setup.cfg``). They are found by path, not imported: an editable install maps the folder, and Python finds no package
in it.
"""

from __future__ import annotations

import difflib
import filecmp
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from reward_models.files import complete_file
from t2i_align.errors import UserError

FOLDER = "configs"  # what the folder is called where people train: recipes, messages and pages say configs/...
SUFFIXES = (".yaml", ".jsonl")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Copy:
    """One file of `copy`: where it is now, and whether it was there already with the same content."""

    path: Path
    kept: bool


def folder() -> Path:
    """Where the recipes lie.

    Raises:
        UserError: the package is installed without them.
    """
    places = (PACKAGE / "recipes", PACKAGE.parent / FOLDER)
    for place in places:
        if (place / "base" / "common.yaml").is_file():
            return place
    raise UserError(
        "The recipes that belong to t2i_align are missing.",
        f"neither {places[0]} nor {places[1]}",
        "install the package again, from a wheel or a whole checkout",
    )


def names() -> list[str]:
    """Every file that belongs to the recipes, by its path below ``configs/`` with forward slashes."""
    root = folder()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in SUFFIXES)


def called(word: str | Path) -> str | None:
    """The recipe meant by a path that does not exist, such as ``configs/sdxl/lpo.yaml`` or ``sdxl/lpo``; else None."""
    parts = PurePosixPath(str(word).replace("\\", "/")).parts
    below = parts[len(parts) - parts[::-1].index(FOLDER) :] if FOLDER in parts else parts
    name = "/".join(below)
    return next((known for known in (name, f"{name}.yaml") if (folder() / known).is_file()), None)


def find(word: str) -> list[str]:
    """The recipes a word names: one file, with or without ``configs/`` and ``.yaml``, or all of a folder.

    Raises:
        UserError: there is none; names the nearest.
    """
    known = names()
    if (name := called(word)) is not None:
        return [name]
    prefix = word.replace("\\", "/").removeprefix("./").removeprefix(f"{FOLDER}/").rstrip("/") + "/"
    if inside := [name for name in known if name.startswith(prefix)]:
        return inside
    stem = PurePosixPath(word).stem
    near = [name for name in known if PurePosixPath(name).stem == stem] or difflib.get_close_matches(word, known)
    fix = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError("There is no recipe of this name.", word, f"{fix}t2i-align configs list shows all")


def needed(name: str) -> set[str]:
    """The recipe and every recipe file it reads: what it extends, the recipes of a comparison, its prompts."""
    found, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _named_by(one)
    return found


def copy(words: Sequence[str], target: str | Path = FOLDER, *, overwrite: bool = False) -> list[Copy]:
    """Copy recipes and what they need, keeping their folders, so that relative ``extends`` hold.

    Args:
        words: see `find`; empty copies all.
        target: the folder that will hold ``shapes/``, ``sdxl/``, ``base/`` and so on; made if it is not there.
        overwrite: replace files that were changed.

    Returns:
        One entry per file, by name.

    Raises:
        UserError: an unknown recipe, or files of other content are in the way; nothing is copied then.
    """
    asked = [name for word in words for name in find(word)] if words else names()
    wanted = sorted(set().union(*map(needed, asked)))
    root, target = folder(), Path(target)
    pairs = [(root / name, target / name) for name in wanted]
    same = {there: there.is_file() and filecmp.cmp(file, there, shallow=False) for file, there in pairs}
    changed = [str(there) for there, equal in same.items() if there.exists() and not equal]
    if changed and not overwrite:
        raise UserError(
            "Files of other content are in the way; nothing was copied.",
            ", ".join(changed),
            "copy elsewhere with --to FOLDER, or replace them with --overwrite",
        )
    for file, there in pairs:
        if not same[there]:
            with complete_file(there) as temporary:
                shutil.copyfile(file, temporary)
    return [Copy(there, same[there]) for _, there in pairs]


def content(name: str) -> Any:
    """A recipe's own values, without those it extends; None for a file of prompts."""
    path = folder() / name
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with it
    return yaml.load(path.read_text(encoding="utf-8"), loader) if path.suffix == ".yaml" else None


def bound_to_folder(names: Sequence[str]) -> list[str]:
    """Those of the recipes that name a file as ``configs/...``, and so want to be run from beside that folder."""
    return [name for name in names if any(word.startswith(f"{FOLDER}/") for word in _words(content(name)))]


def _named_by(name: str) -> Iterator[str]:
    """Recipe files that a recipe's values name, relative to it or as ``configs/...``."""
    root = folder()
    for word in _words(content(name)):
        for path in ((root / name).parent / word, root / word.removeprefix(f"{FOLDER}/")):
            resolved = path.resolve()
            if path.suffix in SUFFIXES and resolved.is_relative_to(root.resolve()) and resolved.is_file():
                yield resolved.relative_to(root.resolve()).as_posix()
                break


def _words(value: Any) -> Iterator[str]:
    """Every word of every text in a document; a command is a text of several words."""
    if isinstance(value, str):
        yield from value.split()
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _words(inner)
