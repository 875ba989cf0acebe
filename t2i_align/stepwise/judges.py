"""From a ``rollout.scorer`` section to a scorer: loading, and the checks that it speaks the policy's language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardModel, LatentSpace, TextTower
from reward_models.scorer import BaseScorer, torch_dtype
from reward_models.step_aware import StepAwareModel
from t2i_align.backbones import Backbone
from t2i_align.errors import UserError
from t2i_align.rewards.scorers import ScorerSpec, load_scorer, resolved
from t2i_align.stepwise.config import ScorerConfig
from t2i_align.stepwise.denoiser import GuidedDenoiser
from t2i_align.stepwise.scorers import Judge, LatentScorer, LrmScorer, PixelScorer, channel_mean
from t2i_align.stepwise.transition import TransitionKernel


class PictureJudge:
    """A picture scorer, which knows nothing of noise; differentiable."""

    def __init__(self, scorer: BaseScorer) -> None:
        self._scorer = scorer

    def __call__(self, texts: Sequence[str], pictures: Tensor, timesteps: Tensor) -> Tensor:
        return self._scorer.preference_scale * self._scorer.score_tensor(list(texts), pictures)


class FileJudge:
    """A picture scorer that only judges finished files of 8 bits, such as the oracle or a function of one's own."""

    def __init__(self, scorer: BaseScorer) -> None:
        self._scorer = scorer

    def __call__(self, texts: Sequence[str], pictures: Tensor, timesteps: Tensor) -> Tensor:
        bytes_ = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        scores = self._scorer.score(list(texts), [Image.fromarray(picture) for picture in bytes_])
        return self._scorer.preference_scale * scores.float()


class StepAwareJudge:
    """SPO's step-aware preference model: told how noisy the state was that the picture was predicted from."""

    def __init__(self, model: StepAwareModel) -> None:
        self._model = model

    def __call__(self, texts: Sequence[str], pictures: Tensor, timesteps: Tensor) -> Tensor:
        return self._model.score(pictures, timesteps, texts)


RUN_OF_A_RECIPE = re.compile(
    r"(?:.*/)?runs/(\w+)-(lrm|spm)/model/?"
)  # where configs/FAMILY/lrm.yaml and spm.yaml write


def check_judge(config: ScorerConfig) -> None:
    """Refuse a trained judge that is not there, before the model is loaded.

    Raises:
        UserError: no such folder; names the command that makes it.
    """
    folder = resolved(config.checkpoint)
    if config.name not in ("lrm", "spm") or folder is None or Path(folder).is_dir():
        return
    recipe = RUN_OF_A_RECIPE.fullmatch(str(folder))
    family, kind = (recipe[1], recipe[2]) if recipe else ("sdxl", config.name)
    makes = "makes it" if recipe else f"and its like make one (sd15, sdxl and shapes have {kind} recipes)"
    raise UserError(
        "The judge of the rollouts is not there.",
        f"rollout.scorer.checkpoint: {config.checkpoint}",
        f"t2i-align rewards train configs/{family}/{kind}.yaml {makes}; or set rollout.scorer.checkpoint to your own",
    )


def build_scorer(
    config: ScorerConfig, backbone: Backbone, denoiser: GuidedDenoiser, kernel: TransitionKernel
) -> LatentScorer:
    """The scorer of a ``rollout.scorer`` section.

    Raises:
        UserError: a checkpoint that cannot be loaded, or a latent reward model of another latent space.
    """
    if config.name == "channel_mean":
        return _checked_channel(config, backbone)
    try:
        if config.name == "lrm":
            return LrmScorer(_latent_model(config, backbone), config.timestep, config.candidates_per_pass)
        judge = _judge(config, backbone)
    except RewardModelError as error:
        raise UserError(f"rollout.scorer: {error.what}", error.found, error.fix) from error
    return PixelScorer(judge, denoiser, kernel, backbone, config.candidates_per_pass)


def _judge(config: ScorerConfig, backbone: Backbone) -> Judge:
    if config.name == "spm":
        folder = resolved(config.checkpoint)
        return StepAwareJudge(StepAwareModel.load(folder, backbone.device, torch_dtype(config.dtype)))
    options = {} if config.checkpoint is None else {"checkpoint": config.checkpoint}
    spec = ScorerSpec(str(config.reward), options)
    scorer = load_scorer(spec, str(backbone.device), config.dtype)
    return FileJudge(scorer) if not scorer.differentiable else PictureJudge(scorer)


def _checked_channel(config: ScorerConfig, backbone: Backbone) -> LatentScorer:
    if config.channel >= backbone.latent_channels:
        raise UserError(
            "rollout.scorer.channel does not exist.",
            f"channel {config.channel} of {backbone.latent_channels}",
            f"use 0 to {backbone.latent_channels - 1}",
        )
    return channel_mean(config.channel, config.sign)


def _latent_model(config: ScorerConfig, backbone: Backbone) -> LatentRewardModel:
    base = TextTower(backbone.text_encoders, backbone.tokenizers)
    folder = resolved(config.checkpoint)
    model = LatentRewardModel.load(folder, base, backbone.device, torch_dtype(config.dtype))
    space = model.config.latent_space
    ours = LatentSpace.measure(backbone.encode_image, backbone.alphas_cumprod)
    difference = "the reward model does not say which latents it reads" if space is None else space.difference(ours)
    if difference is not None:
        raise UserError(
            "The latent reward model and the policy must share one latent space.",
            f"{config.checkpoint}: {difference}",
            "use a latent reward model trained on latents of this model's VAE and noise schedule",
        )
    return model
