"""``t2i-align export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    checkpoint: Annotated[
        str | None, typer.Option(help="Such as checkpoint-500; the latest by default.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="RUN/export by default.", show_default=False)
    ] = None,
) -> None:
    """Write portable weights from a checkpoint of a run.

    The run may be unfinished; a model card is written beside the weights.
    """
    from t2i_align.export import export_checkpoint

    print(f"Export: {export_checkpoint(run_folder, checkpoint, output_dir or run_folder / 'export')}")
