"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def calibration_plot(report: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Reliability curve of every dimension: predicted against observed preference, with the error in the legend.

    Args:
        report: dimension -> `pair_report`.
        path: a picture file; its directory exists.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for dimension, part in report.items():
        curve = part["reliability"]
        label = f"{dimension}: ECE {part['expected_calibration_error']:.3f}, accuracy {part['accuracy']:.3f}"
        axes.plot([b["predicted"] for b in curve], [b["observed"] for b in curve], marker="o", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted preference", ylabel="observed preference")
    axes.set_title(f"{max(part['pairs'] for part in report.values())} held-out pairs")
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=100)
