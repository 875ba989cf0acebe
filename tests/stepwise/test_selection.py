"""Selection, thresholds and continuation."""

import math

import pytest
import torch

from t2i_align.stepwise.brancher import RolloutAddress, branch, pick
from t2i_align.stepwise.continuation import CONTINUATIONS
from t2i_align.stepwise.grid import step_grid
from t2i_align.stepwise.selector import select, thresholds
from t2i_align.stepwise.transition import DdimKernel, GaussianTransition

from . import golden
from .test_transition import ALPHAS, SD


def grid_thresholds(schedule, low, high, steps=20):
    parents, children = step_grid(SD, steps).tensors()
    sigmas = DdimKernel(ALPHAS, "epsilon").sigma(parents, children)
    return dict(zip(parents.tolist(), thresholds(schedule, low, high, parents, sigmas).tolist(), strict=True))


@pytest.mark.parametrize("case", golden.cases("select"), ids=golden.ids)
def test_published_selections(case):
    given, params = golden.inputs(case), case["params"]
    if params["dynamic"] is None:
        table = grid_thresholds("constant", params["threshold"], None)
    else:
        table = grid_thresholds(params["dynamic"], params["threshold_min"], params["threshold_max"])
    limit = torch.tensor([table[t] for t in given["timesteps"].tolist()])
    ours = select(given["scores"], limit)
    # The released tables are rounded to 4 decimals: with both ends of the range off, 0.15 * 1e-4 / 0.4 at
    # most.
    torch.testing.assert_close(limit, golden.expected(case, "threshold").float(), rtol=0, atol=4e-5)
    torch.testing.assert_close(ours.gap, golden.expected(case, "gap").float(), rtol=0, atol=1e-6)
    assert ours.winner.tolist() == golden.expected(case, "winner_index").tolist()
    assert ours.loser.tolist() == golden.expected(case, "loser_index").tolist()
    assert ours.accepted.tolist() == golden.expected(case, "valid").bool().tolist()


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_thresholds_follow_the_schedule_at_any_step_count(steps):
    table = grid_thresholds("sigma", 0.35, 0.5, steps)
    values = [table[t] for t in sorted(table)]
    assert values[0] == pytest.approx(0.35) and values[-1] == pytest.approx(0.5)
    assert values == sorted(values)


def test_the_gap_is_a_softmax_over_the_two_extremes():
    selection = select(torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]]), 0.0)
    assert selection.winner[0] == 1 and selection.loser[0] == 0
    first = math.exp(2) / (math.exp(2) + 1)
    assert selection.gap[0].item() == pytest.approx(first - (1 - first))
    assert selection.accepted.tolist() == [True, False]  # an exact tie is never a pair
    assert not select(torch.tensor([[50.0], [0.0]]), 1.0).accepted.any()


def test_more_is_accepted_under_a_lower_threshold():
    scores = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    counts = [int(select(scores, limit).accepted.sum()) for limit in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 500 and counts[-1] == 0


def test_branching_is_addressed():
    step = GaussianTransition(torch.zeros(2, 1, 4, 4), torch.tensor([1.0, 2.0], dtype=torch.float64))
    both = branch(step, 3, RolloutAddress(0, 5, [7, 8]), step=2)
    alone = branch(GaussianTransition(step.mean[1:], step.sigma[1:]), 3, RolloutAddress(0, 5, [8]), step=2)
    assert both.shape == (3, 2, 1, 4, 4)
    assert torch.equal(both[:, 1:], alone)  # other rows, ranks and batch sizes play no part
    other = branch(step, 3, RolloutAddress(0, 6, [7, 8]), step=2)
    assert not torch.equal(both, other)
    assert len({tuple(candidate.flatten().tolist()) for candidate in both[:, 0]}) == 3


def test_pick_takes_one_candidate_of_every_state():
    candidates = torch.arange(6.0).reshape(3, 2)
    assert pick(candidates, torch.tensor([2, 0])).tolist() == [4.0, 1.0]


def test_random_continuation_is_uniform_and_ignores_the_scores():
    address = RolloutAddress(0, 0, list(range(2000)))
    scores = torch.zeros(4, 2000)
    scores[0] = 1.0
    chosen = CONTINUATIONS["random"](select(scores, 0.0), address, 3, 4)
    counts = torch.bincount(chosen, minlength=4).double()
    assert ((counts - 500).square() / 500).sum() < 16.3  # chi-square with 3 degrees of freedom, p = 0.001
    assert (CONTINUATIONS["winner"](select(scores, 0.0), address, 3, 4) == 0).all()
    assert (CONTINUATIONS["loser"](select(scores, 0.0), address, 3, 4) != 0).all()
