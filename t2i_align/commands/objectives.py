"""``t2i-align objectives``: the published objectives and what they are made of."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List and explain objectives.", no_args_is_help=True)


@app.command("list")
def list_all() -> None:
    """Every preset: its loss, whether it needs a reference pass, and the paper."""
    from t2i_align.objectives.listing import list_presets

    rows = [(row.name, "reference" if row.reference else "-", row.formula, row.paper) for row in list_presets()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(preset: Annotated[str, typer.Argument(help="Name of a preset, such as dpo.", show_default=False)]) -> None:
    """Formula, paper, slots and options of one preset."""
    from t2i_align.objectives.listing import describe

    print(describe(preset))
