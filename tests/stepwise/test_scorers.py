"""Who ranks candidates: latent reward models, picture scorers on predicted clean pictures, plain functions."""

from types import SimpleNamespace

import pytest
import torch

from reward_models.latent import LatentRewardModel, LatentSpace, TextTower
from t2i_align.errors import UserError
from t2i_align.stepwise.judges import PictureJudge
from t2i_align.stepwise.scorers import Candidates, PixelScorer, Scored, channel_mean

from .harness import trainer


def save_reward_model(run, folder, own_text: bool, space: bool = True):
    backbone = run.backbone
    unet = backbone.pipeline().unet
    plain = type(unet).from_pretrained(run.config.model.pretrained_model_name_or_path, subfolder="unet")
    latents = LatentSpace.measure(backbone.encode_image, backbone.alphas_cumprod) if space else None
    torch.manual_seed(0)
    model = LatentRewardModel.from_components(
        plain,
        TextTower(backbone.text_encoders, backbone.tokenizers),
        backbone.vae_scale_factor,
        latents,
        text_encoders="own" if own_text else "base",
    ).eval()
    return model, str(model.save(folder))


@pytest.mark.parametrize("own_text", [True, False])
@pytest.mark.parametrize("name", ["tiny_sdxl", "tiny_sd_v"])
def test_lpo_with_a_latent_reward_model(request, tmp_path, name, own_text):
    folder = request.getfixturevalue(name)
    model, checkpoint = save_reward_model(trainer(folder), tmp_path, own_text)
    run = trainer(folder, {"preset": "lpo", "scorer": {"checkpoint": checkpoint}})
    run.parts.provider._rollout._config.threshold.low = 0.0
    batch = run.parts.provider.batch(0, 0)
    assert len(batch) > 0
    texts = [run.parts.provider._prompts[index] for index in batch.pairs.prompt.tolist()]
    with torch.no_grad():
        score = model.score(batch.pairs.winner, batch.pairs.parents, texts)
    torch.testing.assert_close(batch.pairs.score_winner, score, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(run.steps(1).parts.step.loss(batch, None, 1)[0].loss).all()


def test_the_timestep_told_to_the_scorer_is_a_choice(tiny_sd, tmp_path):
    model, checkpoint = save_reward_model(trainer(tiny_sd), tmp_path, own_text=False)
    for at in ("parent", "child"):
        scorer = {"name": "lrm", "checkpoint": checkpoint, "timestep": at, "candidates_per_pass": 2}
        pairs = trainer(tiny_sd, {"scorer": scorer}).parts.provider.batch(0, 0).pairs
        times = pairs.parents if at == "parent" else pairs.children
        texts = [["a red circle", "a blue square", "a green star"][index] for index in pairs.prompt.tolist()]
        with torch.no_grad():
            wanted = model.score(pairs.loser, times, texts)
        torch.testing.assert_close(pairs.score_loser, wanted, rtol=1e-4, atol=1e-4)


def test_a_reward_model_of_another_latent_space_is_refused(tiny_sd, tiny_sdxl, tmp_path):
    _, checkpoint = save_reward_model(trainer(tiny_sdxl), tmp_path / "sdxl", own_text=True)
    with pytest.raises(UserError, match="share one latent space"):
        trainer(tiny_sd, {"scorer": {"name": "lrm", "checkpoint": checkpoint}})
    _, checkpoint = save_reward_model(trainer(tiny_sd), tmp_path / "unknown", own_text=True, space=False)
    with pytest.raises(UserError, match="does not say which latents"):
        trainer(tiny_sd, {"scorer": {"name": "lrm", "checkpoint": checkpoint}})
    with pytest.raises(UserError, match="rollout.scorer"):
        trainer(tiny_sd, {"scorer": {"name": "lrm", "checkpoint": str(tmp_path / "nothing")}})


def test_an_unknown_picture_scorer_is_named(tiny_sd):
    with pytest.raises(UserError, match="did you mean 'pickscore'"):
        trainer(tiny_sd, {"scorer": {"name": "pixel", "reward": "pickscor"}})


def redness(prompts, pixels):
    return (pixels[:, 0] - pixels[:, 1]).flatten(1).mean(1)


def pixel_run(folder, **rollout):
    run = trainer(folder, rollout)
    sampler = run.parts.provider._rollout
    fake = SimpleNamespace(preference_scale=10.0, score_tensor=redness)
    judge = PictureJudge(fake)
    sampler._scorer = PixelScorer(judge, sampler._denoiser, sampler._kernel, run.backbone, batch_size=4)
    return run


@torch.no_grad()
def test_pixel_scores_are_those_of_the_predicted_clean_picture(tiny_sdxl):
    run = pixel_run(tiny_sdxl)
    sampler, backbone = run.parts.provider._rollout, run.backbone
    backbone.unet.eval()
    latents, prompt = torch.randn(5, 4, 8, 8), backbone.encode_prompt(["a red circle"] * 5)
    ids = backbone.time_ids((32, 32), (0, 0), (32, 32)).expand(5, -1)
    parents, children = torch.full((5,), 751), torch.full((5,), 501)
    scored = sampler._scorer(Candidates(latents, parents, children, ["a red circle"] * 5, prompt, ids))
    output = sampler._denoiser(latents, children, prompt, ids)
    torch.testing.assert_close(scored.outputs, output, rtol=1e-4, atol=1e-5)
    clean = sampler._kernel.clean(output, latents, children)
    torch.testing.assert_close(scored.scores, 10 * redness(None, backbone.decode(clean)), rtol=1e-3, atol=1e-4)
    last = sampler._scorer(Candidates(latents, parents, torch.zeros_like(parents), ["a red circle"] * 5, prompt, ids))
    assert last.outputs is None
    torch.testing.assert_close(last.scores, 10 * redness(None, backbone.decode(latents)), rtol=1e-3, atol=1e-4)


def test_a_scorers_passes_are_used_for_sampling(tiny_sd):
    """4 steps, 3 candidates of 2 prompts, guidance: one pass to begin with, then K per step but for the last."""
    counter = pixel_run(tiny_sd).steps(1).parts.counter
    assert (counter.rollout, counter.scoring) == (2 * 2, 3 * 3 * 2 * 2)
    assert counter.train_forward == 4 * counter.pairs


def test_reusing_a_scorers_pass_samples_the_same_states(tiny_sd):
    reused = pixel_run(tiny_sd).parts.provider.batch(0, 0).pairs
    run = pixel_run(tiny_sd)
    sampler, original = run.parts.provider._rollout, run.parts.provider._rollout._scorer

    class Forgetful:
        batch_size = 4

        def __call__(self, candidates):
            return Scored(original(candidates).scores)

    sampler._scorer = Forgetful()
    again = run.parts.provider.batch(0, 0).pairs
    torch.testing.assert_close(reused.winner, again.winner, rtol=1e-4, atol=1e-4)


def test_tailorpo_goes_on_from_the_winner(tiny_sd):
    run = pixel_run(tiny_sd, preset="tailorpo", prompts_per_rollout=1, continuation="winner", candidates=2)
    pairs = run.parts.provider._refill(0) or run.parts.provider._pending
    order = pairs.parents.argsort(descending=True)
    for earlier, later in zip(order[:-1], order[1:], strict=True):
        assert torch.equal(pairs.winner[earlier], pairs.parent[later])


@pytest.mark.parametrize("scorer", ["function", "pixel"])
def test_guidance_moves_winners_up_the_scorers_gradient(tiny_sd, scorer):
    rollout = {"preset": "tailorpo", "prompts_per_rollout": 2}
    pairs = []
    for strength in (None, 0.25):
        run = pixel_run(tiny_sd, **rollout, reward_guidance=strength, continuation="random")
        sampler = run.parts.provider._rollout
        if scorer == "function":
            sampler._scorer = channel_mean(0, 1)
        pairs.append((run.parts.provider._refill(0) or run.parts.provider._pending, sampler))
    (plain, sampler), (guided, _) = pairs
    assert torch.equal(plain.loser, guided.loser) and torch.equal(plain.parent, guided.parent)
    difference = guided.winner - plain.winner
    sigma = sampler._kernel.sigma(guided.parents, guided.children).float()
    torch.testing.assert_close(difference.square().mean((1, 2, 3)).sqrt(), 0.25 * sigma, rtol=1e-3, atol=1e-6)
    assert (guided.log_density_winner < plain.log_density_winner).any()
    if scorer == "function":
        assert (difference[:, 0] > 0).all() and (difference[:, 1:] == 0).all()


def test_the_oracle_judges_predicted_pictures(tiny_sdxl):
    run = trainer(tiny_sdxl, {"scorer": {"name": "pixel", "reward": "oracle"}}, resolution=64)
    run.parts.provider.batch(0, 0)  # pictures of a random VAE: nothing to prefer, but all of them are judged
    assert 0.0 <= run.parts.provider.metrics()["rollout/score_mean"] <= 20.0
