"""The parts of a noise-aware reward model's training that touch networks; see `t2i_align.rewards.noisy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from reward_models.latent import LatentRewardModel, LatentSpace, TextTower
from reward_models.latent_training import train_latent_reward
from reward_models.noisy_pairs import LatentPairs, Score, accuracy_by_timestep
from reward_models.noisy_training import Checkpoint, NoisyTrainingConfig
from reward_models.pickscore import load_pickscore
from reward_models.scorer import torch_device, torch_dtype
from reward_models.step_aware import StepAwareModel
from reward_models.step_aware_training import Predict, train_step_aware
from t2i_align.backbones import Backbone, load_backbone
from t2i_align.config.schema import DataConfig, ModelConfig
from t2i_align.data.cache import build_cache
from t2i_align.data.provider import open_readers
from t2i_align.data.reading import Reader
from t2i_align.data.transform import Geometry
from t2i_align.errors import UserError
from t2i_align.rewards.noisy import NoisyRewardConfig
from t2i_align.rewards.scorers import resolved
from t2i_align.stepwise.denoiser import GuidedDenoiser, PassCounter
from t2i_align.stepwise.transition import DdimKernel

Log = Callable[[int, int, dict[str, float]], None]
ENCODED_TOGETHER = 16


def run(config: NoisyRewardConfig, output_dir: Path, log: Log) -> tuple[Path, dict[int, float]]:
    """Train and save; returns the model's folder and its held-out accuracy by timestep."""
    backbone = load_base(config)
    train, heldout = load_pairs(config.data, config.seed, backbone)
    state = Checkpoint(output_dir / "state.pt", config.training.checkpointing_steps)
    folder = output_dir / "model"
    if config.scorer == "lrm":
        model = new_lrm(config, backbone)
        train_latent_reward(model, train, backbone.alphas_cumprod, settings(config), log, state)
        model.save(folder, "int8" if config.save_dtype == "int8" else torch_dtype(config.save_dtype))
        score: Score = model.score
    else:
        predict = predictor(backbone, config.spm.guidance_scale, config.data.resolution)
        judge = new_spm(config, backbone)
        train_step_aware(judge, train, predict, backbone.alphas_cumprod, settings(config), log, state)
        judge.save(folder, torch_dtype(config.save_dtype))

        def score(latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
            return judge.score(predict(latents, timesteps, prompts), timesteps, prompts)

    if heldout is None:
        return folder, {}
    checks = config.validation
    return folder, accuracy_by_timestep(
        score, heldout, backbone.alphas_cumprod, checks.timesteps, checks.draws, config.training.train_batch_size
    )


def settings(config: NoisyRewardConfig) -> NoisyTrainingConfig:
    """The training section as `reward_models` reads it."""
    values = config.training.model_dump(exclude={"checkpointing_steps"})
    timesteps = values.pop("timesteps")
    return NoisyTrainingConfig(**values, timesteps=None if timesteps is None else tuple(timesteps), seed=config.seed)


def load_base(config: NoisyRewardConfig) -> Backbone:
    """The base model, frozen, without adapters."""
    model = ModelConfig.model_validate({**config.model.model_dump(), "train": "full"})
    backbone = load_backbone(model, torch_device("auto"), torch.float32, needs_reference=False)
    backbone.unet.requires_grad_(False).eval()
    backbone.check_resolution(config.data.resolution)
    return backbone


def load_pairs(data: DataConfig, seed: int, backbone: Backbone) -> tuple[LatentPairs, LatentPairs | None]:
    """Training and held-out pairs as clean latents in memory, from the cache or encoded now."""
    if data.cache_dir is not None:
        build_cache(data, backbone)
    section: Any = SimpleNamespace(data=data, seed=seed)  # what of a run's configuration the readers look at
    training, heldout = open_readers(section, backbone)
    return encode_pairs(training), None if heldout is None else encode_pairs(heldout)


def encode_pairs(reader: Reader) -> LatentPairs:
    """Every pair of a reader; centre crops, no flips.

    Raises:
        UserError: pairs with a caption per picture.
    """
    source = reader.source
    if source.captions_differ:
        raise UserError(
            "Reward models compare pictures of one prompt.",
            f"{source.table.address} has a caption per picture",
            "train on data with one caption per pair",
        )
    sides: tuple[list[Tensor], list[Tensor]] = [], []
    for start in range(0, len(source), ENCODED_TOGETHER):
        rows = [reader.read(index, Geometry()) for index in range(start, min(start + ENCODED_TOGETHER, len(source)))]
        data = torch.stack([side.data for row in rows for side in row])
        latents = reader.latents(data).cpu()
        for number, kept in enumerate(sides):
            kept.append(latents[number::2])
    labels = torch.tensor(source.labels(), dtype=torch.float32)
    return LatentPairs(torch.cat(sides[0]), torch.cat(sides[1]), source.captions(), labels)


def new_lrm(config: NoisyRewardConfig, backbone: Backbone) -> LatentRewardModel:
    """An untrained latent reward model around the base's encoder half."""
    torch.manual_seed(config.seed)
    return LatentRewardModel.from_components(
        backbone.unet,
        TextTower(backbone.text_encoders, backbone.tokenizers),
        backbone.vae_scale_factor,
        LatentSpace.measure(backbone.encode_image, backbone.alphas_cumprod),
        **config.lrm.model_dump(),
    ).to(backbone.device)


def new_spm(config: NoisyRewardConfig, backbone: Backbone) -> StepAwareModel:
    """An untrained step-aware preference model around a PickScore-like scorer."""
    checkpoint = resolved(config.spm.checkpoint)
    scorer = load_pickscore(checkpoint=checkpoint, device=backbone.device, dtype=torch.float32)
    return StepAwareModel.from_scorer(scorer, config.seed)


def predictor(backbone: Backbone, guidance_scale: float, resolution: int) -> Predict:
    """Guided predictions of the base: noisy latents, timesteps and prompts to clean pictures in [0, 1]."""
    denoiser = GuidedDenoiser(backbone, guidance_scale, PassCounter())
    kernel = DdimKernel(backbone.alphas_cumprod, backbone.prediction_type)
    ids = backbone.time_ids((resolution, resolution), (0, 0), (resolution, resolution))

    @torch.no_grad()
    def predict(latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        latents = latents.to(backbone.device)
        distinct = list(dict.fromkeys(prompts))
        encoded = backbone.encode_prompt(distinct).index([distinct.index(prompt) for prompt in prompts])
        time_ids = None if ids is None else ids.expand(len(latents), -1)
        output = denoiser(latents, timesteps, encoded, time_ids)
        return backbone.decode(kernel.clean(output, latents, timesteps))

    return predict
