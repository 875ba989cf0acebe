"""``t2i-align compare``: train what is missing, judge all models together, write one report."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2i_align import progress
from t2i_align.compare.config import Comparison, Preparation
from t2i_align.errors import UserError
from t2i_align.evaluation import evaluate
from t2i_align.evaluation.ahead import check_checkpoints, check_models, check_output_folder
from t2i_align.evaluation.prompts import load_prompts
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.scorers import check_scorers, open_scorer
from t2i_align.evaluation.users import UserChoice
from t2i_align.evaluation.worlds import default_prompts, default_scorers
from t2i_align.training.once import DONE_FILE, train_once

EVALUATION = "eval"


def run(
    comparison: Comparison, say: Callable[[str], None] = progress.say, *, command: str = "", overwrite: bool = False
) -> Evaluation:
    """Train every recipe that has not been trained, then evaluate all models on the same prompts and noise.

    Runs, pictures and scores are kept as they are made: run it again after an interruption, with another scorer, or
    with one more model, and only what is new is done.

    Args:
        comparison: from ``load_comparison``.
        say: prints a line of progress.
        command: that makes this comparison, for the report.
        overwrite: replace pictures that were made with other settings or weights instead of refusing.

    Returns:
        The evaluation; its report is ``report.html`` in the comparison's ``output_dir``.

    Raises:
        UserError: a folder holds a run or pictures of other settings, and everything that the steps raise.
        Interrupted: asked to stop; the same command goes on.
    """
    config, entries = comparison.config, comparison.config.entries
    folder = Path(config.output_dir)
    _look_ahead(comparison)
    models = {name: entry.model for name, entry in entries.items() if entry.model is not None}
    for step in config.prepare:
        _prepare(step, say)
    total = len(comparison.runs) + 1
    for number, (name, one) in enumerate(comparison.runs.items(), start=1):
        say(f"[{number}/{total}] train {name}: {entries[name].recipe}")
        models[name] = str(train_once(one).folder)
    prompts, judges = _said(comparison)
    elsewhere = {"prompts", "scorers", "user_scale", "user_guidance"}
    judging: dict[str, Any] = config.evaluation.model_dump(exclude=elsewhere)
    users = {name: entry.user for name, entry in entries.items() if entry.user is not None}
    say(f"[{total}/{total}] evaluate {', '.join(entries)}")
    found = evaluate.run(
        {name: models[name] for name in entries},
        prompts,
        judges,
        folder / EVALUATION,
        baseline=config.baseline,
        control=config.control,
        users=UserChoice(users, config.evaluation.user_scale, config.evaluation.user_guidance),
        notes={name: entry.note for name, entry in entries.items() if entry.note},
        command=command,
        overwrite=overwrite,
        **judging,
    )
    os.replace(folder / EVALUATION / evaluate.REPORT_FILE, folder / evaluate.REPORT_FILE)
    return found


def _look_ahead(comparison: Comparison) -> None:
    """Find out before hours of training that prompts or a judge cannot be had."""
    judging = comparison.config.evaluation
    check_scorers(judging.scorers)
    check_checkpoints(judging.scorers)
    check_output_folder(comparison.config.output_dir)
    models = [entry.model for entry in comparison.config.entries.values() if entry.model is not None]
    models += [one.model.pretrained_model_name_or_path for one in comparison.runs.values()]
    if not comparison.config.prepare:  # which may make a model
        check_models(models)
        prompts, judges = _said(comparison)
        default_scorers(judges, models)
        default_prompts(prompts, models)
    load_prompts(judging.prompts, judging.limit, judging.shuffle_prompts)
    if any(not (Path(one.output_dir) / DONE_FILE).is_file() for one in comparison.runs.values()):
        for spec in judging.scorers:
            open_scorer(spec, judging.device)


def _said(comparison: Comparison) -> tuple[str | None, list[str] | None]:
    """The file's prompts and scorers, None where it names none: the schema's own are for models of the shapes world."""
    judging, said = comparison.config.evaluation, comparison.config.evaluation.model_fields_set
    return judging.prompts if "prompts" in said else None, judging.scorers if "scorers" in said else None


def _prepare(step: Preparation, say: Callable[[str], None]) -> None:
    """Run a command of ours, in a process of its own, where what it makes is missing."""
    if Path(step.makes).exists():
        return
    say(f"prepare: t2i-align {step.command}")
    words = ["-m", "t2i_align", *(["--quiet"] if progress.is_quiet() else []), *shlex.split(step.command)]
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code != 0 or not Path(step.makes).exists():
        found = f"exit code {code}, {step.makes} {'was' if Path(step.makes).exists() else 'was not'} written"
        raise UserError(f"Preparing failed: t2i-align {step.command}", found, "see its message above")
