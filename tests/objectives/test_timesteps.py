"""Timesteps: addressed draws, distributions, and weights by noise level."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.objectives import PairErrors, build, snr_table
from t2i_align.objectives.timesteps import TIMESTEPS, Binned, Geometric, Listed, Range, Timestep, Uniform

IDS = [f"pair-{index}" for index in range(2000)]


@pytest.mark.parametrize("choice", TIMESTEPS.values())
def test_a_draw_depends_on_its_address_alone(choice: type[Timestep]) -> None:
    timestep = choice(probabilities=(1.0, 1.0, 2.0)) if choice is Binned else choice()
    drawn = timestep.sample(IDS, 3, 0, seed=7)
    assert drawn.dtype == torch.long and drawn.shape == (2000,)
    assert drawn.min() >= 0 and drawn.max() < 1000
    assert torch.equal(timestep.sample(IDS[::-1], 3, 0, seed=7).flip(0), drawn)
    assert torch.equal(timestep.sample(IDS[500:510], [3] * 10, 0, seed=7), drawn[500:510])
    for other in (timestep.sample(IDS, 4, 0, 7), timestep.sample(IDS, 3, 1, 7), timestep.sample(IDS, 3, 0, 8)):
        assert not torch.equal(other, drawn)


def test_an_epoch_per_item() -> None:
    mixed = Uniform().sample(IDS[:4], [0, 1, 0, 1], 0, seed=1)
    assert mixed[0] == Uniform().sample(IDS[:1], 0, 0, seed=1) and mixed[1] == Uniform().sample(IDS[1:2], 1, 0, seed=1)


def test_uniform_is_uniform() -> None:
    drawn = Uniform().sample(IDS, 0, 0, seed=0).double()
    assert abs(drawn.mean() - 499.5) < 5 * 288.7 / math.sqrt(2000)
    assert Uniform().pick(0.0, 1000) == 0 and Uniform().pick(1 - 2**-53, 1000) == 999


def test_range_and_list() -> None:
    drawn = Range(low=100, high=103).sample(IDS, 0, 0, seed=0)
    assert set(drawn.tolist()) == {100, 101, 102}
    drawn = Listed(timesteps=(249, 499, 999), probabilities=(1, 0, 3)).sample(IDS, 0, 0, seed=0)
    assert set(drawn.tolist()) == {249, 999}
    assert abs((drawn == 999).double().mean() - 0.75) < 0.05


def test_binned_and_geometric_follow_their_weights() -> None:
    drawn = Binned(probabilities=(1, 3, 0, 0)).sample(IDS, 0, 0, seed=0)
    assert drawn.max() < 500 and abs((drawn >= 250).double().mean() - 0.75) < 0.05
    drawn = Geometric(gamma=0.5, bins=2).sample(IDS, 0, 0, seed=0)
    assert abs((drawn >= 500).double().mean() - 2 / 3) < 0.05
    flat = Geometric(gamma=1.0, bins=10)
    assert [flat.pick(u, 1000) for u in (0.0, 0.5, 0.9999)] == [0, 500, 999]


@pytest.mark.parametrize("timestep", [Range(low=0, high=1000), Listed(), Binned(probabilities=(1.0,) * 101)])
def test_a_short_schedule_is_refused(timestep: Timestep) -> None:
    with pytest.raises(UserError, match="more timesteps than the model's schedule has"):
        timestep.sample(["a"], 0, 0, seed=0, num_timesteps=100)


def test_min_snr_by_hand() -> None:
    """SNR 8, 2 and 0.5 at gamma 5."""
    record = PairErrors(torch.ones(3), timesteps=torch.tensor([0, 1, 2]), snr=torch.tensor([8.0, 2.0, 0.5]))
    weights = build("sft", timestep={"weighting": "min_snr"}).timestep.weights
    expected = {
        "epsilon": [5 / 8, 1, 1],
        "v_prediction": [5 / 9, 2 / 3, 1 / 3],
        "sample": [5, 2, 0.5],
        "flow_prediction": [5 / (1 + math.sqrt(8)) ** 2, 2 / (1 + math.sqrt(2)) ** 2, 0.5 / (1 + math.sqrt(0.5)) ** 2],
    }
    for prediction_type, values in expected.items():
        found = weights(replace(record, prediction_type=prediction_type))
        assert found.tolist() == pytest.approx(values)


def test_min_snr_at_the_ends_of_a_schedule() -> None:
    snr = torch.tensor([math.inf, 0.0])
    for prediction_type, ends in {"epsilon": [0, 1], "v_prediction": [0, 0], "sample": [5, 0]}.items():
        record = PairErrors(torch.ones(2), timesteps=torch.tensor([0, 1]), snr=snr, prediction_type=prediction_type)
        assert build("sft", timestep={"weighting": "min_snr"})(record).loss.tolist() == ends
    with pytest.raises(UserError, match="not defined for this error metric"):
        build("sft", timestep={"weighting": "min_snr"})(replace(record, prediction_type="features"))


def test_noise_level_refuses_a_schedule_without_signal() -> None:
    objective = build("dpo", timestep={"weighting": "noise_level"})
    objective.check_model(2, torch.tensor([2.0, 1.0]))
    with pytest.raises(UserError, match="positive SNR"):
        objective.check_model(2, torch.tensor([2.0, 0.0]))
    with pytest.raises(UserError, match="more timesteps"):
        build("dpo", timestep={"name": "range", "high": 1000}).check_model(10, torch.ones(10))


def test_snr_table() -> None:
    assert snr_table(torch.tensor([0.8, 0.5])).tolist() == pytest.approx([4.0, 1.0])


def test_weights_need_their_inputs() -> None:
    with pytest.raises(UserError, match="needs snr, timesteps"):
        build("sft", timestep={"weighting": "min_snr"})(PairErrors(torch.ones(2)))
