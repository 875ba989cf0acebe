"""``t2i-align shapes``: rebuild the built-in world that the package ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import OutputDir

app = typer.Typer(help="Rebuild the built-in world.", no_args_is_help=True)

NumTrain = Annotated[int, typer.Option(min=1, help="Training pairs.")]
NumHeldout = Annotated[int, typer.Option(min=1, help="Held-out pairs, of other prompts.")]
PairSeed = Annotated[int, typer.Option(min=0, help="Of prompts and samples.")]


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
    num_train: NumTrain = 1000,
    num_heldout: NumHeldout = 200,
    seed: PairSeed = 0,
) -> None:
    """Sample pairs of pictures and let the oracle label them, in the Pick-a-Pic layout."""
    from t2i_align.shapes.pairs import run

    print(f"Pairs: {run(model, output_dir, num_train=num_train, num_heldout=num_heldout, seed=seed)}")


@app.command("user-pairs")
def user_pairs(
    output_dir: OutputDir,
    model: Annotated[str, typer.Option(help="Base model whose samples are compared.")] = "shapes:base",
    users: Annotated[int, typer.Option(min=1, help="Users who answer the training pairs.")] = 100,
    unseen_users: Annotated[int, typer.Option(min=1, help="Users who answer the held-out pairs.")] = 20,
    pairs_per_user: Annotated[int, typer.Option(min=1, help="Answers of each user.")] = 40,
    num_train: NumTrain = 600,
    num_heldout: NumHeldout = 200,
    seed: PairSeed = 0,
) -> None:
    """Sample pairs of pictures and let synthetic users with different tastes choose, in the Pick-a-Pic layout.

    The users of the held-out pairs answer none of the training pairs. Who likes what is in users.json; evaluate
    --scorer taste:ID judges pictures as the user ID does.
    """
    from t2i_align.shapes.user_pairs import run

    folder = run(
        model,
        output_dir,
        num_users=users,
        num_unseen=unseen_users,
        pairs_per_user=pairs_per_user,
        num_train=num_train,
        num_heldout=num_heldout,
        seed=seed,
    )
    print(f"Pairs: {folder}")


@app.command()
def render(
    output_dir: OutputDir,
    count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes.")] = 0,
) -> None:
    """Draw random scenes with their captions and a contact sheet."""
    from t2i_align.shapes.render import run

    print(f"Pictures: {run(output_dir, count=count, seed=seed)}")
