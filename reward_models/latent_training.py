"""Training a latent reward model on preference pairs of clean latents, noised anew at every step.

    pair of latents ──> one timestep, noise ──> scores of both ──> two-way softmax with soft ties, prompt weights

Batches, timesteps and noise are functions of (seed, step): two runs with one seed are the same run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardModel, TextConditioning
from reward_models.latent_loss import preference_loss, prompt_weights

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, eq=False)
class LatentPairs:
    """N pairs in memory (or memory-mapped).

    Attributes:
        latents_0, latents_1: ``[N, C, h, w]`` clean latents in the denoiser's scale, any float dtype.
        prompts: N texts.
        label_0: ``[N]`` probability that picture 0 is preferred; 0.5 is a tie.
    """

    latents_0: Tensor
    latents_1: Tensor
    prompts: Sequence[str]
    label_0: Tensor

    def __post_init__(self) -> None:
        count = len(self.prompts)
        if count == 0 or any(len(part) != count for part in (self.latents_0, self.latents_1, self.label_0)):
            raise RewardModelError(
                "pairs need as many latents and labels as prompts, and at least one",
                found=f"{len(self.latents_0)} and {len(self.latents_1)} latents, {len(self.label_0)} labels, "
                f"{count} prompts",
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt_counts(self) -> Tensor:
        """``[N]`` float: rows with the same prompt."""
        counts = Counter(self.prompts)
        return torch.tensor([float(counts[prompt]) for prompt in self.prompts])


@dataclass(frozen=True)
class LatentTrainingConfig:
    """One run; the defaults are the published recipe of LRM-1.5 but for its batch of 128 on eight devices.

    Attributes:
        max_train_steps, train_batch_size: optimiser steps, pairs in each.
        learning_rate, weight_decay, lr_warmup_steps, max_grad_norm: of AdamW, constant after a linear warm-up.
        timesteps: training timesteps are drawn uniformly from these; None: from all of the schedule.
        shared_noise: one noise for both pictures of a pair (less label noise) instead of one each (as published).
        train_text_encoders: published recipes do; without, the model may lean on its base's (``text_encoders="base"``).
        weight_by_prompt: every prompt counts alike, however many pairs it has.
        mixed_precision: autocast type of the network, or no.
        seed: of everything random.
    """

    max_train_steps: int = 4000
    train_batch_size: int = 16
    learning_rate: float = 1e-5
    weight_decay: float = 0.3
    lr_warmup_steps: int = 500
    max_grad_norm: float = 1.0
    timesteps: tuple[int, ...] | None = tuple(range(1, 952, 50))
    shared_noise: bool = False
    train_text_encoders: bool = True
    weight_by_prompt: bool = True
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("no", "bf16"):
            raise RewardModelError("unknown mixed_precision", found=self.mixed_precision, fix="use no or bf16")


def train_latent_reward(
    model: LatentRewardModel,
    pairs: LatentPairs,
    alphas_cumprod: Tensor,
    config: LatentTrainingConfig,
    progress: Progress | None = None,
) -> LatentRewardModel:
    """Train in place, on the device the model is on, and return the model frozen and in evaluation mode.

    Args:
        model: from `LatentRewardModel.from_components`; its blocks must be float32.
        pairs: to learn from.
        alphas_cumprod: ``[T]`` of the noise schedule.
        config: how long and how.
        progress: called after every step with (step, steps, metrics).

    Raises:
        RewardModelError: text encoders that belong to the base model and must not be trained, timesteps outside the
            schedule, or a loss that is not finite.
    """
    _check(model, alphas_cumprod, config)
    parameters = _unfreeze(model, config.train_text_encoders)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    counts = pairs.prompt_counts()
    model.train()
    for step in range(config.max_train_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(config.lr_warmup_steps, 1))
        rows = batch_rows(len(pairs), config.train_batch_size, config.seed, step)
        loss, correct = _batch_loss(model, pairs, rows, counts, alphas_cumprod, config, step)
        if not math.isfinite(float(loss.detach())):
            raise RewardModelError(f"the loss is not finite at step {step + 1}", fix="lower learning_rate")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.forget_prompts()
        if progress is not None:
            scale = float(model.heads.scale.detach())
            metrics = {"loss": float(loss.detach()), "accuracy": correct, "scale": scale, "grad_norm": float(norm)}
            progress(step + 1, config.max_train_steps, metrics)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def accuracy_by_timestep(
    model: LatentRewardModel,
    pairs: LatentPairs,
    alphas_cumprod: Tensor,
    timesteps: Sequence[int],
    draws: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[int, float]:
    """Share of decided pairs that are ranked as labelled, at each timestep.

    Both pictures of a pair get the same noise, and every timestep the same noises. Ties are left out; equal scores
    count as half.

    Args:
        model: in evaluation mode.
        pairs: held out.
        alphas_cumprod: ``[T]``.
        timesteps: noise levels to measure.
        draws: noises per pair; accuracy is the mean over them.
        batch_size: pairs per pass.
        seed: of the noise.
    """
    decided = (pairs.label_0 != 0.5).nonzero().flatten()
    if len(decided) == 0:
        raise RewardModelError("every pair is a tie: there is no accuracy to measure")
    found = {}
    for timestep in timesteps:
        right = 0.0
        for draw in range(draws):
            for start in range(0, len(decided), batch_size):
                rows = decided[start : start + batch_size]
                times = torch.full((len(rows),), timestep)
                noise = _noise(pairs.latents_0[rows].shape, seed, draw, start)
                first, second = (
                    model.score(_noised(part[rows], noise, times, alphas_cumprod), times, _texts(pairs, rows))
                    for part in (pairs.latents_0, pairs.latents_1)
                )
                right += float(_agreement((first - second).cpu(), pairs.label_0[rows]).sum())
        found[int(timestep)] = right / (draws * len(decided))
    return found


def batch_rows(count: int, size: int, seed: int, step: int) -> Tensor:
    """Rows of one step: seeded permutations of ``count`` laid end to end, cut into pieces of ``size``."""
    first, last = step * size // count, ((step + 1) * size - 1) // count
    orders = [torch.randperm(count, generator=_generator(seed, 1, epoch)) for epoch in range(first, last + 1)]
    start = step * size - first * count
    return torch.cat(orders)[start : start + size]


def _batch_loss(
    model: LatentRewardModel,
    pairs: LatentPairs,
    rows: Tensor,
    counts: Tensor,
    alphas_cumprod: Tensor,
    config: LatentTrainingConfig,
    step: int,
) -> tuple[Tensor, float]:
    """Weighted loss with its graph, and the share of decided pairs that are ranked right."""
    device, label = model.heads.logit_scale.device, pairs.label_0[rows].float()
    levels = torch.arange(len(alphas_cumprod)) if config.timesteps is None else torch.tensor(config.timesteps)
    times = levels[torch.randint(len(levels), (len(rows),), generator=_generator(config.seed, 2, step))]
    noises = [_noise(pairs.latents_0[rows].shape, config.seed, 3 + side, step) for side in range(2)]
    noises[1] = noises[0] if config.shared_noise else noises[1]
    sides = [
        _noised(part[rows], noise, times, alphas_cumprod)
        for part, noise in zip((pairs.latents_0, pairs.latents_1), noises, strict=True)
    ]
    text, null = _encode(model, _texts(pairs, rows), config.train_text_encoders)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        visual = model.visual_features(
            torch.cat(sides).to(device), times.repeat(2).to(device), text.index(torch.arange(len(rows)).repeat(2)), null
        )
    words, scale = model.heads.textual(text.pooled), model.heads.scale
    image_0, image_1 = visual.chunk(2)
    losses = preference_loss(image_0, image_1, words, scale, label.to(device))
    weights = prompt_weights(counts[rows]) if config.weight_by_prompt else torch.full_like(label, 1.0 / len(rows))
    margin = ((image_0 - image_1) * words).sum(-1).detach().cpu()
    decided = label != 0.5
    correct = float(_agreement(margin, label)[decided].mean()) if decided.any() else 0.5
    return (losses * weights.to(device)).sum(), correct


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


def _noised(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    alpha = alphas_cumprod.float().cpu()[timesteps].reshape(-1, 1, 1, 1)
    return alpha.sqrt() * latents.float().cpu() + (1.0 - alpha).sqrt() * noise


def _agreement(margin: Tensor, label: Tensor) -> Tensor:
    """1 where the sign of the margin is the label's, 1/2 where it is zero."""
    return 0.5 * (1.0 + torch.sign(margin) * torch.sign(label - 0.5))


