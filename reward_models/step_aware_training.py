"""Training SPO's step-aware preference model on predictions of a frozen denoiser.

pair of latents ──> one timestep, one noise ──> denoiser's predicted clean pictures ──> scores of both
                                               ──> two-way softmax with soft ties, prompt weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reward_models.noisy_pairs import LatentPairs, batch_rows, noisy_batch
from reward_models.noisy_training import Checkpoint, NoisyTrainingConfig, Progress, fit, pair_loss
from reward_models.step_aware import StepAwareModel

# Noisy latents [B, C, h, w] at timesteps [B] for B prompts -> predicted clean pictures [B, 3, H, W] in [0, 1].
Predict = Callable[[Tensor, Tensor, Sequence[str]], Tensor]


def train_step_aware(
    model: StepAwareModel,
    pairs: LatentPairs,
    predict: Predict,
    alphas_cumprod: Tensor,
    config: NoisyTrainingConfig,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> StepAwareModel:
    """Train in place and return the model frozen and in evaluation mode.

    Args:
        model: from `StepAwareModel.from_scorer`, in float32.
        pairs: to learn from.
        predict: of the frozen denoiser whose rollouts will be scored, with its guidance.
        alphas_cumprod: ``[T]`` of its noise schedule.
        config: published: 8,000 steps of 64 pairs at 3e-6 (SD1.5) or 7,000 at 1e-6 (SDXL), 500 warm-up steps, weight
            decay 0.3, all timesteps, shared noise.
        progress: called after every step with (step, steps, metrics).
        checkpoint: resumed from where it exists, and written.

    Raises:
        RewardModelError: timesteps outside the schedule, or a loss that is not finite.
    """
    levels, counts = config.levels(alphas_cumprod), pairs.prompt_counts()
    model.requires_grad_(True).train()
    model.tower.clip.text_model.requires_grad_(config.train_text_encoders)
    model.tower.clip.text_projection.requires_grad_(config.train_text_encoders)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def batch_loss(step: int) -> tuple[Tensor, float]:
        rows = batch_rows(len(pairs), config.train_batch_size, config.seed, step)
        batch = noisy_batch(pairs, rows, levels, alphas_cumprod, config.shared_noise, config.seed, step)
        times = batch.timesteps.repeat(2)
        with torch.no_grad():
            pictures = predict(torch.cat(batch.sides), times, batch.prompts * 2)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            visual, words = model.visual(pictures, times), model.textual(batch.prompts)
        weights = counts[rows] if config.weight_by_prompt else None
        return pair_loss(visual.float(), words.float(), model.scale, batch, weights)

    fit(parameters, config, batch_loss, lambda: model.scale, model.forget_prompts, progress, checkpoint)
    return model.eval().requires_grad_(False)
