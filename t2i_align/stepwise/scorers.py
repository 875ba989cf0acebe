"""Who ranks the candidates of a sampler step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.latent import LatentRewardModel, LatentSpace, TextTower
from reward_models.scorer import BaseScorer, torch_dtype
from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.errors import UserError
from t2i_align.stepwise.config import ScorerConfig
from t2i_align.stepwise.denoiser import GuidedDenoiser
from t2i_align.stepwise.transition import TransitionKernel


@dataclass(frozen=True, eq=False)
class Candidates:
    """M states to be compared: K candidates of N prompts, candidate by candidate (M = K N).

    Attributes:
        latents: ``[M, C, h, w]``.
        parents, children: ``[M]`` long timesteps; a child of -1 is the clean end.
        texts: M prompts.
        prompt: the policy's own embeddings of them.
        time_ids: ``[M, 6]`` or None.
    """

    latents: Tensor
    parents: Tensor
    children: Tensor
    texts: Sequence[str]
    prompt: PromptEmbeddings
    time_ids: Tensor | None

    def __len__(self) -> int:
        return len(self.latents)

    def chunks(self, size: int) -> list[Candidates]:
        """At most ``size`` states each."""
        return [self._rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def _rows(self, rows: slice) -> Candidates:
        ids = None if self.time_ids is None else self.time_ids[rows]
        prompt = self.prompt.index(rows)
        return Candidates(self.latents[rows], self.parents[rows], self.children[rows], self.texts[rows], prompt, ids)


@dataclass(frozen=True, eq=False)
class Scored:
    """What a scorer found.

    Attributes:
        scores: ``[M]`` in logit units.
        outputs: guided outputs of the policy at the candidates ``[M, C, h, w]``, where the scorer had to ask for
            them: the next sampler step needs the one it goes on from.
    """

    scores: Tensor
    outputs: Tensor | None = None


class LatentScorer(Protocol):
    """Anything that ranks noisy latents; ``sigmoid(S_a - S_b)`` is the probability that a is preferred."""

    def __call__(self, candidates: Candidates) -> Scored: ...


class FunctionScorer:
    """A plain function of the latents, for checks: ``[M, C, h, w] -> [M]``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def __call__(self, candidates: Candidates) -> Scored:
        return Scored(self._function(candidates.latents).float())


def channel_mean(channel: int, sign: int) -> FunctionScorer:
    """Prefers states whose mean of one latent channel is high (sign 1) or low (-1), in units of its random spread.

    What is learnt is then visible without any reward model: pictures drift along that channel.
    """

    def score(latents: Tensor) -> Tensor:
        values = latents[:, channel].flatten(1)
        return sign * values.mean(1) * values.shape[1] ** 0.5

    return FunctionScorer(score)


class LrmScorer:
    """A latent reward model; it reads prompts with its own text encoders.

    Args:
        model: frozen.
        at: the timestep it is told: the candidate's own (``child``), or its parent's, as the published runs did.
        batch_size: candidates per pass.
    """

    def __init__(self, model: LatentRewardModel, at: str, batch_size: int) -> None:
        self._model, self._at, self._batch_size = model, at, batch_size

    @torch.no_grad()
    def __call__(self, candidates: Candidates) -> Scored:
        parts = []
        for part in candidates.chunks(self._batch_size):
            timesteps = part.parents if self._at == "parent" else part.children.clamp(min=0)
            parts.append(self._model.score(part.latents, timesteps, part.texts))
        return Scored(torch.cat(parts).to(candidates.latents.device))


class PixelScorer:
    """A picture scorer on the clean picture the policy predicts from each candidate (SPO, TailorPO).

    Needs a network pass and a VAE decoding per candidate; the passes are handed back, since sampling goes on from
    one of them.

    Args:
        scorer: of pictures in [0, 1].
        denoiser, kernel, backbone: predict and decode.
        batch_size: candidates per pass.
    """

    def __init__(
        self,
        scorer: BaseScorer,
        denoiser: GuidedDenoiser,
        kernel: TransitionKernel,
        backbone: Backbone,
        batch_size: int,
    ) -> None:
        self._scorer, self._denoiser, self._kernel, self._backbone = scorer, denoiser, kernel, backbone
        self._batch_size = batch_size

    @torch.no_grad()
    def __call__(self, candidates: Candidates) -> Scored:
        last = bool((candidates.children <= 0).any())
        scores, outputs = [], []
        for part in candidates.chunks(self._batch_size):
            clean = part.latents
            if not last:
                with self._denoiser.purpose("scoring"):
                    output = self._denoiser(part.latents, part.children, part.prompt, part.time_ids)
                clean = self._kernel.clean(output, part.latents, part.children)
                outputs.append(output)
            pictures = self._backbone.decode(clean)
            scores.append(self._scorer.preference_scale * self._scorer.score_tensor(list(part.texts), pictures))
        found = torch.cat(scores).float().to(candidates.latents.device)
        return Scored(found, None if last else torch.cat(outputs))


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
        from reward_models.registry import load

        scorer = load(str(config.reward), config.checkpoint, backbone.device, config.dtype)
    except RewardModelError as error:
        raise UserError(f"rollout.scorer: {error.what}", error.found, error.fix) from error
    return PixelScorer(scorer, denoiser, kernel, backbone, config.candidates_per_pass)


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
    folder = resolve_checkpoint(str(config.checkpoint))
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


def resolve_checkpoint(address: str) -> str:
    """A local folder as it is; ``shapes:`` addresses through the embedded world's assets."""
    if not address.startswith("shapes:"):
        return address
    from t2i_align.shapes import assets

    return str(assets.resolve(address))
