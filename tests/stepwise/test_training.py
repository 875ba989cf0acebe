"""Rollouts that train: drift, counts, exactness, resume, on every backbone."""

import math

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.stepwise.scorers import FunctionScorer

from .harness import PROMPTS, trainer, weights


@pytest.fixture(params=["tiny_sdxl", "tiny_sd", "tiny_sd_v"])
def model(request):
    return request.getfixturevalue(request.param)


def channel_after(run, steps: int = 4) -> float:
    """Mean of channel 0 over noise-free samples of the policy."""
    pipe = run.backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    side = run.config.data.resolution
    run.backbone.unet.eval()
    with torch.no_grad():
        latents = pipe(
            ["a red circle"] * 4,
            num_inference_steps=steps,
            generator=generators,
            output_type="latent",
            height=side,
            width=side,
        ).images
    run.backbone.unet.train()
    return float(latents[:, 0].mean())


def test_any_folder_trains_from_log_2(model):
    run = trainer(model).steps(3)
    assert run.losses[0][0] == pytest.approx(math.log(2), abs=1e-7)  # policy == reference
    assert run.losses[1][0] != run.losses[0][0]
    assert all(math.isfinite(loss) for step in run.losses for loss in step)


def test_four_forwards_and_two_backwards_per_pair(model):
    counter = trainer(model).steps(4).parts.counter
    assert counter.pairs > 0
    assert counter.train_forward == 4 * counter.pairs
    assert counter.train_backward == 2 * counter.pairs


def test_what_the_other_choices_cost(tiny_sd):
    plain = trainer(tiny_sd, {"shared_pass": False}).steps(2).parts.counter
    assert (plain.train_forward, plain.train_backward) == (8 * plain.pairs, 4 * plain.pairs)
    single = trainer(tiny_sd, {"guidance_scale": 1.0}).steps(2).parts.counter
    assert (single.train_forward, single.train_backward) == (2 * single.pairs, single.pairs)
    # 4 sampler steps of 2 prompts with guidance; candidates cost nothing more.
    first = trainer(tiny_sd).steps(1)
    assert first.parts.counter.rollout == 4 * 2 * 2 and first.parts.counter.scoring == 0
    assert first.metrics[0]["passes/train_forward_per_pair"] == 4.0
    assert first.metrics[0]["passes/train_backward_per_pair"] == 2.0
    early = trainer(tiny_sd, {"lowest_timestep": 700}).steps(1)
    assert early.parts.counter.rollout == 1 * 2 * 2  # sampling stops after the last branched step


def test_the_shared_pass_changes_nothing_but_time(tiny_sdxl):
    shared, plain = trainer(tiny_sdxl).steps(1), trainer(tiny_sdxl, {"shared_pass": False})
    for parameter, value in zip(plain.backbone.trainable_parameters(), weights(shared), strict=True):
        parameter.data.copy_(value)
    batch, gradients = shared.parts.provider.batch(1, 0), []
    losses = [run.parts.step.loss(batch, None, 1)[0].loss for run in (shared, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)
    assert (losses[0] - math.log(2)).abs().min() > 1e-4
    for run, loss in zip((shared, plain), losses, strict=True):
        parameters = run.backbone.trainable_parameters()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), parameters)]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=2e-6)


def drift(model, scorer=None, sign=1) -> float:
    rollout = {"scorer": {"name": "channel_mean", "sign": sign}, "prompts_per_rollout": 8}
    run = trainer(model, rollout, scorer, learning_rate=2e-3, train_batch_size=16)
    before = channel_after(run)
    run.steps(12)
    return channel_after(run) - before


def test_pictures_drift_where_the_scorer_points(tiny_sd):
    up, down = drift(tiny_sd), drift(tiny_sd, sign=-1)
    calls = torch.Generator().manual_seed(0)
    nowhere = drift(tiny_sd, FunctionScorer(lambda latents: torch.randn(len(latents), generator=calls)))
    assert up > 0 > down
    assert abs(nowhere) < min(up, -down) / 2


def test_a_zero_learning_rate_leaves_weights_and_loss(tiny_sdxl):
    run = trainer(tiny_sdxl, learning_rate=0.0)
    before = weights(run)
    run.optimizer.param_groups[0]["weight_decay"] = 0.0
    run.steps(3)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert all(loss == pytest.approx(math.log(2), abs=1e-7) for step in run.losses for loss in step)


@pytest.mark.parametrize("low", [1.0])
def test_no_accepted_pair_is_a_step_without_update(tiny_sd, low):
    run = trainer(tiny_sd, {"threshold": {"schedule": "constant", "low": low}}, gradient_accumulation_steps=2)
    before = weights(run)
    run.steps(2)
    assert run.losses == [[], []] and run.parts.counter.pairs == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert run.metrics[0]["rollout/acceptance"] == 0.0 and run.metrics[0]["rollout/pairs"] == 0.0
    assert "passes/train_forward_per_pair" not in run.metrics[0]


