"""The terminal: a live bar where there is a terminal, a line now and then where there is a log file."""

from __future__ import annotations

from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from t2i_align.progress import in_words, is_quiet

SHOWN = {"loss": "loss", "implicit_accuracy": "acc", "margin": "margin", "grad_norm": "grad"}
PACE_OF = 20  # logged steps over which the pace is taken


class Progress:
    """Progress of the optimiser steps, with seconds a step and the time left; silent on all but the main process.

    Args:
        total: optimiser steps.
        enabled: whether this process prints; ``t2i-align --quiet`` silences it too.
    """

    def __init__(self, total: int, enabled: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)  # [set] is no markup
        self._total, self._enabled = total, enabled and not is_quiet()
        self._every = max(1, total // 20)
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE_OF)
        self._bar: Bar | None = None
        if self._enabled and self._console.is_terminal:
            columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            self._bar = Bar(*columns, TextColumn("{task.fields[values]}", markup=False), console=self._console)
            self._task = self._bar.add_task("training", total=total, values="")
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show a logged step; ``seconds`` among its values is the time spent in steps so far."""
        parts = [f"{label} {values[name]:.4g}" for name, label in SHOWN.items() if name in values]
        if "seconds" in values:
            parts += self._timing(step, values["seconds"])
        text = "  ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=text)
        elif self._enabled and (step % self._every == 0 or step in (1, self._total)):
            self._console.print(f"step {step}/{self._total}  {text}", markup=False)

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Stop the live bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _timing(self, step: int, seconds: float) -> list[str]:
        """The pace of the latest steps, and the time that the rest takes at it; validations come on top."""
        self._pace.append((step, seconds))
        (first, start), (last, end) = self._pace[0], self._pace[-1]
        if last == first:
            return []
        pace = (end - start) / (last - first)
        left = self._total - step
        return [f"{pace:.3g} s/step"] + ([f"{in_words(pace * left)} left"] if left > 0 else [])
