"""A run folder read for the report: training curves, likelihood displacement, configuration, environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from reward_models.text_tables import split_lines
from t2i_align.errors import UserError
from t2i_align.evaluation.report.charts import Series, line_chart, short, smooth


@dataclass(frozen=True)
class Panel:
    """One chart: title, what to look for, and (metric, legend, colour) of its curves."""

    title: str
    hint: str
    metrics: tuple[tuple[str, str, int], ...]
    reference: float | None = None


PANELS = (
    Panel("Loss", "Mean over the batch of the objective.", (("loss", "training", 0),)),
    Panel(
        "Implicit accuracy",
        "Share of pairs that the model's own errors order like the label; 0.5 is chance. Held-out is what counts.",
        (("implicit_accuracy", "training", 0), ("heldout/implicit_accuracy", "held-out", 1)),
        0.5,
    ),
    Panel(
        "Error change against the reference",
        "Winner (d_w) should fall or stay below zero; loser (d_l) should rise.",
        (("d_w", "winner d_w", 0), ("d_l", "loser d_l", 1)),
        0.0,
    ),
    Panel(
        "Margin",
        "d_l − d_w: how far the preferred picture is ahead.",
        (("margin", "training", 0), ("heldout/margin", "held-out", 1)),
        0.0,
    ),
    Panel("Gradient norm", "Before clipping; spikes mean instability.", (("grad_norm", "norm", 0),)),
    Panel(
        "Size of the logit",
        "Quantiles of |z| over the batch; a logistic loss saturates above about 5.",
        (("logits/abs_p50", "median", 0), ("logits/abs_p90", "90 %", 1), ("logits/abs_max", "largest", 2)),
    ),
    Panel(
        "Implicit accuracy by noise",
        "By quarter of the noise schedule; where the preference is learnt.",
        tuple(
            (f"implicit_accuracy_by_timestep/{quarter}_of_4", name, quarter)
            for quarter, name in enumerate(("least noise", "second", "third", "most noise"))
        ),
        0.5,
    ),
    Panel(
        "Divergence of the reference",
        "How much worse than the initial model it would denoise winners; above the limit it stops following.",
        (("reference_divergence", "divergence", 0),),
    ),
    Panel(
        "Score of the rollouts",
        "Mean score of the candidates; it should rise. Held-out scorers say whether that is more than hacking.",
        (("rollout/score_mean", "mean score", 0),),
    ),
    Panel(
        "Score gap",
        "Best minus worst candidate of a state, and the same of the pairs that are trained on.",
        (("rollout/score_gap", "examined", 0), ("rollout/trained_score_gap", "trained", 1)),
    ),
    Panel(
        "Accepted pairs",
        "Share of examined states whose gap exceeds the threshold, by quarter of the noise schedule.",
        tuple(
            (f"rollout/acceptance_by_timestep/{quarter}_of_4", name, quarter)
            for quarter, name in enumerate(("least noise", "second", "third", "most noise"))
        ),
    ),
    Panel("Staleness", "Updates between sampling a pair and training on it.", (("rollout/staleness", "updates", 0),)),
    Panel(
        "Seconds so far",
        "Where the time goes.",
        (("rollout/rollout_seconds", "rollouts", 0), ("rollout/train_seconds", "training", 1)),
    ),
    Panel(
        "UNet passes so far",
        "Rows through the network: forward (rollouts, scoring, policy and reference) and backward.",
        (("passes/unet_forward", "forward", 0), ("passes/unet_backward", "backward", 1)),
    ),
)


@dataclass(frozen=True)
class Chart:
    """A rendered panel with its legend: (name, colour, last value as drawn)."""

    title: str
    hint: str
    svg: Markup
    legend: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class RunFolder:
    """What the report shows of one training run.

    Attributes:
        model: name within the evaluation.
        path: the folder.
        charts: panels for which there were numbers.
        displacement: one sentence on likelihood displacement, or None where it was not measured.
        displaced: whether it was seen.
        config, environment: text of the files, or None.
    """

    model: str
    path: str
    steps: int
    charts: tuple[Chart, ...]
    displacement: str | None
    displaced: bool
    config: str | None
    environment: str | None


def read_run(model: str, folder: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        UserError: the folder holds no ``metrics.jsonl``.
    """
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(
            f"The run folder of {model} holds no metrics.jsonl.",
            str(folder),
            "give the output_dir of a t2i-align train run",
        )
    columns = read_columns(path)
    charts = tuple(chart for panel in PANELS if (chart := _chart(panel, columns)) is not None)
    displaced, sentence = displacement(columns)
    return RunFolder(
        model=model,
        path=str(folder),
        steps=int(max((steps.max() for steps, _ in columns.values()), default=0)),
        charts=charts,
        displacement=sentence,
        displaced=displaced,
        config=_text(folder / "config.yaml"),
        environment=_text(folder / "environment.json"),
    )


def read_columns(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (steps, values) of a ``metrics.jsonl``; a cut last line is left out and null becomes NaN."""
    collected: dict[str, list[tuple[float, float]]] = {}
    for line in split_lines(path.read_text(encoding="utf-8")):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        for key, value in row.items():
            if key != "step" and (value is None or isinstance(value, int | float)):
                collected.setdefault(key, []).append((row["step"], np.nan if value is None else value))
    return {
        key: (np.array([step for step, _ in points], float), np.array([value for _, value in points], float))
        for key, points in collected.items()
    }


def displacement(columns: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[bool, str | None]:
    """Whether the winner's error rose above the reference while the margin grew, and a sentence about it."""
    if "d_w" not in columns or "margin" not in columns:
        return False, None
    flag = columns.get("likelihood_displacement")
    d_winner, winner_error = _last_quarter(columns["d_w"][1])
    margin, margin_error = _last_quarter(columns["margin"][1])
    figures = f"over the last quarter of the run d_w = {short(d_winner)} and the margin = {short(margin)}"
    if flag is not None and np.nanmax(flag[1]) > 0:
        step = int(flag[0][int(np.nanargmax(flag[1] > 0))])
        return True, (
            f"Likelihood displacement from step {step}: the winner's error rose above the reference while the margin "
            f"grew; {figures}. The pictures may get worse although the loss falls."
        )
    if d_winner > 2 * winner_error and margin > 2 * margin_error:
        if flag is None:  # a run that did not watch its size
            return True, f"The winner's error ended above the reference although the margin is positive; {figures}."
        return False, f"Both errors rose, the loser's faster, as in most healthy runs, and not far; {figures}."
    return False, f"No likelihood displacement: {figures}."


def _last_quarter(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error over the last quarter of a curve."""
    tail = values[-max(4, len(values) // 4) :]
    tail = tail[np.isfinite(tail)]
    if len(tail) == 0:
        return 0.0, 0.0
    return float(tail.mean()), float(tail.std() / np.sqrt(len(tail)))


def _chart(panel: Panel, columns: dict[str, tuple[np.ndarray, np.ndarray]]) -> Chart | None:
    series, legend = [], []
    for metric, name, color in panel.metrics:
        if metric not in columns or not np.isfinite(columns[metric][1]).any():
            continue
        steps, values = columns[metric]
        heldout = metric.startswith("heldout/")
        series.append(Series(name, steps, values, color, noisy=not heldout, markers=heldout))
        drawn = values[np.isfinite(values)] if heldout else smooth(values)
        legend.append((name, color, short(float(drawn[-1]))))
    if not series:
        return None
    svg = line_chart(series, f"{panel.title} against training step", panel.reference)
    return Chart(panel.title, panel.hint, svg, tuple(legend))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
