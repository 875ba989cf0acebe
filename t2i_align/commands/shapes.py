"""``t2i-align shapes``: rebuild the built-in world that the package ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import OutputDir

app = typer.Typer(help="Rebuild the built-in world.", no_args_is_help=True)


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Such as configs/shapes/pretrain.yaml.")],
    output_dir: OutputDir,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in the folder.")] = False,
) -> None:
    """Train the base model from scratch; about an hour on two CPU cores."""
    from t2i_align.shapes.pretrain import run

    print(f"Base model: {run(config, output_dir, resume=resume)}")


@app.command()
def pairs(
    output_dir: OutputDir,
    model: Annotated[str, typer.Option(help="Base model whose samples are compared.")] = "shapes:base",
    num_train: Annotated[int, typer.Option(min=1, help="Training pairs.")] = 1000,
    num_heldout: Annotated[int, typer.Option(min=1, help="Held-out pairs, of other prompts.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and samples.")] = 0,
) -> None:
    """Sample pairs of pictures and let the oracle label them, in the Pick-a-Pic layout."""
    from t2i_align.shapes.pairs import run

    print(f"Pairs: {run(model, output_dir, num_train=num_train, num_heldout=num_heldout, seed=seed)}")


@app.command()
def render(
    output_dir: OutputDir,
    count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes.")] = 0,
) -> None:
    """Draw random scenes with their captions and a contact sheet."""
    from t2i_align.shapes.render import run

    print(f"Pictures: {run(output_dir, count=count, seed=seed)}")
