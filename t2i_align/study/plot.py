"""Win rates with their intervals, one line a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reward_models.files import complete_file
from t2i_align.study.table import Row

COLOURS = {"method": "#2f6db5", "control": "#8a8a8a"}
LINE_HEIGHT = 0.26  # inches


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG; rows without numbers are left out, and without any row there is no picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.win_rate is not None][::-1]
    if not shown:
        return
    figure = Figure(figsize=(7.5, 1.2 + LINE_HEIGHT * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0.5, color="#444444", linewidth=1, linestyle="--")
    for place, row in enumerate(shown):
        rate, colour = row.win_rate, COLOURS[row.kind]
        assert rate is not None
        axes.plot([rate.low, rate.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(row.seed_win_rates, [place] * len(row.seed_win_rates), "|", color=colour, markersize=7)
        axes.plot(rate.value, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=8)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    legend = "dot: seeds pooled; bar: 95 % interval over prompts; ticks: seeds"
    axes.set_xlabel(f"win rate against the base\n{legend}", fontsize=9)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with complete_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
