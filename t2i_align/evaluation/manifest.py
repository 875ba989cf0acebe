"""The folder of one model's pictures: settings, one line per picture, and what may be kept on resuming.

<folder>/settings.json      what the pictures were made with
<folder>/manifest.jsonl     index, prompt_index, draw, prompt, seed, file; a line is written after its picture
<folder>/images/00000.png   prompt and seed also stand in the PNG's text chunks
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from reward_models.files import write_json, write_text
from reward_models.text_tables import split_lines
from t2i_align.errors import UserError
from t2i_align.paths import check_writable
from t2i_align.processes import Processes, join_lines

SETTINGS_FILE = "settings.json"
MANIFEST_FILE = "manifest.jsonl"
_WHOLE_FILE = 64 * 2**20
_BLOCK = 2**20


@dataclass(frozen=True)
class Picture:
    """One line of ``manifest.jsonl``.

    Attributes:
        index: position in the folder, ``prompt_index * seeds_per_prompt + draw``.
        prompt_index, prompt: in the prompt set.
        draw: which of the prompt's seeds.
        seed: of the CPU generator that drew the initial noise.
        file: path relative to the folder.
    """

    index: int
    prompt_index: int
    draw: int
    prompt: str
    seed: int
    file: str


@dataclass(frozen=True)
class Settings:
    """Everything but the prompts that decides what the pictures look like.

    Attributes:
        model: in words, for the reader; a folder may be moved, so it is not compared.
        fingerprint: of the weights, by which the model is recognised.
        negative_prompt: None is what the pipeline takes by itself.
        sampler: name in ``backbones.samplers``; None is the checkpoint's own.
        variant: file variant asked for; None is the one that a run recorded, or the only one there.
    """

    model: str
    fingerprint: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    seeds_per_prompt: int
    height: int | None
    width: int | None
    dtype: str
    negative_prompt: str | None = None
    sampler: str | None = None
    variant: str | None = None


def read_manifest(folder: str | Path) -> list[Picture]:
    """Pictures of a folder by index; a last line cut short by a kill is left out.

    Raises:
        UserError: there is no manifest, or another line of it is broken.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise UserError("The folder holds no generated pictures.", f"no {path}", "run t2i-align generate first")
    pictures = {}
    text = path.read_text(encoding="utf-8", errors="replace")  # a kill may cut a character, too
    for number, line in enumerate(split_lines(text), start=1):
        try:
            row = json.loads(line)
            picture = Picture(**{field.name: row[field.name] for field in fields(Picture)})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == text.count("\n") + 1:
                continue
            raise UserError(
                f"{path} line {number} does not describe a picture.", line[:80], "generate into another folder"
            ) from error
        pictures[picture.index] = picture
    return [pictures[index] for index in sorted(pictures)]


def read_settings(folder: str | Path) -> dict:
    """Contents of ``settings.json``, or nothing where there is none."""
    path = Path(folder) / SETTINGS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_manifest(folder: Path, pictures: Iterable[Picture]) -> None:
    """Replace the manifest."""
    lines = [json.dumps(asdict(picture), ensure_ascii=False) + "\n" for picture in pictures]
    write_text(folder / MANIFEST_FILE, "".join(lines))


def append_to_manifest(folder: Path, pictures: Iterable[Picture]) -> None:
    """Add finished pictures; one of several processes to a file of its own, see `processes`."""
    with Processes.here().part(folder / MANIFEST_FILE).open("a", encoding="utf-8") as file:
        for picture in pictures:
            file.write(json.dumps(asdict(picture), ensure_ascii=False) + "\n")


def open_folder(folder: Path, settings: Settings, wanted: list[Picture], overwrite: bool = False) -> list[Picture]:
    """Prepare a folder and return the pictures that are still to be made.

    Pictures of an earlier, interrupted or shorter run are kept when they were made with the same settings,
    prompts and seeds.

    Args:
        overwrite: throw earlier pictures away instead of comparing.

    Raises:
        UserError: the folder holds pictures of other settings or prompts, or files that are no pictures of ours.
    """
    check_writable(folder)
    if folder.is_dir() and not (folder / MANIFEST_FILE).is_file() and (inside := _foreign(folder)):
        raise UserError(
            "The folder of the pictures holds other files.",
            f"{folder} holds {', '.join(inside[:5])}",
            "choose another output folder, or another NAME= for the model",
        )
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:  # of file systems on which the permissions do not tell
        raise UserError(
            "The output folder cannot be written to.", f"{folder}: {error.strerror}", "name another folder"
        ) from error
    join_lines(folder / MANIFEST_FILE)
    done: dict[int, Picture] = {}
    if (folder / MANIFEST_FILE).is_file() and not overwrite:
        _require_same(folder, read_settings(folder), asdict(settings))
        done = {picture.index: picture for picture in read_manifest(folder)}
        for picture in wanted:
            if picture.index in done and done[picture.index] != picture:
                found = f"picture {picture.index}: {done[picture.index].prompt!r}, now {picture.prompt!r}"
                raise _refused(folder, "prompts", found)
    kept = {picture.index: picture for picture in done.values() if (folder / picture.file).is_file()}
    write_manifest(folder, [kept[index] for index in sorted(kept)])
    write_json(folder / SETTINGS_FILE, asdict(settings), indent=1)
    return [picture for picture in wanted if picture.index not in kept]


def _foreign(folder: Path) -> list[str]:
    """What a folder holds that an interrupted start, with one process or several, cannot have left there."""
    ours = ("images", SETTINGS_FILE, MANIFEST_FILE)
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith((*ours, ".")))


def remaining(folder: Path, wanted: list[Picture]) -> list[Picture]:
    """Pictures still to be made in a folder that another process has opened."""
    done = {picture.index for picture in read_manifest(folder)}
    return [picture for picture in wanted if picture.index not in done]


def fingerprint(path: Path) -> str:
    """Hash of a model folder or weights file: names, sizes and contents.

    Files over 64 MiB are hashed in 64 evenly spaced blocks of 1 MiB: training changes nearly every weight, and reading
    gigabytes to notice would cost more than the pictures.
    """
    digest = hashlib.blake2b(digest_size=12)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path.parent if path.is_file() else path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE:
                digest.update(stream.read())
                continue
            for block in range(64):
                stream.seek(block * (size - _BLOCK) // 63)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def _require_same(folder: Path, found: dict, wanted: dict) -> None:
    different = {key: value for key, value in wanted.items() if key != "model" and found.get(key) != value}
    if different:
        listed = [f"{key} {found.get(key)!r}, now {value!r}" for key, value in different.items()]
        raise _refused(folder, "settings", "; ".join(listed))


def _refused(folder: Path, what: str, found: str) -> UserError:
    return UserError(
        f"The pictures in {folder} were made with other {what}.",
        found,
        f"choose another output folder, ask for the earlier {what}, or pass --overwrite to make them anew",
    )
