"""How often the intervals of a win rate hold the truth, by simulation.

    python benchmarks/win_rate_coverage.py --trials 2000

Every trial draws the outcomes of n prompts from a known win rate, with or without ties, with one or four seeds per
prompt, and asks whether the interval of ``statistics.win_rate`` holds that rate. Prompts differ in how hard they are:
with several seeds the chance of a win varies from prompt to prompt, so that seeds of one prompt are not independent.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import numpy as np

from t2i_align.evaluation import statistics

SIZES, RATES, TIES, SEEDS = (100, 500), (0.5, 0.6, 0.75, 0.9), (0.0, 0.2), (1, 4)


@dataclass(frozen=True)
class Case:
    """Attributes:
    prompts: n.
    rate: the true win rate, ties as half.
    ties: share of pairs that tie.
    seeds: pictures per prompt.
    """

    prompts: int
    rate: float
    ties: float = 0.0
    seeds: int = 1


def outcomes(case: Case, generator: np.random.Generator) -> np.ndarray:
    """``[n, k]`` of 1, 0.5 and 0 with mean ``case.rate``; a prompt's own chance of a win is spread around it."""
    win = (case.rate - case.ties / 2) / (1 - case.ties)  # among the pairs that do not tie
    spread = min(win, 1 - win) if case.seeds > 1 else 0.0
    chance = win + spread * generator.uniform(-1, 1, size=(case.prompts, 1))
    shape = (case.prompts, case.seeds)
    decided = (generator.random(shape) < chance).astype(float)
    return np.where(generator.random(shape) < case.ties, 0.5, decided)


def coverage(case: Case, trials: int, replicates: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Share of trials whose 95 % interval holds the true rate, and the mean width of the intervals."""
    generator = np.random.default_rng(
        [seed, case.prompts, round(1000 * case.rate), round(1000 * case.ties), case.seeds]
    )
    held, widths = 0, 0.0
    for trial in range(trials):
        scores = outcomes(case, generator)
        estimate = statistics.win_rate(scores, np.full_like(scores, 0.5), replicates=replicates, seed=trial)
        held += not estimate.excludes(case.rate)
        widths += estimate.high - estimate.low
    return held / trials, widths / trials


def main() -> None:
    """Print one line per case as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    print("| prompts | true win rate | ties | seeds per prompt | coverage | mean width, points |")
    print("| --- | --- | --- | --- | --- | --- |")
    for values in itertools.product(SIZES, RATES, TIES, SEEDS):
        case = Case(*values)
        if case.ties / 2 < 1 - case.rate:  # ties alone would exceed what is left to the baseline
            held, width = coverage(case, trials)
            print(
                f"| {case.prompts} | {case.rate} | {case.ties} | {case.seeds} | {held:.1%} | {100 * width:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
