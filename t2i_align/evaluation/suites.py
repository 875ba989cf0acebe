"""Published prompt suites by name, read where they lie: ``NAME[:PART][=PATH]``.

No suite's prompts are part of this package. A suite comes from a local file or folder, as its authors publish it, or
from the Hugging Face hub where it is there; what is missing is said by file name and origin.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_align.errors import UserError
from t2i_align.evaluation.prompts import PromptSet, read_prompt_file
from t2i_align.text_tables import json_lines, read_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """Where a suite's prompts stand and how they are read.

    Attributes:
        files: names (patterns) of the files that are read; folders are searched for them.
        read: the found files, in the order of ``files`` -> the prompts with their groups.
        origin: who publishes the files, for the message when they are missing.
        size: how many prompts the published suite has.
        hub, hub_folder: data set of the hub and folder in it that hold the files; None where they are not there.
    """

    files: tuple[str, ...]
    read: Callable[[list[Path]], PromptSet]
    origin: str
    size: int
    hub: str | None = None
    hub_folder: str | None = None


def load_suite(spec: str) -> PromptSet | None:
    """The prompts that ``NAME[:PART][=PATH]`` asks for, or None where NAME is no suite.

    PART keeps the prompts of one label, such as ``hpdv2:anime`` or ``partiprompts:Animals``; Pick-a-Pic's parts are
    ``test_unique`` (default) and ``validation_unique``. PATH is the suite's file, or a folder that holds its files at
    any depth; without it they are taken from the hub.

    Raises:
        UserError: the files are not there, no label is called PART, or a file cannot be read.
    """
    head, _, location = spec.partition("=")
    name, _, part = head.partition(":")
    if name == "pickapic":
        name, part = f"pickapic:{part or 'test_unique'}", ""
    if name.startswith("pickapic:") and name not in SUITES:
        raise UserError("Pick-a-Pic has no such part.", spec, "use pickapic:test_unique or pickapic:validation_unique")
    if name not in SUITES:
        return None
    suite = SUITES[name]
    files = _local_files(name, suite, Path(location)) if location else _hub_files(name, suite)
    try:
        found = suite.read(files)
    except ValueError as error:  # broken JSON, text that is not UTF-8, a parquet file that is none
        raise UserError(f"A file of the suite {name} is broken.", str(error), "get it again from its origin") from error
    if len(found) != suite.size:
        logger.warning(
            "%s has %d prompts as published, here are %d: do not set figures from them beside published ones",
            *(name, suite.size, len(found)),
        )
    return _part(replace(found, name=name), part)


def _local_files(name: str, suite: Suite, location: Path) -> list[Path]:
    if location.is_file() and len(suite.files) == 1:
        return [location]
    if not location.is_dir():
        raise _missing(name, suite, f"{location} is no {'folder' if len(suite.files) > 1 else 'file or folder'}")
    found = [sorted(location.rglob(pattern), key=lambda path: (len(path.parts), path)) for pattern in suite.files]
    absent = [pattern for pattern, paths in zip(suite.files, found, strict=True) if not paths]
    if absent:
        raise _missing(name, suite, f"{location} holds no {', '.join(absent)}")
    many = any("*" in pattern for pattern in suite.files)
    return [path for paths in found for path in (paths if many else paths[:1])]


def _hub_files(name: str, suite: Suite) -> list[Path]:
    if suite.hub is None:
        raise _missing(name, suite, "no path was given, and its authors do not publish it on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return [
            Path(hf_hub_download(suite.hub, file, subfolder=suite.hub_folder, repo_type="dataset"))
            for file in suite.files
        ]
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _missing(name, suite, f"the hub's data set {suite.hub} cannot be read: {reason}") from error


def _missing(name: str, suite: Suite, found: str) -> UserError:
    return UserError(
        f"The prompts of the suite {name} are not here.",
        found,
        f"get {', '.join(suite.files)} from {suite.origin} and say --prompts {name}=PATH, "
        f"where PATH is {'the file or ' if len(suite.files) == 1 else ''}a folder that holds "
        f"{'it' if len(suite.files) == 1 else 'them'}",
    )


def _part(prompts: PromptSet, part: str) -> PromptSet:
    """The prompts of which some group's label is ``part``, in any case of letters."""
    if not part:
        return prompts
    wanted = part.casefold()
    kept = [
        index
        for index in range(len(prompts))
        if any(labels[index].casefold() == wanted for labels in prompts.groups.values())
    ]
    if not kept:
        labels = sorted({label for column in prompts.groups.values() for label in column})
        raise UserError(f"The suite {prompts.name} has no such part.", part, f"use one of: {', '.join(labels)}")
    return replace(prompts.at(kept), name=f"{prompts.name}:{part}")


