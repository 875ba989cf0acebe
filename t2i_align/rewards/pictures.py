"""Pictures and their prompts for scoring, from a folder, a parquet file or any pair source.

A folder is read with its own ``manifest.jsonl`` (as ``t2i-align generate`` writes), ``metadata.jsonl`` or
``metadata.csv`` (``file_name`` and ``text``), or with a prompt file: a table with a picture column, or one prompt per
picture in the natural order of the file names, or a single prompt for all.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reward_models.errors import RewardModelError
from reward_models.score_files import ScoreItem
from t2i_align.data.layout import is_pair_table
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pickapic import picture_bytes
from t2i_align.data.picture_names import picture_files
from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.sources import open_table, resolve_address
from t2i_align.data.tables import unique_ids
from t2i_align.errors import UserError
from t2i_align.evaluation.manifest import MANIFEST_FILE, read_manifest
from t2i_align.evaluation.prompts import load_prompts
from t2i_align.rewards.pairs import encoded_pictures, everything
from t2i_align.rewards.picture_prompts import prompts_of
from t2i_align.text_tables import PROMPT_COLUMNS, find_column

PICTURE_COLUMNS = ("image", "jpg", "png", "picture", "bytes")
ID_COLUMNS = ("id", "uid", "key", "__key__")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SIDES = "ab"


def open_pictures(images: str, prompts: str | Path | None = None, split: str = "train") -> list[ScoreItem]:
    """Everything to be scored; no picture is decoded.

    Args:
        images: a folder of pictures, a parquet file, or anything ``data.source`` may be.
        prompts: a .txt, .jsonl, .csv or .tsv file; only where the pictures come without prompts.
        split: of a dataset of pairs.

    Raises:
        UserError: nothing there, no prompts, or prompts that do not fit the pictures.
    """
    path = resolve_address(images)
    if path is not None and path.is_dir() and _is_picture_folder(path, prompts is not None):
        return _folder(path, None if prompts is None else Path(prompts))
    if path is not None and path.suffix == ".parquet" and not _holds_pairs(path):
        return _parquet(path, None if prompts is None else Path(prompts))
    if prompts is not None:
        raise UserError("Pairs have captions of their own.", f"--prompts {prompts}", "leave --prompts out")
    return pair_items(everything(open_table(images, "auto", split)))


def pair_items(pairs: PairSource) -> list[ScoreItem]:
    """Both pictures of every pair, each with its own caption; ids are ``<pair id>/a`` and ``<pair id>/b``."""
    captions = pairs.captions(), pairs.captions_1() or pairs.captions()
    return [
        ScoreItem(f"{pair_id}/{SIDES[side]}", captions[side][index], partial(_of_pair, pairs, index, side))
        for index, pair_id in enumerate(pairs.pair_ids())
        for side in (0, 1)
    ]


def _of_pair(pairs: PairSource, index: int, side: int) -> bytes:
    return encoded_pictures(pairs, index)[side]


def _is_picture_folder(folder: Path, with_prompts: bool) -> bool:
    """Pictures rather than a pair data set, whose pictures lie beside a table."""
    if any((folder / name).is_file() for name in (MANIFEST_FILE, *METADATA_FILES)):
        return True
    has_table = any(path.suffix in (".parquet", ".arrow", ".jsonl", ".ndjson") for path in folder.iterdir())
    return (with_prompts or not has_table) and bool(picture_files(folder))


def _folder(folder: Path, prompts: Path | None) -> list[ScoreItem]:
    """Items of a folder; a picture that a table lists twice is two items, ``a.png`` and ``a.png#2``."""
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    if prompts is not None:
        rows = prompts_of(folder, prompts)
    elif (folder / MANIFEST_FILE).is_file():
        rows = [(picture.file, picture.prompt) for picture in read_manifest(folder)]
    elif metadata is not None:
        rows = prompts_of(folder, metadata)
    else:
        raise UserError("The pictures have no prompts.", str(folder), "give a file with --prompts")
    ids = unique_ids([file for file, _ in rows])
    return [ScoreItem(name, prompt, str(folder / file)) for name, (file, prompt) in zip(ids, rows, strict=True)]


def _holds_pairs(path: Path) -> bool:
    return is_pair_table(_schema(path).names)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read as parquet.", str(error).splitlines()[0], "write or download the file again"
        ) from error


def _parquet(path: Path, prompts: Path | None) -> list[ScoreItem]:
    names = _schema(path).names
    picture, text = find_column(names, PICTURE_COLUMNS), find_column(names, PROMPT_COLUMNS)
    if picture is None or (text is None and prompts is None):
        raise UserError(
            f"{path} holds neither pairs nor pictures with prompts.",
            f"columns {', '.join(names)}",
            f"pictures: a column {', '.join(PICTURE_COLUMNS)}; prompts: {', '.join(PROMPT_COLUMNS)}, or --prompts",
        )
    rows = pq.read_metadata(path).num_rows
    key = find_column(names, ID_COLUMNS)
    ids = [str(row) for row in range(rows)] if key is None else unique_ids(list(map(str, _column(path, key))))
    texts = _column(path, str(text)) if prompts is None else list(load_prompts(prompts).prompts)
    if prompts is not None and len(texts) == 1:
        texts *= rows
    if len(texts) != rows or not all(isinstance(one, str) for one in texts):
        raise UserError(
            "Every picture needs one prompt.", f"{rows} pictures, {len(texts)} prompts", "fill in or remove rows"
        )
    return [
        ScoreItem(name, prompt, partial(_of_row, path, picture, row))
        for row, (name, prompt) in enumerate(zip(ids, texts, strict=True))
    ]


def _column(path: Path, name: str) -> list[Any]:
    return pq.read_table(path, columns=[name])[name].to_pylist()


def _of_row(path: Path, column: str, row: int) -> bytes:
    starts = _group_starts(path)
    group = max(index for index, start in enumerate(starts) if start <= row)
    cell = _group(path, column, group)[row - starts[group]].as_py()
    try:
        return picture_bytes(cell, path.parent)
    except UndecodableImage as error:
        raise RewardModelError(str(error), found=f"{path.name} row {row}") from error


@lru_cache(maxsize=4)
def _group_starts(path: Path) -> tuple[int, ...]:
    metadata = pq.read_metadata(path)
    starts, start = [], 0
    for group in range(metadata.num_row_groups):
        starts.append(start)
        start += metadata.row_group(group).num_rows
    return tuple(starts)


@lru_cache(maxsize=2)
def _group(path: Path, column: str, group: int) -> pa.ChunkedArray:
    """One row group's pictures; scoring reads rows in order, so two are enough."""
    return pq.ParquetFile(path).read_row_group(group, columns=[column])[column]
