"""The drift page's charts: score against training step, and how far the scores agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from t2i_align.evaluation.drift.agreement import Agreement, Score
from t2i_align.evaluation.drift.measure import Drift
from t2i_align.evaluation.drift.trajectory import Trajectory
from t2i_align.evaluation.report.charts import Series, line_chart


@dataclass(frozen=True)
class Curve:
    """A run's curve of one score: title, hint, SVG."""

    title: str
    hint: str
    svg: Markup


@dataclass(frozen=True)
class DriftPage:
    """What the template shows.

    Attributes:
        drift: all that was measured.
        warnings: sentences on the models on trial.
        matrices: model on trial -> rows of (score, correlations as text and share for colouring).
        curves: run -> its charts, the deciding score first.
    """

    drift: Drift
    warnings: list[str]
    matrices: dict[str, list[tuple[str, list[tuple[str, float]]]]]
    curves: list[tuple[Trajectory, list[Curve]]]

    @property
    def of_curves(self) -> set[str]:
        """Sentences that stand beside a run's curves."""
        return {one.sentence for one, _ in self.curves}


def drift_page(drift: Drift, models: Sequence[str]) -> DriftPage:
    """Prepare the section for the models on trial."""
    warnings = list(dict.fromkeys(sentence for model in models for sentence in drift.warnings(model)))
    curves = [(one, _curves(one)) for one in drift.trajectories]
    return DriftPage(drift, warnings, {model: _matrix(drift.agreement[model]) for model in models}, curves)


def _matrix(found: Agreement) -> list[tuple[str, list[tuple[str, float]]]]:
    return [
        (
            " ".join(score),
            [("–" if np.isnan(value) else f"{value:.2f}", 0.0 if np.isnan(value) else float(value)) for value in row],
        )
        for score, row in zip(found.scores, found.correlation, strict=True)
    ]


def _curves(found: Trajectory) -> list[Curve]:
    order: list[Score] = [found.judge, *(score for score in found.gains if score != found.judge)]
    return [_curve(found, score) for score in order]


def _curve(found: Trajectory, score: Score) -> Curve:
    steps = np.array(found.steps, dtype=float)
    gains = found.gains[score]
    series = [
        Series("gain", steps, np.array([gain.value for gain in gains]), 0, markers=True),
        Series("low", steps, np.array([gain.low for gain in gains]), 0, faint=True),
        Series("high", steps, np.array([gain.high for gain in gains]), 0, faint=True),
    ]
    decides = score == found.judge
    marks = {"peak": found.peak} | ({"stop": found.suggested} if found.suggested is not None else {}) if decides else {}
    name = " ".join(score)
    hint = "Mean gain over the baseline with its interval." + (" This score decides." if decides else "")
    svg = line_chart(series, f"{name} gain against training step", 0.0, marks)
    return Curve(name, hint, svg)