def test_resuming_reproduces_the_next_rollout_and_loss(tiny_sd):
    def make():
        return trainer(tiny_sd, {"prompts_per_rollout": 3}, train_batch_size=5)

    whole = make().steps(3)
    assert whole.metrics[0]["rollout/steps"] == 3.0  # the cut falls between the updates of one rollout
    state = {name: value.clone() for name, value in whole.parts.provider.state().items()}
    saved, optimizer = weights(whole), whole.optimizer.state_dict()
    cut = make().steps(2)
    state = cut.parts.provider.state()
    saved, optimizer = weights(cut), cut.optimizer.state_dict()

    resumed = make()
    for parameter, value in zip(resumed.backbone.trainable_parameters(), saved, strict=True):
        parameter.data.copy_(value)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.parts.provider.restore(state)
    resumed.finished = 2
    whole.steps(3)
    resumed.steps(4)
    assert resumed.losses == whole.losses[2:6]
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    assert resumed.parts.counter == whole.parts.counter


def test_every_pair_is_used_once_and_counts_alike(tiny_sd):
    run = trainer(tiny_sd, {"prompts_per_rollout": 3}, train_batch_size=2, gradient_accumulation_steps=2)
    provider, seen = run.parts.provider, []
    provider.batch(0, 0), provider.batch(0, 1)
    metrics = provider.metrics()
    assert metrics["rollout/pairs"] == 12.0 and metrics["rollout/steps"] == 3.0
    for step in range(1, 7):
        batches = [provider.batch(step, micro) for micro in range(2)]
        seen += [batch.pairs for batch in batches]
        means = [batch.weights.sum() / len(batch) / 2 for batch in batches]
        assert sum(means) == pytest.approx(1.0)
    latents = torch.cat([pairs.winner for pairs in seen[4:]])
    assert len({tuple(row.flatten()[:4].tolist()) for row in latents}) == len(latents)


def test_a_rollout_is_a_function_of_weights_and_seed(tiny_sd):
    first, second = trainer(tiny_sd), trainer(tiny_sd)
    torch.manual_seed(123)
    ours = first.parts.provider.batch(0, 0)
    torch.randn(17)
    theirs = second.parts.provider.batch(0, 0)
    for name, value in ours.pairs.tensors().items():
        assert torch.equal(value, theirs.pairs.tensors()[name]), name


def test_a_rollout_leaves_no_trace(tiny_sd):
    run = trainer(tiny_sd)
    run.backbone.unet.train()
    before = torch.random.get_rng_state()
    batch = run.parts.provider.batch(0, 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert run.backbone.unet.training and not batch.pairs.winner.requires_grad
    pairs = batch.pairs
    assert pairs.parent.dtype == torch.float32
    assert (pairs.score_winner > pairs.score_loser).all()


def test_the_loss_sees_the_densities_of_the_rollout(model):
    """The trainer recomputes the mean from (x_t, t, c): it must be the rollout's."""
    run = trainer(model)
    batch = run.parts.provider.batch(0, 0)
    pairs, step = batch.pairs, run.parts.step
    with torch.no_grad(), run.parts.step._denoiser.purpose("train"):
        transition = step._transition(batch)
    torch.testing.assert_close(transition.log_density(pairs.winner), pairs.log_density_winner, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(transition.log_density(pairs.loser), pairs.log_density_loser, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [{"preset": "dpo", "link": "hinge"}, {"preset": "dpo", "link": "smoothed"}])
def test_other_links_train_too(tiny_sd, objective):
    run = trainer(tiny_sd, objective=objective).steps(2)
    assert all(math.isfinite(loss) for step in run.losses for loss in step)


def test_settings_that_cannot_work_are_refused(tiny_sd):
    with pytest.raises(UserError, match="No sampler step lies in the range"):
        trainer(tiny_sd, {"lowest_timestep": 990})
    with pytest.raises(UserError, match="channel does not exist"):
        trainer(tiny_sd, {"scorer": {"name": "channel_mean", "channel": 4}})
    with pytest.raises(UserError, match="multiple of"):
        trainer(tiny_sd, resolution=30)


def test_a_broken_scorer_stops_the_run(tiny_sd):
    run = trainer(tiny_sd, scorer=FunctionScorer(lambda latents: latents.flatten(1).mean(1) * float("nan")))
    with pytest.raises(UserError, match="not finite"):
        run.parts.provider.batch(0, 0)


def test_prompts_take_turns(tiny_sd):
    run = trainer(tiny_sd, {"prompts_per_rollout": 1}, prompts=PROMPTS)
    seen = []
    for step in range(3):
        seen.append(run.parts.provider.batch(step, 0).pairs.prompt[0].item())
    assert sorted(seen) == [0, 1, 2] and run.parts.provider.epoch_of(2) == 0
    run.parts.provider.batch(3, 0)
    assert run.parts.provider.epoch_of(3) == 1
