"""``t2i-align configs``: the recipes that come with the package."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from t2i_align.errors import UserError

app = typer.Typer(help="List the recipes that come with the package, and copy them.", no_args_is_help=True)


@app.command("list")
def list_all() -> None:
    """Every recipe: its file, the command that takes it, objective, model and purpose."""
    from t2i_align.config.recipe_table import rows
    from t2i_align.text_table import aligned

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(aligned([("file", "command", "objective", "model", "purpose"), *rows()], width))


@app.command("copy")
def copy_some(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="Recipes, such as sdxl/dpo_lora.yaml, or a folder of them.", show_default=False
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Copy every recipe.")] = False,
    to: Annotated[Path, typer.Option("--to", help="Folder to copy into.")] = Path("configs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that were changed.")] = False,
) -> None:
    """Copy recipes, with the files they extend and read, to train and to edit.

    Files that are there with other content are kept, and nothing is copied, unless --overwrite is given.
    """
    from t2i_align.config import recipes

    if bool(names) == everything:
        raise UserError(
            "Either recipes or --all are copied.", "both" if names else "neither", "t2i-align configs list names them"
        )
    copies = recipes.copy(names or [], to, overwrite=overwrite)
    for one in copies:
        print(f"{one.path}{'  (there already)' if one.kept else ''}")
    bound = recipes.bound_to_folder([one.path.relative_to(to).as_posix() for one in copies])
    if bound and to.name != recipes.FOLDER:
        print(f"{', '.join(bound)}: names files in configs/; change that, or copy --to configs", file=sys.stderr)
