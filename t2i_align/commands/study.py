"""``t2i-align study``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import Overrides, Stopped

StudyFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a study.", show_default=False)]


def study(
    config: StudyFile,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this method only; may be repeated.")] = None,
) -> None:
    """Compare objectives under one budget.

    Trains every method with every seed, judges all against the base, with controls (random labels, no training,
    supervised fine-tuning), and writes table.md, table.parquet, table.json and table.png. A stopped study goes on
    where it was.
    """
    from t2i_align.study.config import load_study
    from t2i_align.study.run import run
    from t2i_align.training.loop import Interrupted

    words = ["t2i-align", "study", str(config), *(overrides or [])]  # whatever the order its methods were run in
    try:
        table = run(load_study(config, overrides or []), only=only or [], command=shlex.join(words))
    except Interrupted as stop:
        raise Stopped(f"Stopped; {stop} is written. Go on with the same command.") from stop
    sys.stdout.write(table.markdown())
