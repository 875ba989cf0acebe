"""Which judge and which prompts stand where none are named: those of the shapes world, for models of that world alone.

Its oracle and its users measure drawn shapes, and give every other picture a low or arbitrary number, often the same
for all: a verdict from them on other models would say nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from t2i_align.errors import UserError
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.scorers import Scorer

PROMPTS, SCORERS = "shapes", ("oracle",)
JUDGES = ("oracle", "taste")
ADDRESS = "shapes:"
VOCABULARY = Path("tokenizer") / "vocab.json"

DOWNLOADS = {
    "pickscore": "4 GB",
    "hpsv2.1": "2 GB",
    "image_reward": "2 GB",
    "clip_score": "0.6 GB",
}
"""Word of a scorer -> what the hub delivers for it once."""

logger = logging.getLogger(__name__)
Prompts = TypeVar("Prompts", bound="str | Path | PromptSet | Sequence[str]")


def is_of_shapes(model: str | Path, base: str | Path | None = None) -> bool:
    """Whether a model draws the shapes world: ``shapes:base``, or what was trained from it.

    A run, an adapter or an export says by its ``config.yaml`` what it was trained from. A whole pipeline is known by
    its tokenizer, whose few words are those of that world's captions.

    Raises:
        UserError: nothing that can be sampled from.
    """
    from t2i_align.backbones import identify_model

    name = identify_model(str(model), None if base is None else str(base)).base.pretrained_model_name_or_path
    if name.startswith(ADDRESS):
        return True
    vocabulary = Path(name).expanduser() / VOCABULARY
    if not vocabulary.is_file():
        return False
    from t2i_align.shapes.assets import base_model_path

    return vocabulary.read_bytes() == (base_model_path() / VOCABULARY).read_bytes()


def judges_of_shapes(scorers: Iterable[str | Scorer]) -> list[str]:
    """Those of the scorers that know the shapes world alone: the oracle, its users, and its packaged heads."""
    from t2i_align.rewards.scorers import parse

    found = []
    for word in scorers:
        specs = parse(word) if isinstance(word, str) else ()
        for spec in specs:
            packaged = str(spec.options.get("checkpoint", "")).startswith(ADDRESS)
            if packaged or spec.name.partition(":")[0] in JUDGES:
                found.append(str(word))
    return list(dict.fromkeys(found))


def default_scorers(
    scorers: Sequence[str | Scorer] | None, models: Iterable[str | Path], base: str | Path | None = None
) -> Sequence[str | Scorer]:
    """The scorers as given, or the oracle where none are and all models are of the shapes world.

    The oracle, asked for by name, judges other models too, after a warning.

    Raises:
        UserError: no scorers for models of another world.
    """
    others = [str(model) for model in models if not is_of_shapes(model, base)]
    if scorers is None and others:
        known = ", ".join(f"{name} ({size})" for name, size in DOWNLOADS.items())
        raise UserError(
            "No scorer was given, and the oracle judges the shapes world alone.",
            f"not of that world: {', '.join(others)}",
            f"name a judge with --scorer (in a file of settings: scorers), such as {known}, downloaded once; "
            "NAME=PATH with weights that are here; or file.py:function of your own",
        )
    if others and (strangers := judges_of_shapes(scorers or ())):
        logger.warning(
            "%s knows the shapes world alone: what it says of %s means nothing",
            *(", ".join(strangers), ", ".join(others)),
        )
    return SCORERS if scorers is None else scorers


def default_prompts(
    prompts: Prompts | None, models: Iterable[str | Path], base: str | Path | None = None
) -> Prompts | str:
    """The prompts as given, or those of the shapes world where none are and all models are of that world.

    Raises:
        UserError: no prompts for models of another world.
    """
    if prompts is not None and not (isinstance(prompts, str) and prompts == PROMPTS):
        return prompts
    others = [str(model) for model in models if not is_of_shapes(model, base)]
    if prompts is None and others:
        from t2i_align.evaluation.suites import suite_names

        raise UserError(
            "No prompts were given, and the built-in ones are of the shapes world.",
            f"not of that world: {', '.join(others)}",
            "name a .txt, .jsonl, .csv or .tsv file of yours with --prompts, or a suite: "
            f"{', '.join(suite_names())} (NAME or NAME=PATH)",
        )
    if others:
        logger.warning("the prompts are of the shapes world, and not so %s", ", ".join(others))
    return PROMPTS if prompts is None else prompts
