"""``t2i-align rewards``: train heads on pairs, and let reward models label, filter and judge pairs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i_align.commands.common import (
    ConfigFile,
    OutputDir,
    Overrides,
    Stopped,
    is_main_process,
    named_values,
    progress_bar,
)
from t2i_align.commands.data import SOURCE_HELP
from t2i_align.commands.score import BatchSize, Device, Dtype, Scorers, Workers
from t2i_align.errors import UserError

app = typer.Typer(help="Train reward models, and label, filter and judge pairs with them.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help=SOURCE_HELP, show_default=False)]
Output = Annotated[Path, typer.Argument(help="A new .parquet file.", show_default=False)]
Format = Annotated[str, typer.Option("--format", help="auto, pickapic, jsonl or ranked.")]
Split = Annotated[str, typer.Option(help="Split of a dataset.")]


@app.command()
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make the checkpoint from which a head of the built-in world starts.

    Draws pictures, teaches both towers what the oracle measures, and writes the config's checkpoint folder.
    """
    from t2i_align.rewards.training import load_config

    checked = load_config(config, overrides or ())
    if checked.pretraining is None or checked.training.checkpoint is None:
        raise UserError("This config starts without pretraining.", str(config), "set pretraining and checkpoint in it")
    from t2i_align.rewards.pretraining import run

    with progress_bar() as bar:
        print(f"Start: {run(checked.training, checked.pretraining, Path(checked.training.checkpoint), bar)}")


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a PickScore, HPS or MPS head on preference pairs; or a judge of noisy latents; or a personal head.

    Writes best/ and final/, which load like any checkpoint, metrics.json and calibration.png. Several devices:
    accelerate launch -m t2i_align rewards train CONFIG ... With scorer: lrm (latent reward model) or spm (step-aware
    preference model) it writes model/ and accuracy.png by timestep; run it again to go on after an interruption. With
    scorer: personal it learns who likes what from frozen features, in seconds, and writes model/ and few_shot.png.
    """
    from t2i_align.config.layers import merge
    from t2i_align.rewards.keys import reward_keys
    from t2i_align.rewards.noisy import is_noisy
    from t2i_align.rewards.personal import is_personal

    merged = merge(config, overrides or (), reward_keys())
    if is_personal(merged.values):
        from t2i_align.rewards.personal import read_config
        from t2i_align.rewards.personal import train as train_personal

        print(train_personal(read_config(merged, str(config))).render(), end="")
        return
    if is_noisy(merged.values):
        _train_noisy(merged, str(config))
        return
    from t2i_align.rewards.training import load_config
    from t2i_align.rewards.training import train as run

    checked = load_config(config, overrides or ())
    try:
        with progress_bar() as bar:
            result = run(checked, None if bar is None else lambda step, steps, _: bar("steps", step, steps))
    except KeyboardInterrupt as stop:
        kept = [word for word in overrides or () if not word.startswith("resume_from_checkpoint=")]
        again = shlex.join(["t2i-align", "rewards", "train", str(config), *kept, "resume_from_checkpoint=latest"])
        raise Stopped(f"Stopped. Go on from the last checkpoint with:\n  {again}") from stop
    if is_main_process():
        print(f"Final: {result.final}" + ("" if result.trained else " (finished before; nothing was written)"))
        if result.best is not None:
            print(f"Best: {result.best} (step {result.report['best'].pop('step')})")
            for dimension, part in result.report["best"].items():
                print(
                    f"  {dimension}: accuracy {part['accuracy']:.3f} on {part['untied_pairs']} untied held-out pairs, "
                    f"log loss {part['log_loss']:.3f}, calibration error {part['expected_calibration_error']:.3f}"
                )


def _train_noisy(merged: Any, source: str) -> None:
    """Judges of noisy latents have a configuration of their own: they need the base model."""
    from t2i_align.rewards.noisy import read_config
    from t2i_align.rewards.noisy import train as run

    checked = read_config(merged, source)
    try:
        with progress_bar() as bar:
            result = run(checked, None if bar is None else lambda step, steps, _: bar("steps", step, steps))
    except KeyboardInterrupt as stop:
        raise Stopped("Stopped. The same command goes on from the last checkpoint.") from stop
    print(result.render())


@app.command()
def label(
    source: Source,
    output: Output,
    scorer: Scorers = None,
    labels: Annotated[
        str, typer.Option(help="keep, soft (mean preference probability of the scorers) or hard (its larger side).")
    ] = "keep",
    layout: Format = "auto",
    split: Split = "train",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write reward margins into a pair dataset, and soft or hard labels.

    Margins are what reward-weighted objectives read. Pairs with a picture that cannot be decoded are left out and
    counted; the scores of single pictures stay in OUTPUT's .scores.parquet.
    """
    from t2i_align.rewards.label import label as run

    with progress_bar() as bar:
        options = _options(layout, split, batch_size, workers, bar)
        done = run(source, _loaded(scorer, device, dtype, needed=True), output, labels=labels, **options)
    print(done.render())


