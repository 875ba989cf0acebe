"""``t2i-align demo``."""

from __future__ import annotations

from t2i_align.commands.common import OutputDir, Stopped


def demo(output_dir: OutputDir) -> None:
    """Align the built-in small SDXL and prove it, on a CPU.

    Trains on the built-in preference pairs and, as a control, on shuffled labels; compares both with the base;
    writes summary.json and report.html. An interrupted demo goes on where it stopped.
    """
    from t2i_align.demo import run
    from t2i_align.training.loop import Interrupted

    try:
        run(output_dir)
    except Interrupted as stop:
        raise Stopped(f"Stopped; {stop} is written. Go on with the same command.") from stop