def _texts(pairs: LatentPairs, rows: Tensor) -> list[str]:
    return [pairs.prompts[row] for row in rows.tolist()]


def _noise(shape: Sequence[int], *address: int) -> Tensor:
    return torch.randn(tuple(shape), generator=_generator(*address))


def _generator(*address: int) -> torch.Generator:
    value = 0
    for part in address:
        value = (value * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(value)


def _unfreeze(model: LatentRewardModel, text_encoders: bool) -> list[nn.Parameter]:
    """The parameters that are trained; SDXL's encoders have layers after the states that are used, which are not."""
    model.requires_grad_(False)
    for part in (model.trunk, model.heads, model.text if text_encoders else None):
        if part is not None:
            part.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _check(model: LatentRewardModel, alphas_cumprod: Tensor, config: LatentTrainingConfig) -> None:
    if config.train_text_encoders and model.config.text_encoders == "base":
        raise RewardModelError(
            "this reward model leans on its base's text encoders, which must stay as they are",
            found='text_encoders: "base" with train_text_encoders: true',
            fix='set train_text_encoders to false, or make the model with text_encoders="own"',
        )
    outside = [t for t in config.timesteps or () if not 0 <= t < len(alphas_cumprod)]
    if outside:
        raise RewardModelError(
            "training timesteps must lie in the noise schedule",
            found=f"{outside[:5]} of {len(alphas_cumprod)} timesteps",
        )
