"""Inline SVG line charts that follow the page's colours (CSS variables) and fit a phone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup, escape

# One user unit is about one CSS pixel both in a desktop's three columns and on a phone, so text stays
# legible.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 26
MAX_POINTS = 400
SMOOTHING = 0.9  # weight of the past in the exponential average of noisy curves


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        x, y: same length; y may hold NaN.
        color: index of the page's series colours, 0 to 3.
        noisy: draw an exponential average over a faint trace.
        markers: draw the points, for sparse series.
        faint: draw it thin, such as the ends of an interval.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int = 0
    noisy: bool = False
    markers: bool = False
    faint: bool = False


def line_chart(
    series: Sequence[Series], label: str, reference: float | None = None, marks: Mapping[str, float] | None = None
) -> Markup:
    """A line chart as SVG markup.

    Args:
        series: at least one with a finite point.
        label: what a screen reader says.
        reference: a dashed horizontal line, e.g. 0 or chance.
        marks: word -> x of a vertical line with that word; words at one place are joined.
    """
    kept = [_thin(one) for one in series if np.isfinite(one.y).any()]
    x_low, x_high = min(one.x.min() for one in kept), max(one.x.max() for one in kept)
    values = np.concatenate([_visible(one) for one in kept])
    extremes = values[np.isfinite(values)]
    if reference is not None:
        extremes = np.append(extremes, reference)
    ticks = nice_ticks(float(extremes.min()), float(extremes.max()))
    frame = _Frame(float(x_low), float(max(x_high, x_low + 1)), ticks[0], ticks[-1])
    parts = [_y_axis(frame, ticks), _x_axis(frame)]
    if reference is not None:
        y = frame.y(reference)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts += [_trace(frame, one) for one in kept]
    parts += _marks(frame, marks or {})
    data = escape(json.dumps(_readout(frame, kept)))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'data-readout="{data}">{"".join(parts)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" hidden="hidden"/></svg>'
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span ``[low, high]``, about ``count`` steps of 1, 2, 2.5 or 5 times a power of ten."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smooth(values: np.ndarray, past: float = SMOOTHING) -> np.ndarray:
    """Exponential average with start-up correction; NaN is skipped."""
    result, total, weight = np.empty(len(values)), 0.0, 0.0
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, weight = past * total + (1 - past) * value, past * weight + (1 - past)
        result[index] = total / weight if weight else np.nan
    return result


def short(value: float) -> str:
    """A number in at most about six characters."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - min(1.05, max(-0.05, share)) * (HEIGHT - TOP - BOTTOM)


def _thin(series: Series) -> Series:
    """Average runs of neighbours so that no series has more than MAX_POINTS points."""
    run = -(-len(series.x) // MAX_POINTS)
    if run <= 1:
        return series
    edges = range(0, len(series.x), run)
    x = np.array([series.x[start : start + run].mean() for start in edges])
    chunks = [series.y[start : start + run] for start in edges]
    y = np.array([chunk[np.isfinite(chunk)].mean() if np.isfinite(chunk).any() else np.nan for chunk in chunks])
    return replace(series, x=x, y=y)


def _visible(series: Series) -> np.ndarray:
    """Values that must fit: all of a calm curve, the bulk of a noisy one (one spike must not flatten the rest)."""
    if not series.noisy or len(series.y) < 20:
        return series.y
    finite = series.y[np.isfinite(series.y)]
    return np.concatenate([np.percentile(finite, [1, 99]), smooth(series.y)])


def _y_axis(frame: _Frame, ticks: Sequence[float]) -> str:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<line class="gridline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    return "".join(parts)


def _x_axis(frame: _Frame) -> str:
    ticks = [tick for tick in nice_ticks(frame.x_low, frame.x_high) if frame.x_low <= tick <= frame.x_high]
    labels = [
        f'<text class="tick" x="{frame.x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>'
        for tick in ticks
    ]
    return "".join(labels)


def _marks(frame: _Frame, marks: Mapping[str, float]) -> list[str]:
    places: dict[float, list[str]] = {}
    for word, value in marks.items():
        places.setdefault(value, []).append(word)
    parts = []
    for value, words in places.items():
        x = frame.x(value)
        anchor = "end" if x > WIDTH / 2 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        text = escape(", ".join(words))
        parts.append(
            f'<text class="tick" x="{x + shift:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="{anchor}">{text}</text>'
        )
    return parts


def _trace(frame: _Frame, series: Series) -> str:
    parts = []
    if series.noisy and len(series.y) >= 20:
        parts.append(_path(frame, series.x, series.y, f"trace faint series-{series.color}"))
        parts.append(_path(frame, series.x, smooth(series.y), f"trace series-{series.color}"))
    else:
        css = f"trace {'thin ' if series.faint else ''}series-{series.color}"
        parts.append(_path(frame, series.x, series.y, css))
    if series.markers or len(series.x) == 1:
        parts += [
            f'<circle class="marker series-{series.color}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
            for x, y in zip(series.x, series.y, strict=True)
            if np.isfinite(y)
        ]
    return "".join(parts)


def _path(frame: _Frame, x: np.ndarray, y: np.ndarray, css: str) -> str:
    commands, pen = [], "M"
    for point_x, point_y in zip(x, y, strict=True):
        if not np.isfinite(point_y):
            pen = "M"  # a gap in the line, not a bridge over it
            continue
        commands.append(f"{pen}{frame.x(point_x):.1f} {frame.y(point_y):.1f}")
        pen = "L"
    return f'<path class="{css}" d="{"".join(commands)}"/>'


def _readout(frame: _Frame, series: Sequence[Series]) -> dict:
    """What the page's script shows under the pointer: positions and values of every curve as drawn."""
    described = []
    for one in series:
        drawn = smooth(one.y) if one.noisy and len(one.y) >= 20 else one.y
        usable = np.isfinite(drawn)
        described.append(
            {
                "name": one.name,
                "step": [round(float(value)) for value in one.x[usable]],
                "at": [round(frame.x(float(value)), 1) for value in one.x[usable]],
                "value": [short(float(value)) for value in drawn[usable]],
            }
        )
    return {"width": WIDTH, "series": described}
