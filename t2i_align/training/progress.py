"""The terminal: a live bar where there is a terminal, a line now and then where there is a log file."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SHOWN = {"loss": "loss", "implicit_accuracy": "acc", "margin": "margin", "grad_norm": "grad"}


class Progress:
    """Progress of the optimiser steps; silent on all but the main process.

    Args:
        total: optimiser steps.
        enabled: whether this process prints.
    """

    def __init__(self, total: int, enabled: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._enabled = total, enabled
        self._every = max(1, total // 20)
        self._bar: Bar | None = None
        if enabled and self._console.is_terminal:
            columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            columns += [TimeRemainingColumn(), TextColumn("{task.fields[values]}")]
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=total, values="")
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show a logged step."""
        text = "  ".join(f"{label} {values[name]:.4g}" for name, label in SHOWN.items() if name in values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=text)
        elif self._enabled and (step % self._every == 0 or step in (1, self._total)):
            self._console.print(f"step {step}/{self._total}  {text}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._enabled:
            self._console.print(text)

    def close(self) -> None:
        """Stop the live bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
