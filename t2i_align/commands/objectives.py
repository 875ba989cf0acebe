"""``t2i-align objectives``: the published objectives and what they are made of."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

app = typer.Typer(help="List and explain objectives.", no_args_is_help=True)


@app.command("list")
def list_all() -> None:
    """Every preset: whether it needs a reference pass, the paper, and its loss."""
    from t2i_align.objectives.listing import list_presets, render_list

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(render_list(list_presets(), width))


@app.command()
def show(preset: Annotated[str, typer.Argument(help="Name of a preset, such as dpo.", show_default=False)]) -> None:
    """Formula, paper, slots and options of one preset."""
    from t2i_align.objectives.listing import describe

    print(describe(preset))
