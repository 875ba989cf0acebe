"""Samplers by name: known methods on the checkpoint's own noise schedule."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler

from t2i_align.backbones.samplers import ALIASES, SAMPLERS, make_sampler, sampler_name
from t2i_align.errors import UserError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++", "dpmpp_2m"),
        ("Euler a", "euler_a"),
        ("k-euler-ancestral", "euler_a"),
        ("PLMS", "pndm"),
        *((name, name) for name in SAMPLERS),
    ],
)
def test_names_as_people_write_them(word: str, name: str) -> None:
    assert sampler_name(word) == name


def test_aliases_lead_to_samplers() -> None:
    assert set(ALIASES.values()) <= set(SAMPLERS) and not set(ALIASES) & set(SAMPLERS)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="sampler is not known") as caught:
        sampler_name("unipcc")
    assert "did you mean unipc?" in caught.value.fix and "dpmpp_2m_karras" in caught.value.fix


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_checkpoints_schedule_is_carried_over(name: str) -> None:
    own = PNDMScheduler(**SD, num_train_timesteps=500, prediction_type="v_prediction", timestep_spacing="trailing")
    made = make_sampler(name, own)
    assert type(made).__name__ == SAMPLERS[name].kind
    assert torch.equal(made.betas, own.betas) and made.config.num_train_timesteps == 500
    assert made.config.prediction_type == "v_prediction" and made.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", ["heun", "dpm2"])
def test_betas_left_to_the_checkpoints_class_are_carried_over_too(name: str) -> None:
    """0.0001 to 0.02 of DDIM; these two classes have 0.00085 to 0.012 by default."""
    own = DDIMScheduler.from_config({"prediction_type": "epsilon"})
    made = make_sampler(name, own)
    assert torch.equal(made.betas, torch.linspace(0.0001, 0.02, 1000))
    plain = getattr(diffusers, SAMPLERS[name].kind).from_config(own.config)
    assert not torch.equal(plain.betas, own.betas)  # the reason why


def test_names_say_how_the_noise_levels_lie() -> None:
    """Between its ends, a and b, the middle one of three noise levels of Karras is ((a^(1/7) + b^(1/7)) / 2)^7."""
    own = EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    made = make_sampler("dpmpp_2m_karras", own)
    made.set_timesteps(3)
    a, middle, b = made.sigmas[:3].tolist()
    assert middle == pytest.approx(((a ** (1 / 7) + b ** (1 / 7)) / 2) ** 7, rel=1e-4)
    assert not make_sampler("dpmpp_2m", own).config.use_karras_sigmas


def test_latents_are_not_clipped_and_pndm_takes_one_pass_per_step() -> None:
    own = EulerDiscreteScheduler(**SD)  # whose files know nothing of clip_sample, which DDIM has on by default
    assert not make_sampler("ddim", own).config.clip_sample and not make_sampler("ddpm", own).config.clip_sample
    assert make_sampler("pndm", own).config.skip_prk_steps


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_prediction_types_are_those_the_steps_are_written_for(name: str, prediction: str) -> None:
    own = DDIMScheduler(**SD, prediction_type=prediction)
    if prediction not in SAMPLERS[name].predictions:
        with pytest.raises(UserError, match=f"{name} cannot take") as caught:
            make_sampler(name, own)
        assert caught.value.found == "DDIMScheduler: prediction type sample"
        return
    made = make_sampler(name, own)
    made.set_timesteps(3)
    sample = torch.ones(1, 4, 2, 2) * made.init_noise_sigma
    for timestep in made.timesteps:
        answer = made.scale_model_input(sample, timestep) * 0.5
        sample = made.step(answer, timestep, sample).prev_sample
    assert sample.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_is_taken_or_refused(name: str) -> None:
    own = DDIMScheduler(**SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if name in ("heun", "dpm2", "dpm2_a", "deis", "lms", "lms_karras", "pndm"):
        with pytest.raises(UserError, match="cannot take this checkpoint's schedule") as caught:
            make_sampler(name, own)
        assert "zero terminal SNR" in caught.value.found
    else:
        assert make_sampler(name, own).alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize(
    ("own", "found"),
    [
        (EDMEulerScheduler(), "EDMEulerScheduler: it has no betas"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "flow_prediction"),
    ],
)
def test_other_kinds_of_noise_are_refused(own: object, found: str) -> None:
    with pytest.raises(UserError, match="cannot take") as caught:
        make_sampler("ddim", own)
    assert found in caught.value.found


def test_betas_of_a_kind_the_sampler_does_not_know_are_refused() -> None:
    with pytest.raises(UserError, match="cannot take") as caught:
        make_sampler("euler", diffusers.DDPMScheduler(beta_schedule="sigmoid"))
    assert "sigmoid" in caught.value.found
