"""The simulation behind the documented coverage, in small, and that it notices intervals that are too narrow."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from t2i_align.evaluation import statistics


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "benchmarks" / "win_rate_coverage.py"
    spec = importlib.util.spec_from_file_location("win_rate_coverage", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("prompts", "rate", "ties", "seeds"),
    [(20, 0.75, 0.2, 1), (20, 0.5, 0.0, 4), (100, 0.6, 0.2, 1), (500, 0.75, 0.0, 4)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(simulation, prompts, rate, ties, seeds):
    held, width = simulation.coverage(simulation.Case(prompts, rate, ties, seeds), trials=400, replicates=500)
    assert 0.92 - (0.02 if prompts < 100 else 0) <= held <= 0.98  # 400 trials: two standard errors are 2.2 points
    assert width < (0.2 if prompts >= 100 else 0.5)


def test_fewer_prompts_than_a_verdict_needs_would_be_too_sure(simulation):
    held, _ = simulation.coverage(simulation.Case(5, 0.5, 0.0, 4), trials=400, replicates=500)
    assert held < 0.9


def test_outcomes_have_the_rate_that_is_claimed(simulation):
    drawn = simulation.outcomes(simulation.Case(20_000, 0.7, 0.3, 2), np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0.7, abs=0.01) and (drawn == 0.5).mean() == pytest.approx(0.3, abs=0.01)


def test_seeds_taken_for_prompts_would_be_caught(simulation, monkeypatch):
    """Resampling pictures instead of prompts makes intervals too narrow; the simulation must say so."""
    monkeypatch.setattr(statistics, "per_prompt", lambda values: np.asarray(values, dtype=float).ravel())
    held, _ = simulation.coverage(simulation.Case(100, 0.5, 0.0, 4), trials=300, replicates=300)
    assert held < 0.9
