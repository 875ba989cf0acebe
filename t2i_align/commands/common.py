"""What several commands share: argument forms, and how a command ends when something goes wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from t2i_align import progress
from t2i_align.errors import UserError

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Values that win over the file.", show_default=False),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write into.", show_default=False)]
progress_bar = progress.bars


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a command in good order; the message says how to go on."""


def is_main_process() -> bool:
    """Whether this is the one process that speaks; launchers number them in the environment."""
    return os.environ.get("RANK", "0") == "0"


def named_models(words: Iterable[str]) -> dict[str, str]:
    """``NAME=MODEL`` words as a mapping; a bare MODEL is named after its last folder, ``shapes:base`` is base.

    See ``split_name`` for a MODEL that holds a ``=`` of its own.

    Raises:
        UserError: an empty name or model, or one name twice.
    """
    models: dict[str, str] = {}
    for word in words:
        name, model = split_name(word)
        if name is None:
            name = "base" if word == "shapes:base" else re.sub(r"[^\w.-]+", "-", Path(word).name).strip("-")
        if not name or not model:
            raise UserError("models must be written NAME=MODEL", repr(word), "for example tuned=runs/dpo/export")
        if name in models:
            raise UserError(
                "two models have the same name", f"{name}: {models[name]} and {model}", "name them: NAME=MODEL"
            )
        models[name] = model
    return models


def split_name(word: str) -> tuple[str | None, str]:
    """Name and rest of ``[NAME=]REST``; the name is None where the word has none.

    A word that is there as a path is a path, whatever it holds (``lr=1e-4``). Otherwise it is split at the first ``=``,
    unless what stands before that could be no name but is a part of a path or an address (``runs/lr=1e-4/export``).
    """
    name, equals, rest = word.partition("=")
    if not equals or re.search(r"[/\\:#]|^[.~]", name) or Path(word).exists():
        return None, word
    return name, rest


def named_values(words: Sequence[str] | None, option: str) -> dict[str, str]:
    """Repeated ``NAME=VALUE`` options as a mapping.

    Raises:
        UserError: a word without a name or a value.
    """
    values = {}
    for word in words or ():
        name, value = split_name(word)
        if not name or not value:
            raise UserError(f"{option} must be written NAME=VALUE", repr(word), f"for example {option} tuned=runs/dpo")
        values[name] = value
    return values


def chosen_prompts(source: str | None, texts: Sequence[str] | None) -> str | list[str] | None:
    """What ``--prompts`` and ``--prompt`` name together, for ``load_prompts``; None where neither is given.

    Raises:
        UserError: both are given.
    """
    if source is not None and texts:
        raise UserError(
            "--prompts and --prompt cannot both be given.",
            f"--prompts {source} and {len(texts)} of --prompt",
            "put the texts into the file, or leave one of the two out",
        )
    return list(texts) if texts else source


def negative_models(words: Sequence[str] | None, models: Iterable[str]) -> dict[str, str]:
    """``[NAME=]MODEL`` options: which model each is guided away from; without a name, all of them."""
    chosen: dict[str, str] = {}
    for word in words or ():
        name, model = split_name(word)
        chosen |= dict.fromkeys(models, word) if name is None else {name: model}
    return chosen


def chosen_users(words: Sequence[str] | None, models: dict[str, str], base: str | None) -> dict[str, str]:
    """``[NAME=]WHO`` options: who asks each model; without a name, all models that are user adapters."""
    if not words:
        return {}
    from t2i_align.backbones import identify_model

    chosen: dict[str, str] = {}
    for word in words:
        name, who = split_name(word)
        if name in models:  # a reward's name may stand before = too
            chosen[name] = who
            continue
        adapters = [model for model, path in models.items() if identify_model(path, base).kind == "user"]
        if not adapters:
            raise UserError("None of the models knows users.", word, "give a run of a personal section")
        chosen |= dict.fromkeys(adapters, word)
    return chosen
