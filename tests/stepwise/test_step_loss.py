"""The step-level loss: the published code's numbers, the shared-parent identity, the ratio clamp."""

import math

import pytest
import torch

from t2i_align import objectives
from t2i_align.errors import UserError
from t2i_align.objectives import PairErrors
from t2i_align.stepwise.step_loss import StepErrors, check_objective, clip_ratios, separate_errors, shared_errors
from t2i_align.stepwise.transition import DdimKernel

from . import golden


def guided(output: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1.0:
        return output
    unconditional, conditional = output.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def transitions(case):
    given, params = golden.inputs(case), case["params"]
    policy_out = given["policy_out"].requires_grad_()
    kernel = DdimKernel(given["alphas_cumprod"], "epsilon", params["eta"])
    children = (given["timesteps"] - 1000 // params["num_inference_steps"]).clamp(min=0)

    def step(output):
        mixed = guided(output, params["guidance_scale"] if params["cfg"] else 1.0)
        return kernel.transition(mixed, given["latents"], given["timesteps"], children)

    return step(policy_out), step(given["ref_out"]), given, policy_out


def loss_of(errors: StepErrors, beta: float) -> objectives.ObjectiveOutput:
    record = PairErrors(errors.policy_winner, errors.policy_loser, errors.reference_winner, errors.reference_loser)
    return objectives.build("dpo", beta=beta)(record)


def close(value, case, name, tolerance=1e-7):
    wanted = golden.expected(case, name).double()
    assert (value.detach() - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("case", golden.cases("step_loss"), ids=golden.ids)
def test_published_losses(case):
    policy, reference, given, policy_out = transitions(case)
    for name, step, successor in (
        ("log_prob_w", policy, "next_w"),
        ("log_prob_l", policy, "next_l"),
        ("ref_log_prob_w", reference, "next_w"),
        ("ref_log_prob_l", reference, "next_l"),
    ):
        close(step.log_density(given[successor]), case, name)
    errors = shared_errors(policy, reference, given["next_w"], given["next_l"])
    errors = clip_ratios(errors, case["params"]["eps_clip"])
    close(((errors.reference_winner - errors.policy_winner) / 2).exp(), case, "ratio_w")
    close(((errors.reference_loser - errors.policy_loser) / 2).exp(), case, "ratio_l")
    output = loss_of(errors, case["params"]["beta"])
    close(output.metrics["logit"], case, "logit", 1e-6)
    close(output.loss.mean(), case, "loss", 1e-6)
    (gradient,) = torch.autograd.grad(output.loss.mean(), policy_out)
    close(gradient, case, "grad_policy_out", 1e-6)


@pytest.mark.parametrize("case", golden.cases("step_unclipped"), ids=golden.ids)
def test_the_shared_parent_identity(case):
    """h = <x_w - x_l, mu_policy - mu_reference> / (D sigma^2): all quadratic terms cancel."""
    policy, reference, given, _ = transitions(case)
    winner, loser = given["next_w"], given["next_l"]
    output = loss_of(shared_errors(policy, reference, winner, loser), case["params"]["beta"])
    close(output.metrics["logit"], case, "logit")
    close(output.loss.mean(), case, "loss")
    inner = ((winner - loser) * (policy.mean - reference.mean)).flatten(1).mean(1) / policy.sigma.square()
    torch.testing.assert_close(output.metrics["logit"], (case["params"]["beta"] * inner).detach())


def random_steps(dtype):
    torch.manual_seed(0)
    output, reference_output, latents, first, second = torch.randn(5, 3, 4, 16, 16, dtype=dtype)
    case = golden.cases("step_loss")[0]
    kernel = DdimKernel(golden.inputs(case)["alphas_cumprod"], "epsilon")
    parents, children = torch.tensor([951, 451, 51]), torch.tensor([901, 401, 1])

    def step(value):
        return kernel.transition(value, latents, parents, children)

    policy, reference = step(reference_output + 1e-3 * output), step(reference_output)
    return policy, reference, reference.sample(first), reference.sample(second), step, reference_output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_path_equals_the_plain_path(dtype):
    policy, reference, winner, loser, *_ = random_steps(dtype)
    shared = loss_of(shared_errors(policy, reference, winner, loser), 500.0).loss
    plain = loss_of(separate_errors((policy, policy), (reference, reference), winner, loser), 500.0).loss
    assert shared.dtype == torch.float64
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6)
    inner = ((winner - loser).double() * (policy.mean.double() - reference.mean.double())).flatten(1).mean(1)
    exact = torch.nn.functional.softplus(-500.0 * inner / policy.sigma.square())
    torch.testing.assert_close(shared, exact, rtol=0, atol=1e-6)


def test_policy_equal_to_reference_is_log_2_exactly():
    _, reference, winner, loser, *_ = random_steps(torch.float32)
    errors = clip_ratios(shared_errors(reference, reference, winner, loser), 0.1)
    output = loss_of(errors, 500.0)
    assert (output.loss == math.log(2.0)).all()
    assert (output.metrics["implicit_accuracy"] == 0.5).all()


def test_swapping_the_sides_flips_the_logit():
    policy, reference, winner, loser, *_ = random_steps(torch.float64)
    forward = loss_of(shared_errors(policy, reference, winner, loser), 500.0).metrics["logit"]
    backward = loss_of(shared_errors(policy, reference, loser, winner), 500.0).metrics["logit"]
    torch.testing.assert_close(forward, -backward)


def test_the_gradient_points_from_loser_to_winner():
    """At policy == reference: d loss / d mean = -(beta / 2) (x_w - x_l) / (sigma^2 D)."""
    _, reference, winner, loser, step, output = random_steps(torch.float64)
    output = output.clone().requires_grad_()
    policy = step(output)
    loss = loss_of(shared_errors(policy, reference, winner, loser), 10.0).loss.sum()
    (gradient,) = torch.autograd.grad(loss, policy.mean)
    variance = policy.sigma.square().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(gradient, -5.0 * (winner - loser) / (variance * winner[0].numel()))


def test_the_clamp_bounds_the_logit_and_stops_the_gradient():
    e_w = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    e_l, r = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    output = loss_of(clip_ratios(StepErrors(e_w, e_l, r, r), 0.1), 10.0)
    assert output.metrics["logit"][0].item() == pytest.approx(10 * math.log(1.1 / 0.9))
    output.loss.sum().backward()
    assert e_w.grad[0] == 0.0 and e_w.grad[1] > 0.0


def test_the_clamp_needs_a_reference():
    with pytest.raises(UserError, match="no reference"):
        clip_ratios(StepErrors(torch.ones(1), torch.ones(1)), 0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"timestep": "geometric"}, "come from the sampler's transitions"),
        ({"latents": "independent_noise"}, "come from the sampler's transitions"),
        ({"error": "epsilon"}, "come from the sampler's transitions"),
    ],
)
def test_slots_the_rollout_decides_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check_objective(objectives.build("dpo", **overrides))


def test_unpaired_objectives_are_refused():
    with pytest.raises(UserError, match="compare pairs"):
        check_objective(objectives.build("sft"))
    check_objective(objectives.build("dpo", link="hinge"))
