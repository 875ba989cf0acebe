"""``t2i-align score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2i_align.commands.common import is_main_process, progress_bar

SCORER_HELP = (
    "Comma-separated, may be repeated: NAME[:CONDITION][=CHECKPOINT] of a reward model, oracle, file.py:function "
    "of your own, or a .yaml file of scorers with options."
)
Scorers = Annotated[list[str] | None, typer.Option("--scorer", help=SCORER_HELP, show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures per forward pass; scores do not depend on it.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda:0; CUDA where there is one by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), float16 or bfloat16, of the networks.")]


def score(
    images: Annotated[
        str,
        typer.Option(
            help="Folder of pictures, parquet file of pictures, or any pair source such as shapes:pairs.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new .parquet file.", show_default=False)],
    scorer: Scorers = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A .txt, .jsonl, .csv or .tsv file, where the pictures come without.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset of pairs.")] = "train",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    dtype: Dtype = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the parts of an interrupted run.")] = False,
) -> None:
    """Score pictures with reward models.

    Writes one row per picture and scorer: id, prompt, scorer, version, preprocessing, score. Pictures that cannot be
    decoded are skipped, counted and listed beside the file. A stopped command goes on where it was.
    """
    from t2i_align.rewards.scoring import score as run

    with progress_bar() as bar:
        report = run(
            images,
            scorer or (),
            out,
            prompts=prompts,
            split=split,
            batch_size=batch_size,
            workers=workers,
            device=device,
            dtype=dtype,
            resume=not restart,
            progress=None if bar is None else lambda done, total: bar("pictures", done, total),
        )
    if is_main_process():
        print(report.render())
