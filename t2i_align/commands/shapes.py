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
    pairs_per_user: Annotated[int, typer.Option(min=1, help="Answers of each user.")] = 60,
    num_train: NumTrain = 400,
    num_heldout: NumHeldout = 120,
    seed: PairSeed = 0,
    taste: Annotated[
        list[str] | None,
        typer.Option(help="What users care about: colour (default), brightness (default), size, ..."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of an earlier call, or shapes:pairs, whose pictures are judged instead of new ones."),
    ] = None,
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
        tastes=tuple(taste or ("colour", "brightness")),
        pictures=pictures,
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


@app.command("taste-study")
def taste_study(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder of a user adapter.", show_default=False)],
    output_dir: OutputDir,
    data: Annotated[Path, typer.Option(help="Folder that user-pairs wrote.")] = Path("runs/users"),
    pooled: Annotated[
        str | None, typer.Option(help="Run trained on the same pairs without their users.", show_default=False)
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts, a picture of each.")] = 24,
    shots: Annotated[int, typer.Option(min=1, help="Pairs that each unseen user shows.")] = 4,
    user_scale: Annotated[float, typer.Option(min=0.0, help="Strength of the user's attention.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
) -> None:
    """Make pictures for users never met in training, and let them judge against the base.

    Own, another's, opposite and null user, and the way from one user to another; a stopped command goes on.
    """
    from t2i_align.shapes.taste_arms import Settings
    from t2i_align.shapes.taste_study import run as study
    from t2i_align.shapes.taste_study import table

    settings = Settings(prompts=prompts, shots=shots, scale=user_scale, seed=seed)
    print(table(study(run, data, output_dir, settings, pooled)), end="")


@app.command("reward-pairs")
def reward_pairs(
    data: Annotated[Path, typer.Argument(help="Folder that user-pairs wrote.", show_default=False)],
    reward: Annotated[list[str], typer.Option(help="brightness, colour=blue, ...; may be repeated.")],
) -> None:
    """Label the users' pairs by single rewards instead, with the margins of all of them.

    One file per reward: for a LoRA each, and for a model that is told reward weights.
    """
    from t2i_align.shapes.reward_pairs import run

    for path in run(data, reward):
        print(f"Pairs: {path}")


@app.command("soup-study")
def soup_study(
    loras: Annotated[list[str], typer.Argument(metavar="REWARD=RUN", help="Two LoRAs, each trained on one reward.")],
    vector: Annotated[str, typer.Option(help="Run of a reward_vector adapter of both rewards.", show_default=False)],
    output_dir: OutputDir,
    prompts: Annotated[Path, typer.Option(help="One prompt per line.")] = Path("runs/users/prompts/heldout.txt"),
    limit: Annotated[int, typer.Option(min=1, help="Only the first prompts.")] = 24,
    steps: Annotated[int, typer.Option(min=2, help="Mixtures, both rewards included.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial noise.")] = 0,
) -> None:
    """Trade two rewards at run time, by merged LoRAs and by reward weights, on one Pareto plot."""
    from t2i_align.evaluation.prompts import load_prompts
    from t2i_align.shapes.soup_study import run as study

    runs = {word.rpartition("=")[0]: word.rpartition("=")[2] for word in loras}  # a reward may hold = itself
    texts = list(load_prompts(prompts, limit).prompts)
    result = study(runs, vector, texts, output_dir, steps=steps, seed=seed)
    for method, points in result["points"].items():
        for point in points:
            mark = " (dominated)" if point["dominated"] else ""
            print(f"{method} {point['share']:.2f}: {point['first']:.3f} {point['second']:.3f}{mark}")
    for method, found in result["area"].items():
        print(f"{method}: area over the base {found['value']:.5f} [{found['low']:.5f}, {found['high']:.5f}]")
