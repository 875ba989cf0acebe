"""``t2i-align compare``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import Overrides, Stopped
from t2i_align.commands.evaluate import Overwrite, print_verdicts

CompareFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a comparison.", show_default=False)]


def compare(config: CompareFile, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Put several models into one report.

    Trains the recipes that the file names where they were not trained yet, draws the same prompts from the same noise
    with all models, judges them by every scorer, and writes one report.html. A stopped comparison goes on where it
    was.
    """
    from t2i_align.compare.config import load_comparison

    comparison = load_comparison(config, overrides or [])
    # Only a valid file is worth the seconds that the training stack takes to import.
    from t2i_align.compare.run import run
    from t2i_align.evaluation.evaluate import REPORT_FILE
    from t2i_align.training.loop import Interrupted

    command = shlex.join(["t2i-align", "compare", str(config), *(overrides or [])])
    try:
        evaluation = run(comparison, command=command, overwrite=overwrite)
    except Interrupted as stop:
        raise Stopped(f"Stopped; {stop} is written. Go on with the same command.") from stop
    print_verdicts(evaluation)
    print(f"Report: {Path(comparison.config.output_dir) / REPORT_FILE}")
