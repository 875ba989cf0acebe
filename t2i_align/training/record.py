"""What becomes of a run's numbers: the terminal, the metrics file, and the watch for likelihood displacement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t2i_align.training.metrics import DisplacementWatch, MetricsWriter
from t2i_align.training.progress import Progress


class Record:
    """Shows and writes logged values; every process has one, only the main process's has a ``writer``.

    Args:
        progress: the terminal.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.writer: MetricsWriter | None = None
        self._displacement = DisplacementWatch()

    def log(self, step: int, values: dict[str, float]) -> None:
        """A logged training step, with ``likelihood_displacement`` (0 or 1) where d_w was measured."""
        if "d_w" in values:
            values = values | {"likelihood_displacement": float(self._watch(values))}
        self.progress.update(step, values)
        if self.writer is not None:
            self.writer.write(step, values)

    def heldout(self, step: int, values: dict[str, float]) -> None:
        """What a validation measured; nothing where there are no held-out pairs."""
        if self.writer is not None and values:
            self.writer.write(step, values)
            self.progress.note(f"step {step}: held-out implicit accuracy {values['heldout/implicit_accuracy']:.3f}")

    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Sample grids by name."""
        if self.writer is not None:
            for name, file in files.items():
                self.writer.picture(step, name, file)

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show the watch the steps that a resumed run has made before."""
        for row in rows:
            self._watch(row)

    def close(self) -> None:
        """End the progress bar and close the file."""
        self.progress.close()
        if self.writer is not None:
            self.writer.close()

    def _watch(self, values: Mapping[str, Any]) -> bool:
        d_winner, margin, reference = (values.get(name) for name in ("d_w", "margin", "r_w"))
        if d_winner is None or margin is None or reference is None:  # not measured, or not finite
            return False
        return self._displacement.update(d_winner, margin, reference)
