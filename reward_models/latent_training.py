"""Training a latent reward model on preference pairs of clean latents, noised anew at every step.

pair of latents ──> one timestep, noise ──> scores of both ──> two-way softmax with soft ties, prompt weights
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardModel, TextConditioning
from reward_models.noisy_pairs import LatentPairs, batch_rows, noisy_batch
from reward_models.noisy_training import Checkpoint, NoisyTrainingConfig, Progress, fit, pair_loss


def train_latent_reward(
    model: LatentRewardModel,
    pairs: LatentPairs,
    alphas_cumprod: Tensor,
    config: NoisyTrainingConfig,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> LatentRewardModel:
    """Train in place, on the device the model is on, and return the model frozen and in evaluation mode.

    Args:
        model: from `LatentRewardModel.from_components`; its blocks must be float32.
        pairs: to learn from.
        alphas_cumprod: ``[T]`` of the noise schedule.
        config: how long and how.
        progress: called after every step with (step, steps, metrics).
        checkpoint: resumed from where it exists, and written.

    Raises:
        RewardModelError: text encoders that belong to the base model and must not be trained, timesteps outside the
            schedule, or a loss that is not finite.
    """
    _check(model, config)
    levels, counts = config.levels(alphas_cumprod), pairs.prompt_counts()
    parameters = _unfreeze(model, config.train_text_encoders)
    model.train()

    def batch_loss(step: int) -> tuple[Tensor, float]:
        rows = batch_rows(len(pairs), config.train_batch_size, config.seed, step)
        batch = noisy_batch(pairs, rows, levels, alphas_cumprod, config.shared_noise, config.seed, step)
        device = model.heads.logit_scale.device
        text, null = _encode(model, batch.prompts, config.train_text_encoders)
        both = text.index(torch.arange(len(rows)).repeat(2))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            visual = model.visual_features(
                torch.cat(batch.sides).to(device), batch.timesteps.repeat(2).to(device), both, null
            )
        words = model.heads.textual(text.pooled)
        return pair_loss(visual, words, model.heads.scale, batch, counts[rows] if config.weight_by_prompt else None)

    def after_step() -> None:
        if config.train_text_encoders:  # else encoded prompts stay what they are
            model.forget_prompts()

    fit(parameters, config, batch_loss, lambda: model.heads.scale, after_step, progress, checkpoint)
    return model.eval().requires_grad_(False)


def _encode(
    model: LatentRewardModel, texts: Sequence[str], with_gradient: bool
) -> tuple[TextConditioning, TextConditioning | None]:
    """Prompts of a batch and the empty one (where the enhancement needs it)."""
    needs_null = model.config.guidance_scale != 1.0
    if not with_gradient:
        return model.encode(texts), model.encode([""]) if needs_null else None
    assert model.text is not None
    encoded = model.text([*texts, ""])
    text = encoded.index(torch.arange(len(texts)))
    return text, encoded.index(torch.tensor([len(texts)])) if needs_null else None


def _unfreeze(model: LatentRewardModel, text_encoders: bool) -> list[nn.Parameter]:
    """The parameters that are trained; SDXL's encoders have layers after the states that are used, which are not."""
    model.requires_grad_(False)
    for part in (model.trunk, model.heads, model.text if text_encoders else None):
        if part is not None:
            part.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _check(model: LatentRewardModel, config: NoisyTrainingConfig) -> None:
    if config.train_text_encoders and model.config.text_encoders == "base":
        raise RewardModelError(
            "this reward model leans on its base's text encoders, which must stay as they are",
            found='text_encoders: "base" with train_text_encoders: true',
            fix='set train_text_encoders to false, or make the model with text_encoders="own"',
        )
