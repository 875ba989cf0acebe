"""Noising and targets against hand computations."""

from __future__ import annotations

import pytest
import torch

from t2i_align.backbones.schedule import NoiseSchedule
from t2i_align.errors import UserError

LINEAR = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 4}


def test_add_noise_and_targets_by_hand() -> None:
    # betas 0.1 .. 0.4 give A = 0.9, 0.9 * 0.8, 0.72 * 0.7, 0.504 * 0.6
    config = {**LINEAR, "beta_start": 0.1, "beta_end": 0.4, "prediction_type": "v_prediction"}
    schedule = NoiseSchedule(config)
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504, 0.3024]))
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)
    t = torch.tensor([1])
    assert schedule.add_noise(latents, noise, t).item() == pytest.approx(2 * 0.72**0.5 - 0.28**0.5, rel=1e-6)
    assert schedule.target(latents, noise, t).item() == pytest.approx(-(0.72**0.5) - 2 * 0.28**0.5, rel=1e-6)
    assert NoiseSchedule({**config, "prediction_type": "epsilon"}).target(latents, noise, t).item() == -1
    assert NoiseSchedule({**config, "prediction_type": "sample"}).target(latents, noise, t).item() == 2


def test_half_precision_latents_are_noised_in_float32() -> None:
    schedule = NoiseSchedule(LINEAR)
    half = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    assert schedule.add_noise(half, half, torch.tensor([0])).dtype == torch.float32
    assert schedule.target(half, half, torch.tensor([0])).dtype == torch.float32


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    config = {**LINEAR, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    schedule = NoiseSchedule(config)
    assert schedule.alphas_cumprod[-1] == 0
    assert NoiseSchedule(LINEAR).alphas_cumprod[-1] > 0
    latents, noise, last = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([3, 3])
    torch.testing.assert_close(schedule.add_noise(latents, noise, last), noise)
    torch.testing.assert_close(schedule.target(latents, noise, last), -latents)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
        {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"},
        {**LINEAR, "prediction_type": "flow_prediction"},
        {**LINEAR, "_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"},
        {**LINEAR, "_class_name": "EDMDPMSolverMultistepScheduler", "trained_betas": None},
        {**LINEAR, "_class_name": "FlowMatchEulerDiscreteScheduler"},
        {**LINEAR, "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        {**LINEAR, "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
    ],
)
def test_other_processes_are_refused(config: dict) -> None:
    with pytest.raises(UserError, match=r"prediction|beta schedule"):
        NoiseSchedule(config)


@pytest.mark.parametrize("name", ["PNDMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "SomebodysOwn"])
def test_any_scheduler_of_betas_is_read(name: str) -> None:
    assert torch.equal(
        NoiseSchedule({**LINEAR, "_class_name": name}).alphas_cumprod, NoiseSchedule(LINEAR).alphas_cumprod
    )


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"beta_start": 0.0, "beta_end": 0.1}, "without any noise"),
        ({"beta_start": 0.5, "beta_end": 1.5}, "do not fall"),
        ({"trained_betas": [0.1, float("nan"), 0.2, 0.3]}, "do not fall"),
        ({"trained_betas": [0.1, 0.2]}, "2 betas for 4 timesteps"),
        ({"beta_schedule": "wavy"}, "wavy"),
    ],
)
def test_betas_that_are_no_schedule(config: dict, found: str) -> None:
    with pytest.raises(UserError, match=f"noise schedule cannot be computed[\\s\\S]*{found}"):
        NoiseSchedule({**LINEAR, **config})


def test_timesteps_stay_integers() -> None:
    with pytest.raises(ValueError, match="integers"):
        NoiseSchedule(LINEAR).add_noise(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1.0]))
