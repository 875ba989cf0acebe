"""``t2i-align personal``: new users from a few answers, and the way from one user to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from t2i_align.commands.common import OutputDir
from t2i_align.commands.evaluate import Base, Device, Dtype, Guidance, Seed, Side, Steps
from t2i_align.errors import UserError

Level = Literal["nominal", "ordinal", "interval"]

app = typer.Typer(help="New users from a few answers, and pictures between two users.", no_args_is_help=True)


@app.command()
def fit(
    head: Annotated[
        str,
        typer.Argument(metavar="HEAD", help="Run folder of rewards train with scorer: personal.", show_default=False),
    ],
    answers: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS[#USER]", help="Answers of the new user, any source of pairs.", show_default=False
        ),
    ],
    first: Annotated[int | None, typer.Option(min=1, help="Only the first so many answers.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Pairs that may be asked next; the answers' source by default.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Run of a user adapter of pairs, or of a table: write the user's tokens for it too."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Tokens file for generate --user, with --adapter.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the user in the tokens file.")] = "user",
) -> None:
    """Say what a new user's answers teach, how sure that is, and which pair to ask next; seconds on a CPU."""
    from t2i_align.personal.new_user import fit as run
    from t2i_align.personal.new_user import save_tokens

    if (adapter is None) != (output is None):
        raise UserError("--adapter and --output belong together.", f"{adapter}, {output}", "give both or neither")
    print(run(head, answers, first, candidates).render())
    if adapter is not None and output is not None:
        print(f"Tokens: {save_tokens(adapter, answers, first, name, output)}")


@app.command()
def interpolate(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run of a user adapter.", show_default=False)],
    start: Annotated[str, typer.Argument(metavar="FROM", help="A user, as for generate --user.", show_default=False)],
    end: Annotated[str, typer.Argument(metavar="TO", help="Another.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="One row of pictures each; may be repeated.", show_default=False)],
    users: Annotated[int, typer.Option(min=2, help="Pictures per row, both users included.")] = 5,
    num_inference_steps: Steps = 25,
    guidance_scale: Guidance = 5.0,
    seed: Seed = 0,
    height: Side = None,
    width: Side = None,
    base: Base = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a strip of pictures from one user to another, the noise of a row being the same throughout."""
    from t2i_align.evaluation.strip import strip

    path = strip(
        model,
        start,
        end,
        prompt,
        output,
        users=users,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        height=height,
        width=width,
        base=base,
        device=device,
        dtype=dtype,
    )
    print(f"Strip: {path}")


@app.command()
def soup(
    models: Annotated[
        list[str], typer.Argument(metavar="RUN=WEIGHT", help="LoRA runs and their weights.", show_default=False)
    ],
    output_dir: OutputDir,
) -> None:
    """Merge single-reward LoRAs with weights, exactly, into one LoRA that generate and evaluate take."""
    from t2i_align.personal.soups import merge_loras

    weights = {}
    for word in models:
        model, _, weight = word.rpartition("=")
        try:
            weights[model] = float(weight)
        except ValueError as error:
            raise UserError("A LoRA is given with its weight.", word, "for example runs/bright=0.3") from error
    print(f"Soup: {merge_loras(weights, output_dir)}")


@app.command()
def disagreement(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="Any source of pairs with users.", show_default=False)],
    level: Annotated[
        Level, typer.Option(help="Of measurement: whether a tie is a third answer, or lies between the two.")
    ] = "ordinal",
) -> None:
    """Say how far the people who answered the same pairs agree: Krippendorff's alpha, disputed pairs, outsiders."""
    from t2i_align.personal.annotators import compare_annotators

    print(compare_annotators(pairs, level).render())


@app.command()
def extract(
    pairs: Annotated[
        str,
        typer.Argument(metavar="PAIRS[#USER]", help="Answers of users, any source of pairs.", show_default=False),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Vision-language model: transformers folder with safetensors weights, or hub id.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Safetensors file, an array [L, F] per user.", show_default=False)
    ],
    shots: Annotated[int, typer.Option(min=1, help="Pairs that are shown of each user.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the model.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of pairs.")] = 0,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16; bf16 on CUDA, fp32 on a CPU.")] = None,
) -> None:
    """Embed users with a vision-language model that describes their choices, for encoder: external.

    Writes what the model said of each user beside the arrays (.jsonl). A stopped command goes on where it was.
    """
    from t2i_align.evaluation.generate import device_and_dtype
    from t2i_align.personal.extraction import Recipe, check_output
    from t2i_align.personal.extraction import extract as run
    from t2i_align.personal.vision_language import VisionLanguageModel
    from t2i_align.personal.who import split_user

    check_output(output)
    where, precision = device_and_dtype(device, dtype)
    precision = dtype or ("fp32" if where == "cpu" else "bf16")  # language models leave the range of fp16
    address, user = split_user(pairs)
    recipe = Recipe(model, shots, max_new_tokens, seed, precision)
    reader = VisionLanguageModel(model, where, precision)
    made = run(address, user, recipe, output, reader)
    shape = " x ".join(map(str, made.shape))
    print(f"{made.path}: {made.users} users, {shape}; answers in {output.with_suffix('.jsonl')}")
    if made.left_out:
        print(f"{len(made.left_out)} users have fewer than {shots} usable pairs, such as {made.left_out[0]}: left out")
    if made.unfinished:
        print(
            f"{len(made.unfinished)} answers were cut off, such as that about {made.unfinished[0]}: their states are "
            "not those of a finished profile; use a larger --max-new-tokens"
        )
