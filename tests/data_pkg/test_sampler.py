"""The order is arithmetic: no state, no dependence on the number of processes."""

from __future__ import annotations

from collections import Counter

import pytest

from t2i_align.data.sampler import permutation, step_indices


def step_pairs(step: int, world_size: int, batch: int, accumulation: int, n: int, seed: int = 0) -> list[tuple]:
    """All (index, epoch) of an optimiser step, in the order micro-step, process."""
    pairs = []
    for micro_step in range(accumulation):
        for rank in range(world_size):
            indices, epochs = step_indices(step, micro_step, rank, world_size, batch, accumulation, n, seed)
            pairs += list(zip(indices, epochs, strict=True))
    return pairs


@pytest.mark.parametrize("step", [0, 1, 7])
def test_same_pairs_however_a_step_is_divided(step: int) -> None:
    whole = step_pairs(step, 1, 12, 1, n=50)
    for world_size, batch, accumulation in ((2, 6, 1), (3, 4, 1), (1, 4, 3), (2, 2, 3), (4, 3, 1), (2, 3, 2)):
        assert step_pairs(step, world_size, batch, accumulation, n=50) == whole


def test_two_processes_are_one_with_twice_the_batch() -> None:
    one, _ = step_indices(3, 1, 0, 1, 8, 2, 100, seed=5)
    halves = [step_indices(3, 1, rank, 2, 4, 2, 100, seed=5)[0] for rank in (0, 1)]
    assert halves[0] + halves[1] == one


def test_every_pair_once_per_epoch_and_none_dropped() -> None:
    n, batch = 10, 4
    seen = [pair for step in range(15) for pair in step_pairs(step, 1, batch, 1, n)]  # 60 places, 6 epochs
    assert Counter(epoch for _, epoch in seen) == dict.fromkeys(range(6), 10)
    for epoch in range(6):
        assert sorted(index for index, e in seen if e == epoch) == list(range(n))


def test_a_batch_may_straddle_epochs() -> None:
    _, epochs = step_indices(2, 0, 0, 1, 4, 1, 10, seed=0)
    assert epochs == [0, 0, 1, 1]


def test_a_batch_larger_than_the_data_wraps() -> None:
    indices, epochs = step_indices(0, 0, 0, 1, 7, 1, 3, seed=0)
    assert epochs == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]


def test_epochs_and_seeds_differ() -> None:
    orders = [permutation(0, 100, 0), permutation(1, 100, 0), permutation(0, 100, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert permutation(0, 100, 0).tolist() == orders[0].tolist()