@app.command("filter")
def filter_(
    source: Source,
    output: Output,
    scorer: Scorers = None,
    rule: Annotated[
        str, typer.Option(help="mpo (no scorer prefers the loser, one prefers the winner), mpcf1, mpcf2 or mpcf3.")
    ] = "mpo",
    slack: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Own rule: by how much the winner may lose on a scorer."),
    ] = None,
    tie_band: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Own rule: largest difference of a tie that is kept."),
    ] = None,
    layout: Format = "auto",
    split: Split = "train",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Keep the pairs whose winner dominates on several scorers.

    Margins that the pairs bring count like scorers.
    """
    from t2i_align.rewards.label import filter_pairs

    with progress_bar() as bar:
        options = _options(layout, split, batch_size, workers, bar)
        chosen = _own_rule(slack, tie_band) or rule
        done = filter_pairs(source, _loaded(scorer, device, dtype), output, chosen, **options)
    print(done.render())


@app.command()
def agree(
    source: Source,
    output_dir: OutputDir,
    scorer: Scorers = None,
    layout: Format = "auto",
    split: Split = "train",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Agreement of scorers with the labels of pairs and with each other.

    Accuracy with and without ties and Kendall's tau, with bootstrap intervals over prompts. Writes agreement.md,
    agreement.json and heat_map.png. Margins that the pairs bring count like scorers.
    """
    from t2i_align.rewards.label import agreement

    with progress_bar() as bar:
        options = _options(layout, split, batch_size, workers, bar)
        del options["writing"]
        result = agreement(source, _loaded(scorer, device, dtype), output_dir, **options)
    print(result.table(), end="")


@app.command()
def render(
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="Pairs.")] = 6000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
) -> None:
    """Draw pairs of the built-in world, on which its heads learn before they see samples of a model.

    The oracle labels them; the held-out prompts are not among the captions.
    """
    from t2i_align.rewards.rendered import run

    with progress_bar() as bar:
        print(f"Pairs: {run(output, count, seed, bar)}")


@app.command("convert-mps")
def convert_mps(
    source: Annotated[Path, typer.Argument(help="MPS_overall_checkpoint.pth as published.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="New folder for the converted model.", show_default=False)],
    model_config: Annotated[
        Path | None, typer.Option(help="JSON file with clip and cross, of another size than the published one.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the tokenizer to put beside the weights.")
    ] = None,
) -> None:
    """Extract the weights of the published MPS file, a pickled module, without running anything from it."""
    from reward_models.convert_mps import convert_mps as run

    done = run(source, folder, model_config, tokenizer)
    print(f"{done.tensors} tensors, {done.parameters:,} numbers from {done.source_version}: {done.folder}")


def _loaded(words: list[str] | None, device: str | None, dtype: str | None, needed: bool = False) -> list[Any]:
    """The scorers asked for; none where margins stored with the pairs may do."""
    from t2i_align.rewards.scorers import load_scorers

    return load_scorers(words or (), device, dtype) if words or needed else []


def _options(layout: str, split: str, batch_size: int, workers: int, bar: Any) -> dict[str, Any]:
    return {
        "format": layout,
        "split": split,
        "batch_size": batch_size,
        "workers": workers,
        "progress": None if bar is None else lambda done, total: bar("pictures", done, total),
        "writing": bar,
    }


def _own_rule(slack: list[str] | None, tie_band: list[str] | None) -> Any:
    """The rule that --slack and --tie-band spell out, or None without them."""
    if not slack and not tie_band:
        return None
    from reward_models.dominance import DominanceRule

    return DominanceRule(_numbers(slack, "--slack"), tie_band=_numbers(tie_band, "--tie-band"))


def _numbers(words: list[str] | None, option: str) -> dict[str, float]:
    numbers = {}
    for name, value in named_values(words, option).items():
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise UserError(
                f"{option} needs a number", f"{name}={value}", f"for example {option} {name}=0.5"
            ) from error
    return numbers
