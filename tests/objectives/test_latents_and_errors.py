"""The slots that act on a backbone: noise, targets and error metrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_align.errors import UserError
from t2i_align.objectives.error_metrics import ERRORS, Denoised, EpsilonError, VelocityError, mean_squared_error
from t2i_align.objectives.latents import IndependentNoise, LatentRequest, Latents, SharedNoise

SIGNAL = torch.tensor([0.9, 0.5, 0.1])  # cumulative alpha of three timesteps


class Backbone:
    """Noise prediction on a three-step schedule."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal = SIGNAL[timesteps].reshape(-1, 1, 1, 1)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


def request(ids: list[str], images: int = 2, **more: int) -> LatentRequest:
    latents = torch.arange(images * len(ids), dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 4, 8, 8)
    timesteps = torch.tensor([index % 3 for index in range(len(ids))])
    return LatentRequest(latents, timesteps, ids, [0] * len(ids), more.get("draw", 0), more.get("seed", 0))


def test_shared_noise_is_one_per_item_and_follows_the_item() -> None:
    noisy = SharedNoise()(Backbone(), request(["a", "b", "c"]))
    assert noisy.noisy.shape == (6, 4, 8, 8) and noisy.timesteps.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(noisy.target[:3], noisy.target[3:])
    assert not torch.equal(noisy.target[0], noisy.target[1])
    again = SharedNoise()(Backbone(), request(["c", "a"]))
    assert torch.equal(again.target[0], noisy.target[2]) and torch.equal(again.target[1], noisy.target[0])
    winner = SIGNAL[0].sqrt() * 0 + (1 - SIGNAL[0]).sqrt() * noisy.target[0]
    assert torch.allclose(noisy.noisy[0], winner)


def test_independent_noise_is_one_per_image() -> None:
    noisy = IndependentNoise()(Backbone(), request(["a", "b"], images=3))
    flat = noisy.target.flatten(1)
    assert len({tuple(row.tolist()) for row in flat}) == 6
    assert noisy.timesteps.tolist() == [0, 1] * 3
    assert torch.equal(IndependentNoise()(Backbone(), request(["b", "a"], images=3)).target[1], noisy.target[0])


@pytest.mark.parametrize("latents", [SharedNoise(), IndependentNoise()])
def test_seed_and_draw_change_the_noise(latents: Latents) -> None:
    base = latents(Backbone(), request(["a"])).target
    assert not torch.equal(latents(Backbone(), request(["a"], draw=1)).target, base)
    assert not torch.equal(latents(Backbone(), request(["a"], seed=1)).target, base)
    assert torch.equal(latents(Backbone(), request(["a"])).target, base)


def test_mean_squared_error_reduces_everything_but_the_batch() -> None:
    prediction, target = torch.zeros(2, 4, 3, 8, 8), torch.ones(2, 4, 3, 8, 8)
    target[1] *= 3
    assert mean_squared_error(prediction, target).tolist() == [1.0, 9.0]
    with pytest.raises(ValueError, match="must match"):
        mean_squared_error(prediction, target[:, :2])


def test_half_precision_is_widened_before_the_subtraction() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 4, 16, 16, generator=generator).bfloat16() for _ in range(2))
    error = mean_squared_error(prediction, target)
    assert error.dtype == torch.float32
    assert torch.allclose(error.double(), mean_squared_error(prediction.double(), target.double()), rtol=1e-6)


def test_a_mask_weighs_elements() -> None:
    prediction, target = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1.0, 2.0, 5.0]]]])
    error = mean_squared_error(prediction, target, mask=torch.tensor([3.0, 1.0, 0.0]))
    assert error.tolist() == pytest.approx([(3 * 1 + 1 * 4) / 4])


def test_epsilon_and_velocity_errors_convert_into_each_other() -> None:
    """For one x_t, the same guess of the clean latents has one epsilon error and one velocity error."""
    generator = torch.Generator().manual_seed(0)
    clean, guess, noise = (torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    timesteps = torch.arange(3)
    signal = SIGNAL.double().reshape(-1, 1, 1, 1)
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    epsilon = (noisy - signal.sqrt() * guess) / (1 - signal).sqrt()
    velocity = signal.sqrt() * epsilon - (1 - signal).sqrt() * guess
    snr = SIGNAL.double() / (1 - SIGNAL.double())
    as_epsilon = Denoised(epsilon, noise, timesteps, "epsilon", snr)
    true_velocity = signal.sqrt() * noise - (1 - signal).sqrt() * clean
    as_velocity = Denoised(velocity, true_velocity, timesteps, "v_prediction", snr)
    for metric in (EpsilonError(), VelocityError()):
        assert torch.allclose(metric(as_epsilon), metric(as_velocity), rtol=1e-9)
    assert torch.equal(EpsilonError()(as_epsilon), mean_squared_error(epsilon, noise))
    assert EpsilonError().measured_in("v_prediction") == "epsilon"
    assert ERRORS["prediction"]().measured_in("v_prediction") == "v_prediction"


def test_conversion_refuses_what_it_does_not_know() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(UserError, match="converts only epsilon and v_prediction"):
        EpsilonError()(Denoised(ones, ones, torch.zeros(1, dtype=torch.long), "flow_prediction", torch.ones(1)))


def test_at_a_timestep_without_signal_by_hand() -> None:
    """v = -x0 and x_t = n there: a velocity off by 0.5 is a clean picture off by 0.5 and says nothing of the noise."""
    noise, clean = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 2.0)
    given = {"timesteps": torch.tensor([1]), "snr": torch.tensor([4.0, 0.0]), "noisy": noise}
    velocity = Denoised(prediction=-clean + 0.5, target=-clean, prediction_type="v_prediction", **given)
    sample = Denoised(prediction=clean + 0.5, target=clean, prediction_type="sample", **given)
    squared = {"name": "clean", "huber": 0}
    assert ERRORS["clean"](**squared)(velocity).item() == pytest.approx(0.25)
    assert ERRORS["clean"](**squared)(sample).item() == pytest.approx(0.25)
    assert VelocityError()(velocity).item() == pytest.approx(0.25)
    assert EpsilonError()(velocity).item() == 0.0
