"""Pictures and their prompts for scoring, from a folder, a parquet file or any pair source.

A folder is read with its own ``manifest.jsonl`` (as ``t2i-align generate`` writes) or ``metadata.jsonl`` (``file_name``
and ``text``), or with a prompt file: a table with a picture column, or one prompt per picture in the order of the
file names, or a single prompt for all.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reward_models.errors import RewardModelError
from reward_models.score_files import ScoreItem
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pickapic import REQUIRED, picture_bytes
from t2i_align.data.pictures import UndecodableImage
from t2i_align.data.sources import open_table, resolve_address
from t2i_align.errors import UserError
from t2i_align.evaluation.manifest import MANIFEST_FILE, read_manifest
from t2i_align.evaluation.prompts import PROMPT_COLUMNS, load_prompts
from t2i_align.rewards.pairs import encoded_pictures, everything

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
FILE_COLUMNS = ("file_name", "file", "image", "path")
PICTURE_COLUMNS = ("image", "jpg", "png", "picture", "bytes")
ID_COLUMNS = ("id", "uid", "key", "__key__")
METADATA_FILE = "metadata.jsonl"
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
    if (folder / MANIFEST_FILE).is_file() or (folder / METADATA_FILE).is_file():
        return True
    has_table = any(path.suffix in (".parquet", ".arrow", ".jsonl", ".ndjson") for path in folder.iterdir())
    return (with_prompts or not has_table) and bool(_files(folder))


def _files(folder: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, sorted."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _folder(folder: Path, prompts: Path | None) -> list[ScoreItem]:
    by_file: Mapping[str, str]
    if prompts is not None:
        by_file = _prompts_of(folder, _files(folder), prompts)
    elif (folder / MANIFEST_FILE).is_file():
        by_file = {picture.file: picture.prompt for picture in read_manifest(folder)}
    elif (folder / METADATA_FILE).is_file():
        by_file = _prompts_of(folder, _files(folder), folder / METADATA_FILE)
    else:
        raise UserError("The pictures have no prompts.", str(folder), "give a file with --prompts")
    return [ScoreItem(file, prompt, str(folder / file)) for file, prompt in by_file.items()]


def _prompts_of(folder: Path, files: list[str], prompts: Path) -> dict[str, str]:
    """File name -> prompt, for exactly the pictures of the folder (and listed ones that are missing)."""
    rows = _table(prompts)
    column = next((name for name in FILE_COLUMNS if rows and name in rows[0]), None)
    if column is not None:
        named = {str(row.get(column)): _prompt(row, prompts) for row in rows}
        without = [file for file in files if file not in named]
        if without:
            raise UserError(
                f"{len(without)} pictures have no prompt.", f"{', '.join(without[:5])} in {folder}", f"add to {prompts}"
            )
        return named
    texts = load_prompts(prompts).prompts
    if len(texts) == 1:
        texts *= len(files)
    if len(texts) != len(files):
        raise UserError(
            "The numbers of pictures and prompts differ.",
            f"{len(files)} pictures in {folder}, {len(texts)} prompts in {prompts}",
            f"give one prompt per picture in the order of the file names, one in all, or a {FILE_COLUMNS[0]} column",
        )
    return dict(zip(files, texts, strict=True))


def _table(path: Path) -> list[dict[str, Any]]:
    """Rows of a prompt file that may name pictures; none for plain text. Broken files are `load_prompts`' matter."""
    if not path.is_file() or path.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            tabs = path.suffix.lower() == ".tsv"
            rows = list(csv.DictReader(lines, delimiter="\t" if tabs else ","))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


def _prompt(row: Mapping[str, Any], path: Path) -> str:
    prompt = next((row[name] for name in PROMPT_COLUMNS if name in row), None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError("A row has no prompt.", f"{path}: {row}", f"fill in {' or '.join(PROMPT_COLUMNS)}")
    return prompt.strip()


def _holds_pairs(path: Path) -> bool:
    return set(REQUIRED) <= set(_schema(path).names)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read as parquet.", str(error).splitlines()[0], "write or download the file again"
        ) from error


def _parquet(path: Path, prompts: Path | None) -> list[ScoreItem]:
    names = _schema(path).names
    picture = next((name for name in PICTURE_COLUMNS if name in names), None)
    text = next((name for name in PROMPT_COLUMNS if name in names), None)
    if picture is None or (text is None and prompts is None):
        raise UserError(
            f"{path} holds neither pairs nor pictures with prompts.",
            f"columns {', '.join(names)}",
            f"pictures: a column {', '.join(PICTURE_COLUMNS)}; prompts: {', '.join(PROMPT_COLUMNS)}, or --prompts",
        )
    rows = pq.read_metadata(path).num_rows
    key = next((name for name in ID_COLUMNS if name in names), None)
    ids = [str(row) for row in range(rows)] if key is None else map(str, _column(path, key))
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
