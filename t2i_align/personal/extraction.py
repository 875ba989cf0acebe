"""User embeddings from a vision-language model, for ``encoder: external``: one array per user of a source of pairs.

The file says which pairs made it, so that a run never trains on what its users were shown, and which users were left
out. Users that are finished are kept in a folder beside the output: a stopped extraction goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reward_models.files import complete_file, write_text
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.reading import undecodable
from t2i_align.errors import UserError
from t2i_align.personal.external import LEFT_OUT, SHOWN
from t2i_align.personal.support import Support, choose, chosen_users, nobody
from t2i_align.personal.vision_language import Choice, Reading
from t2i_align.personal.who import everything_of

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """What `extract` needs of a model; `VisionLanguageModel` is one."""

    def read(self, choices: Sequence[Choice], max_new_tokens: int) -> Reading:
        """What the model makes of a user."""


@dataclass(frozen=True)
class Recipe:
    """What an embedding depends on besides the user's answers.

    Attributes:
        model: folder or hub id.
        shots: pairs shown per user.
        max_new_tokens: longest answer.
        seed: of the choice of pairs.
        dtype: of the model.
    """

    model: str
    shots: int = 4
    max_new_tokens: int = 1024
    seed: int = 0
    dtype: str = "fp32"


@dataclass(frozen=True)
class Extraction:
    """What was written.

    Attributes:
        path: safetensors, an array ``[L, F]`` per user.
        users: embedded.
        shape: of each array.
        left_out: users with fewer usable pairs than are shown.
        unfinished: users whose answer was cut off at ``max_new_tokens``.
    """

    path: Path
    users: int
    shape: tuple[int, ...]
    left_out: list[str]
    unfinished: list[str]


def extract(address: str, user: str | None, recipe: Recipe, output: str | Path, model: Reader) -> Extraction:
    """Embed the users of a source of pairs, and write ``output`` and ``output`` with suffix ``.jsonl`` (the answers).

    Args:
        address: anything ``data.source`` may be.
        user: only this one.
        recipe: see `Recipe`.
        output: a safetensors file that is not there yet.
        model: named by the recipe, opened.

    Raises:
        UserError: nobody can be shown, pictures cannot be decoded, or the output is there.
    """
    path = Path(output)
    check_output(path)
    source = everything_of(address)
    pairs = chosen_users(source, user, recipe.shots)
    parts = path.with_suffix(".parts")
    _claim(parts, {"pairs": source.fingerprint, **asdict(recipe)})
    left_out, done = [], {}
    for number, (name, rows) in enumerate(pairs.items(), 1):
        support = choose(source, name, rows, recipe.shots, recipe.seed)
        if support is None:
            left_out.append(name)
            continue
        done[name] = parts / f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.safetensors"
        if not done[name].is_file():
            _write_part(done[name], name, support, model.read(_pictures(source, support), recipe.max_new_tokens))
            logger.info("%d of %d users: %s", number, len(pairs), name)
    if not done:
        raise nobody(address, len(pairs), recipe.shots)
    return _join(path, parts, done, left_out, recipe)


def check_output(path: Path) -> None:
    """Refuse what cannot be written, before a model is loaded."""
    if path.suffix != ".safetensors":
        raise UserError("User embeddings are a safetensors file.", str(path), "give a name ending in .safetensors")
    if path.exists():
        raise UserError("The output file exists.", str(path), "choose another, or remove it")


def _pictures(source: PairSource, support: Support) -> list[Choice]:
    choices = []
    for row, first_wins in zip(support.rows, support.first_wins, strict=True):
        try:
            first, second = map(decode, source.images(row))
        except UndecodableImage as error:
            raise undecodable(source, [(row, str(error))]) from error
        choices.append(Choice(source.describe(row).caption, *((first, second) if first_wins else (second, first))))
    return choices


def _write_part(path: Path, name: str, support: Support, reading: Reading) -> None:
    if not torch.isfinite(reading.states).all():
        raise UserError(
            "The model's hidden states overflow its precision.",
            f"user {name}, {reading.states.dtype}",
            "use --dtype bf16 or fp32",
        )
    notes = {"text": reading.text, "finished": reading.finished, "shown": support.seen}
    with complete_file(path) as temporary:
        save_file({name: reading.states.contiguous()}, temporary, metadata={"notes": json.dumps(notes)})


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    path, text = folder / "recipe.json", json.dumps(settings, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            "An unfinished extraction with other settings is in the way.", str(folder), "choose another output"
        )
    write_text(path, text)


def _join(path: Path, parts: Path, done: dict[str, Path], left_out: list[str], recipe: Recipe) -> Extraction:
    arrays, shown, unfinished, lines = {}, {}, [], []
    for name, part in done.items():
        with safe_open(part, "pt") as opened:
            arrays[name] = opened.get_tensor(name)
            notes = json.loads(opened.metadata()["notes"])
        shown[name] = notes["shown"]
        unfinished += [] if notes["finished"] else [name]
        lines.append(json.dumps({"user_id": name, **notes}, ensure_ascii=False))
    metadata = {"format": "pt", "recipe": json.dumps(asdict(recipe))}
    metadata |= {SHOWN: json.dumps(shown), LEFT_OUT: json.dumps(left_out)}
    write_text(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    with complete_file(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)
    shutil.rmtree(parts)
    return Extraction(path, len(arrays), tuple(next(iter(arrays.values())).shape), left_out, unfinished)
