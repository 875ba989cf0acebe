"""``t2i-align data``: look at pairs, encode them once, bring them into one file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_align.commands.common import ConfigFile, Overrides, is_main_process, progress_bar
from t2i_align.errors import UserError

if TYPE_CHECKING:
    from t2i_align.backbones.tokenizers import PromptLength
    from t2i_align.config.schema import DataConfig, ModelConfig

YAML_SUFFIXES = (".yaml", ".yml")
FORMATS = ("auto", "pickapic", "jsonl", "ranked", "table", "folders")
SOURCE_HELP = (
    "Parquet file or folder, dataset folder or hub id, JSONL, CSV or TSV file, folder with chosen/ and rejected/, or "
    "shapes:pairs."
)
logger = logging.getLogger(__name__)
app = typer.Typer(help="Check, cache and convert preference pairs.", no_args_is_help=True)


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(metavar="CONFIG-OR-SOURCE", help=f"YAML file of a run, or: {SOURCE_HELP}", show_default=False),
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model whose tokenizer cuts the captions; a CONFIG names its own.", show_default=False),
    ] = None,
) -> None:
    """Report what would train: counts, ties, sizes, crops, captions that are cut, defects.

    Every picture is decoded once. For a SOURCE, overrides name keys of the data section, for example
    data.resolution=1024. Exits with 2 when the data cannot train.
    """
    from t2i_align.data.check import check as check_data

    data, config_model = _sections(target, overrides or [])
    tokenizers = _tokenizers(model, config_model)
    with progress_bar() as progress:
        report = check_data(data, progress, tokenizers)
    print(report.render())
    report.require_trainable()


def _sections(target: str, overrides: list[str]) -> tuple[DataConfig, ModelConfig | None]:
    """Data and model of a YAML file; or of a source, with defaults for everything that is not overridden."""
    from t2i_align.config.loading import load_config, load_data_section

    if target.endswith(YAML_SUFFIXES):
        config = load_config(target, overrides)
        return config.data, config.model
    return load_data_section([f"data.source={target}", *overrides]), None


def _tokenizers(named: str | None, model: ModelConfig | None) -> list[PromptLength] | None:
    """Of the model that is named, or else that of the configuration where it is at hand; None where none is known."""
    from t2i_align.backbones.tokenizers import of_model, prompt_lengths

    if named is not None:
        return prompt_lengths(named)
    if model is None:
        return None
    try:
        return of_model(model)
    except UserError as error:  # data can be looked at before a model is there
        logger.warning("captions are not counted: %s %s", error.what, error.found)
        return None


@app.command()
def cache(config: ConfigFile, overrides: Overrides = None) -> None:
    """Encode the pictures and prompts of a run once.

    Writes data.cache_dir; only what is missing there is encoded.
    """
    from t2i_align.config.loading import load_config

    run = load_config(config, overrides or ())
    from t2i_align.data.cache import run as build

    with progress_bar() as progress:
        report = build(run, progress)
    if is_main_process():
        print(report.render())


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP, show_default=False)],
    output: Annotated[Path, typer.Argument(help="A new .parquet file.", show_default=False)],
    layout: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NAME", help="Column that holds a field, as data.columns says; repeat it."),
    ] = None,
    skip_undecodable: Annotated[
        bool, typer.Option("--skip-undecodable", help="Leave such pairs out instead of refusing.")
    ] = False,
) -> None:
    """Write any source as one parquet file.

    The layout is that of Pick-a-Pic; pictures are copied byte for byte.
    """
    if layout not in FORMATS:
        raise UserError("unknown --format", repr(layout), f"use one of: {', '.join(FORMATS)}")
    from t2i_align.config.loading import load_data_section
    from t2i_align.data.convert import convert as convert_data

    words = [f"data.columns.{word}" for word in column or []]
    columns = load_data_section(["data.source=unused", *words]).columns  # checks the fields' names

    with progress_bar() as progress:
        report = convert_data(
            source,
            output,
            format=layout,
            split=split,
            columns=columns,
            skip_undecodable=skip_undecodable,
            progress=progress,
        )
    print(report.render())