def _read_table(files: list[Path]) -> PromptSet:
    return read_prompt_file(files[0])


def _by_file(group: str, suffix: str = "") -> Callable[[list[Path]], PromptSet]:
    """Reader of suites that keep one file per label; the label is the file's stem without ``suffix``."""

    def read(files: list[Path]) -> PromptSet:
        prompts: list[str] = []
        labels: list[str] = []
        for file in files:
            lines = _strings(file) if file.suffix == ".json" else read_prompt_file(file).prompts
            prompts += lines
            labels += [file.stem.removesuffix(suffix)] * len(lines)
        return PromptSet(group, tuple(prompts), {group: tuple(labels)})

    return read


def _strings(file: Path) -> Sequence[str]:
    """A JSON list of prompts."""
    loaded = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(loaded, list) or not all(isinstance(item, str) and item.strip() for item in loaded):
        raise UserError("The prompt file is no list of texts.", str(file), "get it again from its origin")
    return [item.strip() for item in loaded]


def _read_captions(files: list[Path]) -> PromptSet:
    """Distinct captions of parquet shards, in order; the pictures' columns are not read."""
    import pyarrow.parquet as pq

    captions: dict[str, None] = {}
    for file in files:
        columns = pq.read_schema(file).names
        if "caption" not in columns:
            raise UserError(
                "The parquet file has no captions.", f"{file}: {', '.join(columns)}", "use the data set's own"
            )
        captions |= dict.fromkeys(
            text.strip() for text in pq.read_table(file, columns=["caption"])["caption"].to_pylist()
        )
    return PromptSet("pickapic", tuple(captions))


def _read_geneval(files: list[Path]) -> PromptSet:
    """GenEval's metadata lines; the task of each prompt stands under ``tag``."""
    rows = [row for _, row in json_lines(files[0])]
    if not all(isinstance(row, dict) and row.get("prompt") and row.get("tag") for row in rows):
        raise UserError(
            "The file is not GenEval's metadata.", f"{files[0]}: lines need prompt and tag", "use its own file"
        )
    return PromptSet("geneval", tuple(row["prompt"] for row in rows), {"task": tuple(row["tag"] for row in rows)})


def _read_dpg(files: list[Path]) -> PromptSet:
    """One prompt per item of a table with a row per question; the item's name without its number is its source."""
    rows = [row.cells for row in read_table(files[0]).rows]
    if not rows or not {"item_id", "text"} <= set(rows[0]):
        raise UserError("The file is not DPG-Bench's table.", f"{files[0]}: needs item_id and text", "use its own file")
    texts = {row["item_id"]: row["text"].strip() for row in rows}
    sources = tuple(item.rstrip("0123456789_-") or "other" for item in texts)
    return PromptSet("dpg", tuple(texts.values()), {"source": sources})


_COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
_PICKAPIC = "a copy of the data set yuvalkirstain/pickapic_v2 (withdrawn from the hub in 2025)"

SUITES: dict[str, Suite] = {
    "partiprompts": Suite(
        ("PartiPrompts.tsv",), _read_table, "github.com/google-research/parti", 1632, "nateraw/parti-prompts"
    ),
    "hpdv2": Suite(
        ("anime.json", "concept-art.json", "paintings.json", "photo.json"),
        _by_file("style"),
        "the folder benchmark of the data set zhwang/HPDv2",
        3200,
        "zhwang/HPDv2",
        "benchmark",
    ),
    "pickapic:test_unique": Suite(("test_unique*.parquet",), _read_captions, _PICKAPIC, 500),
    "pickapic:validation_unique": Suite(("validation_unique*.parquet",), _read_captions, _PICKAPIC, 500),
    "geneval": Suite(
        ("evaluation_metadata.jsonl",), _read_geneval, "the folder prompts of github.com/djghosh13/geneval", 553
    ),
    "dpg": Suite(("dpg_bench.csv",), _read_dpg, "the folder dpg_bench of github.com/TencentQQGYLab/ELLA", 1065),
    "compbench": Suite(
        tuple(f"{name}_val.txt" for name in _COMPBENCH),
        _by_file("category", "_val"),
        "the folder examples/dataset of github.com/Karine-Huang/T2I-CompBench",
        2400,
    ),
}
"""Suite name -> where its files are and how they are read."""


def suite_names() -> list[str]:
    """Names without parts, sorted."""
    return sorted({name.partition(":")[0] for name in SUITES})
