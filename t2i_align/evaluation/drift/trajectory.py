"""Score against training step: where it peaked, whether it fell, and where training should have stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t2i_align.evaluation import statistics
from t2i_align.evaluation.drift.agreement import Score
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Trajectory:
    """One run's checkpoints, judged.

    Attributes:
        run: name of the run.
        steps: training steps, rising.
        models: the checkpoints' names within the evaluation.
        gains: score -> mean paired difference from the baseline at each step.
        judge: the score that decides: held out from training.
        peak: the step with the highest gain by ``judge``.
        fall: gain of the last step minus gain at the peak, cross-fitted: the peak is chosen on one half of the prompts
            and the fall read on the other, both ways, so that choosing the highest of several does not make a fall.
        over_optimised: the interval of ``fall`` lies below zero.
        proxy_rise: the same difference of the score that was trained on, where it was named.
        parted: over-optimised while the proxy kept rising or stayed.
        suggested: the step to stop at: the highest gain by ``judge`` among steps that keep the constraints; None where
            no step keeps them and gains anything.
        refused: step -> why a constraint forbids it.
    """

    run: str
    steps: tuple[int, ...]
    models: tuple[str, ...]
    gains: Mapping[Score, tuple[Estimate, ...]]
    judge: Score
    peak: int
    fall: Estimate
    over_optimised: bool
    proxy_rise: Estimate | None
    parted: bool
    suggested: int | None
    refused: Mapping[int, str]

    @property
    def sentence(self) -> str:
        """What the curve says, with its figures."""
        name = " ".join(self.judge)
        stop = (
            f"Stop at step {self.suggested}."
            if self.suggested is not None
            else "No checkpoint gains anything within the constraints."
        )
        if not self.over_optimised:
            return f"No fall of {name} after its peak at step {self.peak} can be shown. {stop}"
        figures = f"{self.fall.value:+.3f} ({self.fall.low:+.3f} to {self.fall.high:+.3f})"
        trained = " while the score it was trained on kept up" if self.parted else ""
        return (
            f"Over-optimised: from its peak at step {self.peak} to step {self.steps[-1]} {name} changes by {figures}"
            f"{trained}. {stop}"
        )


def trajectory(
    evaluation: Evaluation,
    run: str,
    checkpoints: Mapping[int, str],
    judge: Score | None = None,
    proxy: Score | None = None,
    refused: Mapping[int, str] | None = None,
) -> Trajectory:
    """Judge the checkpoints of a run that the evaluation holds.

    Args:
        run: name of the run.
        checkpoints: training step -> model name; at least two, and step 0 may be the baseline.
        judge: held-out score that decides; None is the primary score.
        proxy: the score that was trained on.
        refused: steps that a constraint forbids, with the reason (see ``drift.measure``).
    """
    judge = judge or evaluation.primary
    steps = sorted(checkpoints)
    names = [checkpoints[step] for step in steps]
    per_prompt = {
        score: np.stack([_gain(evaluation, name, score) for name in names]) for score in evaluation.scores.dimensions
    }

    def mean(values: np.ndarray) -> Estimate:
        return statistics.mean(values, confidence=evaluation.confidence, replicates=evaluation.replicates)

    gains = {score: tuple(mean(values) for values in table) for score, table in per_prompt.items()}
    fall = mean(cross_fitted_fall(per_prompt[judge]))
    peak = int(np.nanargmax(np.nanmean(per_prompt[judge], axis=1)))
    over_optimised = fall.high < 0
    proxy_rise = None if proxy is None else mean(per_prompt[proxy][-1] - per_prompt[proxy][peak])
    refused = dict(refused or {})
    return Trajectory(
        run=run,
        steps=tuple(steps),
        models=tuple(names),
        gains=gains,
        judge=judge,
        peak=steps[peak],
        fall=fall,
        over_optimised=over_optimised,
        proxy_rise=proxy_rise,
        parted=over_optimised and proxy_rise is not None and proxy_rise.high >= 0,
        suggested=_suggest(steps, gains[judge], refused),
        refused=refused,
    )


def cross_fitted_fall(gains: np.ndarray) -> np.ndarray:
    """Per-prompt change from the peak to the last step, the peak chosen on the other half of the prompts.

    Args:
        gains: ``[steps, n]`` per-prompt gains, NaN where missing.

    Returns:
        ``[n]``; zero where the peak is the last step.
    """
    change = np.empty(gains.shape[1])
    halves = np.arange(gains.shape[1]) % 2
    for half in (0, 1):
        other = gains[:, halves != half]
        peak = int(np.nanargmax(np.nanmean(other if other.size else gains, axis=1)))
        change[halves == half] = (gains[-1] - gains[peak])[halves == half]
    return change


def _gain(evaluation: Evaluation, name: str, score: Score) -> np.ndarray:
    """``[n]`` per-prompt paired differences from the baseline, NaN where missing."""
    difference = evaluation.scores.matrix(name, *score) - evaluation.scores.matrix(evaluation.baseline, *score)
    counts = (~np.isnan(difference)).sum(axis=1)
    return np.where(counts > 0, np.nansum(difference, axis=1) / np.maximum(counts, 1), np.nan)


def _suggest(steps: Sequence[int], gains: Sequence[Estimate], refused: Mapping[int, str]) -> int | None:
    """Highest gain among the allowed steps that gain anything; the earlier of equal ones."""
    allowed = [(gain.value, -step) for step, gain in zip(steps, gains, strict=True) if step not in refused]
    best = max(allowed, default=(0.0, 0))
    return -best[1] if best[0] > 0 else None
