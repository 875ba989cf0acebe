"""Which of a folder's files belong to a split, by their names and folders."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TypeVar

from t2i_align.errors import UserError

Name = TypeVar("Name", bound=PurePath)
SHARD_NAME = re.compile(r"^(?P<split>.+?)-\d+-of-\d+")
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    "heldout": "heldout",
}
"""Words that name a split, and the one word for it."""


def of_split(files: list[Name], folder: PurePath, split: str, address: str) -> tuple[list[Name], str]:
    """Those of a folder's files that belong to a split, and the name by which they do.

    A file (``train-00000-of-00645.parquet``, ``test.parquet``) or a folder around it says its split, exactly or with
    more words (``partial-train/``, ``validation_unique``), which counts where one name only has the word. Files that
    name no split are all of ``train``, and of no other.

    Raises:
        UserError: no file, or several names, may be meant; the names are listed.
    """
    named = {file: _label(file, folder, split) for file in files}
    labels = sorted({label for label in named.values() if label is not None})
    if not labels:
        return _unnamed(files, split, address)
    if split in labels:
        chosen = split
    else:
        word = WORDS.get(split.casefold())
        near = [label for label in labels if word is not None and word in _words(label)]
        if len(near) != 1:
            raise UserError(
                f"{address} holds no split {split!r}.",
                f"splits {', '.join(labels)}",
                "set data.split (of held-out pairs data.heldout_split) to one of them",
            )
        chosen = near[0]
    return [file for file, label in named.items() if label == chosen], chosen


def _unnamed(files: list[Name], split: str, address: str) -> tuple[list[Name], str]:
    shards = sorted({found["split"] for file in files if (found := SHARD_NAME.match(file.name))})
    if len(shards) > 1:
        raise UserError(
            f"{address} holds no split {split!r}.", f"files of {', '.join(shards)}", "set data.split to one of them"
        )
    if files and WORDS.get(split.casefold(), split) != "train":
        shown = ", ".join(file.name for file in files[:5])
        raise UserError(
            f"{address} holds no split {split!r}: its files name none, so all of them are 'train'.",
            f"{shown}{', ...' if len(files) > 5 else ''}",
            "set data.split (of held-out pairs data.heldout_split) to train, or name files or folders by split",
        )
    return files, "train"


def _label(file: PurePath, folder: PurePath, split: str) -> str | None:
    """The name that says a file's split: its own before its folders', exact words before others."""
    sharded = SHARD_NAME.match(file.name)
    own = sharded["split"] if sharded else file.name.removesuffix(file.suffix)
    names = [own, *(part.name for part in file.relative_to(folder).parents if part.name)]
    if split in names:
        return split
    names = [_without_number(name) for name in names]
    exact = next((name for name in names if name == split or name.casefold() in WORDS), None)
    return exact or next((name for name in names if _words(name)), None)


def _without_number(name: str) -> str:
    """``train_0`` and ``train0`` are parts of ``train``."""
    bare = name.rstrip("0123456789")
    return bare if bare.casefold() in WORDS else re.sub(r"[-_. ]\d+$", "", name)


def _words(name: str) -> set[str]:
    """The splits whose words a name has; numbers at their ends do not count."""
    tokens = (token.rstrip("0123456789") for token in re.split(r"[-_. ]+", name.casefold()))
    return {WORDS[token] for token in tokens if token in WORDS}
