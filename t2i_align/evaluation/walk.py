"""From one user to another: pictures of the same noise for users between two, and what the scorers say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2i_align.errors import UserError
from t2i_align.evaluation import generate, score
from t2i_align.evaluation.manifest import read_manifest
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.scorers import Scorer
from t2i_align.evaluation.users import UserChoice
from t2i_align.personal.who import blend

FOLDER = "_between"  # no model may be called so
STEPS, PROMPTS = 5, 8


@dataclass(frozen=True)
class Walk:
    """One model's pictures between two of its users.

    Attributes:
        model: name.
        start, end: users in one word.
        shares: of `end`, per step.
        prompts: one row of pictures each.
        pictures: ``[prompts][steps]`` files.
        means: (scorer, dimension) -> mean score per step, NaN where no picture could be scored.
    """

    model: str
    start: str
    end: str
    shares: tuple[float, ...]
    prompts: tuple[str, ...]
    pictures: tuple[tuple[Path, ...], ...]
    means: dict[tuple[str, str], tuple[float, ...]]


def check(
    models: Mapping[str, str], towards: Mapping[str, str], users: UserChoice, base: str | Path | None = None
) -> None:
    """Look up both ends of every way, before the first picture is made.

    Raises:
        UserError: a model whose own user is not known, or a user at the other end who cannot be understood.
    """
    if homeless := sorted(set(towards) - set(users.who)):
        raise UserError("A way between users starts at the model's user.", ", ".join(homeless), "give --user too")
    UserChoice(towards).open({name: model for name, model in models.items() if name in towards}, base)


def measure(
    models: Mapping[str, str],
    towards: Mapping[str, str],
    users: UserChoice,
    prompts: PromptSet,
    scorers: Sequence[str | Scorer],
    output_dir: str | Path,
    *,
    device: str | None = None,
    base: str | Path | None = None,
    **sampling: Any,
) -> list[Walk]:
    """Draw and score `STEPS` users from each model's own to the one in `towards`, on the first `PROMPTS` prompts.

    Args:
        models: name -> model, of which those in `towards` are drawn.
        towards: name -> user at the other end.
        users: who asks each model.
        prompts: of the evaluation.
        scorers: of the evaluation.
        output_dir: of the evaluation; a folder in it is written.
        sampling: see ``generate.run``; one picture per prompt is drawn.

    Raises:
        UserError: see ``generate.run``.
    """
    folder, shown = Path(output_dir) / FOLDER, prompts.first(PROMPTS)
    shares = tuple(np.linspace(0, 1, STEPS).tolist())
    names = {model: [f"{model}-{step}" for step in range(STEPS)] for model in towards}
    who = {
        name: blend(users.who[model], towards[model], share)
        for model, of_model in names.items()
        for name, share in zip(of_model, shares, strict=True)
    }
    between = {name: models[model] for model, of_model in names.items() for name in of_model}
    choice = UserChoice(who, users.scale, users.guidance_scale)
    drawn = generate.run(between, shown, folder, users=choice, base=base, device=device, **sampling)
    table = score.run(drawn, scorers, folder, first_prompts=len(shown), device=device)

    def mean(name: str, scorer: str, dimension: str) -> float:
        values = table.matrix(name, scorer, dimension)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    files = {name: [drawn[name] / row.file for row in read_manifest(drawn[name])][: len(shown)] for name in between}
    return [
        Walk(
            model,
            users.who[model],
            towards[model],
            shares,
            shown.prompts,
            tuple(tuple(files[name][row] for name in of_model) for row in range(len(shown))),
            {(s, d): tuple(mean(name, s, d) for name in of_model) for s, d in table.dimensions},
        )
        for model, of_model in names.items()
    ]
