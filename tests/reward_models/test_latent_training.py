"""Training a latent reward model on preferences that can be read off the latents."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardModel, TextTower
from reward_models.latent_training import train_latent_reward
from reward_models.noisy_pairs import LatentPairs, accuracy_by_timestep, batch_rows
from reward_models.noisy_training import Checkpoint, NoisyTrainingConfig

ALPHAS = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
FAST = {"learning_rate": 2e-3, "lr_warmup_steps": 5, "weight_decay": 0.0, "train_text_encoders": False}


def reward_model(folder, **choices) -> LatentRewardModel:
    torch.manual_seed(0)
    pipe = DiffusionPipeline.from_pretrained(folder)
    text = TextTower([pipe.text_encoder], [pipe.tokenizer])
    settings = {"text_encoders": "base", "guidance_scale": 1.0, **choices}
    return LatentRewardModel.from_components(pipe.unet, text, pipe.vae_scale_factor, **settings)


def bright_pairs(count: int, seed: int) -> LatentPairs:
    """The picture with the larger mean of channel 0 wins."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(2, count, 4, 8, 8, generator=generator)
    shift = torch.randn(2, count, generator=generator)
    base[:, :, 0] += shift[..., None, None]
    means = base[:, :, 0].mean((2, 3))
    label = (means[0] > means[1]).float()
    return LatentPairs(base[0], base[1], ["a red circle", "a blue square"] * (count // 2), label)


def test_a_measurable_preference_is_learnt_and_noise_hides_it(tiny_sd):
    model = reward_model(tiny_sd)
    config = NoisyTrainingConfig(max_train_steps=80, train_batch_size=16, shared_noise=True, **FAST)
    seen = []
    train_latent_reward(model, bright_pairs(256, 0), ALPHAS, config, lambda step, total, values: seen.append(values))
    accuracy = accuracy_by_timestep(model.score, bright_pairs(128, 1), ALPHAS, [1, 501, 951])
    assert accuracy[1] > 0.9 and accuracy[1] >= accuracy[501] > 0.6 and accuracy[501] > accuracy[951] - 0.05
    assert seen[-1]["loss"] < 0.5 < 0.6 < seen[0]["loss"]
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


def test_a_run_is_a_function_of_its_seed(tiny_sd):
    config = NoisyTrainingConfig(max_train_steps=3, train_batch_size=4, **FAST)
    first, second = (train_latent_reward(reward_model(tiny_sd), bright_pairs(16, 0), ALPHAS, config) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_resumed_run_is_the_unbroken_one(tiny_sd, tmp_path):
    config = {"max_train_steps": 4, "train_batch_size": 4, **FAST}
    pairs = bright_pairs(16, 0)
    whole = train_latent_reward(reward_model(tiny_sd), pairs, ALPHAS, NoisyTrainingConfig(**config))
    checkpoint = Checkpoint(tmp_path / "state.pt", every=2)
    short = NoisyTrainingConfig(**{**config, "max_train_steps": 2})
    train_latent_reward(reward_model(tiny_sd), pairs, ALPHAS, short, checkpoint=checkpoint)
    seen = []
    resumed = train_latent_reward(
        reward_model(tiny_sd),
        pairs,
        ALPHAS,
        NoisyTrainingConfig(**config),
        lambda step, *_: seen.append(step),
        checkpoint,
    )
    assert seen == [3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_text_encoders_train_only_where_they_are_its_own(tiny_sd):
    pairs = bright_pairs(8, 0)
    config = NoisyTrainingConfig(max_train_steps=1, train_batch_size=4, lr_warmup_steps=0, learning_rate=1e-3)
    with pytest.raises(RewardModelError, match="leans on its base"):
        train_latent_reward(reward_model(tiny_sd), pairs, ALPHAS, config)
    model = reward_model(tiny_sd, text_encoders="own", guidance_scale=7.5)
    before = [parameter.clone() for parameter in model.text.parameters()]
    train_latent_reward(model, pairs, ALPHAS, config)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.text.parameters(), strict=True))
    model = reward_model(tiny_sd)
    before = [parameter.clone() for parameter in model.text.parameters()]
    train_latent_reward(model, pairs, ALPHAS, NoisyTrainingConfig(**{**vars(config), "train_text_encoders": False}))
    assert all(torch.equal(a, b) for a, b in zip(before, model.text.parameters(), strict=True))


def test_every_pair_comes_once_a_pass():
    rows = torch.cat([batch_rows(7, 3, 0, step) for step in range(7)])
    for epoch in rows.split(7):
        assert sorted(epoch.tolist()) == list(range(7))
    assert not torch.equal(rows[:7], rows[7:14])


def test_bad_input_is_explained(tiny_sd):
    pairs = bright_pairs(4, 0)
    with pytest.raises(RewardModelError, match="as many latents and labels"):
        LatentPairs(pairs.latents_0, pairs.latents_1, ["one"], pairs.label_0)
    with pytest.raises(RewardModelError, match="noise schedule"):
        config = NoisyTrainingConfig(timesteps=(1001,), train_text_encoders=False)
        train_latent_reward(reward_model(tiny_sd), pairs, ALPHAS, config)
    ties = LatentPairs(pairs.latents_0, pairs.latents_1, pairs.prompts, torch.full((4,), 0.5))
    with pytest.raises(RewardModelError, match="tie"):
        accuracy_by_timestep(reward_model(tiny_sd).score, ties, ALPHAS, [1])
    with pytest.raises(RewardModelError, match="mixed_precision"):
        NoisyTrainingConfig(mixed_precision="fp8")
