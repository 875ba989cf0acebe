"""Gaussian transitions: the published code's numbers, the formula's invariants, the scheduler's grid."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from t2i_align.errors import UserError
from t2i_align.stepwise.grid import step_grid
from t2i_align.stepwise.transition import DdimKernel

from . import golden

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
ALPHAS = DDIMScheduler.from_config(SD).alphas_cumprod


@pytest.mark.parametrize("case", golden.cases("ddim_logprob"), ids=golden.ids)
def test_published_densities(case):
    given, params = golden.inputs(case), case["params"]
    kernel = DdimKernel(given["alphas_cumprod"], params["prediction_type"], params["eta"])
    output = given["model_output"].requires_grad_()
    children = golden.expected(case, "prev_timestep")
    step = kernel.transition(output, given["sample"], given["timesteps"], children)
    density = step.log_density(given["next_sample"])
    (gradient,) = torch.autograd.grad(density.sum(), output)
    # Stored arrays are float32; numbers are float64, computed with a few float32 constants in the official
    # code.
    for name, value, tolerance in (
        ("mean", step.mean, 1e-5 if params["prediction_type"] == "sample" else 5e-7),
        ("std", step.sigma, 1e-7),
        ("log_prob", density, 1e-7),
        ("grad_model_output", gradient, 1e-7),
    ):
        wanted = golden.expected(case, name).double()
        assert (value - wanted).abs().max() <= tolerance * wanted.abs().max(), name


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_float32_is_enough(prediction_type):
    torch.manual_seed(0)
    output, latents = torch.randn(2, 3, 4, 8, 8)
    parents, children = torch.tensor([951, 401, 51]), torch.tensor([901, 351, 1])
    kernel = DdimKernel(ALPHAS, prediction_type)
    single = kernel.transition(output, latents, parents, children)
    double = kernel.transition(output.double(), latents.double(), parents, children)
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-6, atol=1e-6)


def test_density_of_its_own_sample():
    torch.manual_seed(0)
    output, latents, noise = torch.randn(3, 5, 4, 8, 8, dtype=torch.float64)
    parents = torch.tensor([951, 701, 451, 51, 1])
    step = DdimKernel(ALPHAS, "epsilon").transition(output, latents, parents, (parents - 50).clamp(min=0))
    wanted = -noise.square().flatten(1).mean(1) / 2 - step.sigma.log() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(step.log_density(step.sample(noise)), wanted)


def test_the_mean_agrees_with_diffusers():
    torch.manual_seed(0)
    scheduler = DDIMScheduler.from_config(SD, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    output, latents, noise = torch.randn(3, 1, 4, 8, 8)
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        scheduler.register_to_config(prediction_type=prediction_type)
        kernel = DdimKernel(ALPHAS, prediction_type, eta=0.7)
        theirs = scheduler.step(output, 601, latents, eta=0.7, variance_noise=noise).prev_sample
        ours = kernel.transition(output, latents, torch.tensor([601]), torch.tensor([551])).sample(noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_candidates_share_one_mean():
    step = DdimKernel(ALPHAS, "epsilon").transition(
        torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.tensor([951, 51]), torch.tensor([901, 1])
    )
    noise = torch.randn(4, 2, 1, 2, 2)
    samples = step.sample(noise)
    assert samples.shape == noise.shape
    torch.testing.assert_close(samples - step.mean, noise * step.sigma.float().reshape(2, 1, 1, 1))


def test_the_grid_is_the_schedulers():
    grid = step_grid(SD, 20)
    assert grid.parents == tuple(range(951, 0, -50))
    assert grid.children == (*range(901, 0, -50), 0)
    assert step_grid(SD, 10).parents == tuple(range(901, 0, -100))
    trailing = step_grid({**SD, "timestep_spacing": "trailing"}, 4)
    assert (trailing.parents, trailing.children) == ((999, 749, 499, 249), (749, 499, 249, 0))


def test_the_published_sigmas():
    parents, children = step_grid(SD, 20).tensors()
    sigma = DdimKernel(ALPHAS, "epsilon").sigma(parents, children)
    table = {951: 0.6444, 851: 0.6029, 451: 0.4016, 101: 0.1673, 51: 0.0406, 1: 0.0206}
    for timestep, value in table.items():
        assert sigma[parents == timestep].item() == pytest.approx(value, abs=5e-5)


def test_the_final_alpha_is_a_choice():
    to_one = {**SD, "set_alpha_to_one": True}
    grid = step_grid(to_one, 20, "scheduler")
    assert grid.children[-1] == -1 and grid.final_alpha == 1.0
    kernel = DdimKernel(ALPHAS, "epsilon", final_alpha=grid.final_alpha)
    assert kernel.sigma(*grid.tensors())[-1] == 0.0  # deterministic
    output, latents = torch.randn(2, 1, 4, 2, 2)
    last = kernel.transition(output, latents, torch.tensor([1]), torch.tensor([-1]))
    torch.testing.assert_close(last.mean, kernel.clean(output, latents, torch.tensor([1])))
    kept = step_grid({**SD, "set_alpha_to_one": False}, 20, "scheduler")
    assert kept.final_alpha == pytest.approx(ALPHAS[0].item())


def test_zero_terminal_snr_works_with_v_prediction_only():
    scheduler = DDIMScheduler.from_config({**SD, "rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match="zero-terminal-SNR"):
        DdimKernel(torch.cat([scheduler.alphas_cumprod[:-1], torch.zeros(1)]), "epsilon")
    alphas = torch.cat([scheduler.alphas_cumprod[:-1], torch.zeros(1)])
    kernel = DdimKernel(alphas, "v_prediction")
    velocity, latents = torch.randn(2, 1, 4, 2, 2)
    step = kernel.transition(velocity, latents, torch.tensor([999]), torch.tensor([949]))
    torch.testing.assert_close(step.mean, -velocity * alphas[949].sqrt())  # x0 = -v, and no noise is carried over
    assert torch.isfinite(step.log_density(step.sample(torch.randn(1, 4, 2, 2)))).all()


def test_clipping_schedulers_are_refused():
    with pytest.raises(UserError, match="clip"):
        step_grid({**SD, "clip_sample": True}, 20)
    with pytest.raises(UserError, match="training timesteps"):
        step_grid(SD, 1001)
