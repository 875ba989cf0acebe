"""SPO's step-aware preference model: PickScore at the start, aware of time once trained."""

import pytest
import torch

from reward_models import RewardModelError, load
from reward_models.noisy_pairs import LatentPairs
from reward_models.noisy_training import NoisyTrainingConfig
from reward_models.step_aware import StepAwareModel
from reward_models.step_aware_training import train_step_aware
from tests.reward_models.golden import GOLDEN, TOKENIZER

PROMPTS = ["a red fox", "snow", "a red fox"]


@pytest.fixture
def scorer():
    return load("pickscore", checkpoint=GOLDEN / "pickscore", tokenizer=TOKENIZER, device="cpu")


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_untrained_it_is_the_scorer_at_every_timestep(scorer, pictures):
    model = StepAwareModel.from_scorer(scorer)
    expected = scorer.score_tensor(PROMPTS, pictures)
    for timestep in (0, 251, 951):
        found = model.score(pictures, torch.full((3,), timestep), PROMPTS)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gates_shifts_and_scales_act(scorer, pictures):
    model = StepAwareModel.from_scorer(scorer)
    before = model.score(pictures, torch.full((3,), 251), PROMPTS)
    for block in (*model.modulation.blocks, model.modulation.pooled):
        torch.nn.init.normal_(block[1].weight, std=0.2, generator=torch.Generator().manual_seed(1))
    low, high = (model.score(pictures, torch.full((3,), t), PROMPTS) for t in (1, 951))
    assert (low - high).abs().min() > 1e-4 and (before - low).abs().min() > 1e-4


def test_it_saves_and_loads(scorer, pictures, tmp_path):
    model = StepAwareModel.from_scorer(scorer)
    torch.nn.init.normal_(model.modulation.pooled[1].weight, std=0.1)
    again = StepAwareModel.load(model.save(tmp_path / "spm"))
    times = torch.tensor([1, 501, 951])
    with torch.no_grad():
        torch.testing.assert_close(again.score(pictures, times, PROMPTS), model.score(pictures, times, PROMPTS))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(RewardModelError, match="not a step-aware"):
        StepAwareModel.load(GOLDEN / "pickscore")


def test_other_families_are_refused(hpsv2):
    with pytest.raises(RewardModelError, match="start from pickscore"):
        StepAwareModel.from_scorer(hpsv2)


def test_training_moves_the_modulation_and_leaves_a_frozen_text_tower(scorer):
    """A fake denoiser's predictions: pictures whose brightness is the mean of the latents' first channel."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 4, 8, 8, generator=generator)
    label = (latents[0, :, 0].mean((1, 2)) > latents[1, :, 0].mean((1, 2))).float()
    pairs = LatentPairs(latents[0], latents[1], ["a red fox"] * 8, label)
    alphas = torch.linspace(0.999, 0.01, 1000)

    def predict(noisy, timesteps, prompts):
        assert len(noisy) == len(timesteps) == len(prompts) == 8
        brightness = torch.sigmoid(noisy[:, :1].mean((2, 3), keepdim=True))
        return brightness.expand(-1, 3, 40, 40)

    model = StepAwareModel.from_scorer(scorer)
    text = [parameter.clone() for parameter in model.tower.clip.text_model.parameters()]
    seen = []
    config = NoisyTrainingConfig(
        max_train_steps=3,
        train_batch_size=4,
        learning_rate=1e-3,
        lr_warmup_steps=0,
        timesteps=None,
        shared_noise=True,
        train_text_encoders=False,
    )
    train_step_aware(model, pairs, predict, alphas, config, lambda step, steps, values: seen.append(values["loss"]))
    assert len(seen) == 3 and all(0 < loss < 5 for loss in seen)
    assert model.modulation.pooled[1].weight.abs().max() > 0
    after = model.tower.clip.text_model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(text, after, strict=True))
