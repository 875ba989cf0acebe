"""Who ranks the candidates of a sampler step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from reward_models.latent import LatentRewardModel
from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
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

    batch_size: int

    def __call__(self, candidates: Candidates) -> Scored:
        """Scores, differentiable in the latents where gradients are on."""
        ...


def score_all(scorer: LatentScorer, candidates: Candidates) -> Scored:
    """Scores without gradients, ``scorer.batch_size`` candidates at a time."""
    with torch.no_grad():
        parts = [scorer(part) for part in candidates.chunks(scorer.batch_size)]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    scores = torch.cat([part.scores for part in parts]).float().to(candidates.latents.device)
    return Scored(scores, torch.cat(outputs) if len(outputs) == len(parts) else None)


def score_gradient(scorer: LatentScorer, candidates: Candidates) -> Tensor:
    """Gradient of every score with respect to its own latents ``[M, C, h, w]``."""
    gradients = []
    for part in candidates.chunks(scorer.batch_size):
        with torch.enable_grad():
            latents = part.latents.detach().requires_grad_()
            total = scorer(replace(part, latents=latents)).scores.sum()
            gradients.append(torch.autograd.grad(total, latents)[0])
    return torch.cat(gradients)


class FunctionScorer:
    """A plain function of the latents, for checks: ``[M, C, h, w] -> [M]``."""

    def __init__(self, function: Callable[[Tensor], Tensor], batch_size: int = 1024) -> None:
        self._function, self.batch_size = function, batch_size

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
        self._model, self._at, self.batch_size = model, at, batch_size

    def __call__(self, candidates: Candidates) -> Scored:
        timesteps = candidates.parents if self._at == "parent" else candidates.children.clamp(min=0)
        return Scored(self._model.score(candidates.latents, timesteps, candidates.texts))


class Judge(Protocol):
    """Rates predicted clean pictures ``[M, 3, H, W]`` in [0, 1]; ``[M]`` logits."""

    def __call__(self, texts: Sequence[str], pictures: Tensor, timesteps: Tensor) -> Tensor: ...


class PixelScorer:
    """A judge of pictures on the clean picture the policy predicts from each candidate (SPO, TailorPO).

    Needs a network pass and a VAE decoding per candidate; the passes are handed back, since sampling goes on from
    one of them. Candidates of the last step are clean (but for the noise left at timestep 0) and are decoded as they
    are.

    Args:
        judge: of pictures.
        denoiser, kernel, backbone: predict and decode.
        batch_size: candidates per pass.
    """

    def __init__(
        self, judge: Judge, denoiser: GuidedDenoiser, kernel: TransitionKernel, backbone: Backbone, batch_size: int
    ) -> None:
        self._judge, self._denoiser, self._kernel, self._backbone = judge, denoiser, kernel, backbone
        self.batch_size = batch_size

    def __call__(self, candidates: Candidates) -> Scored:
        output, clean = None, candidates.latents
        if not (candidates.children <= 0).any():
            with self._denoiser.purpose("scoring"):
                output = self._denoiser(clean, candidates.children, candidates.prompt, candidates.time_ids)
            clean = self._kernel.clean(output, clean, candidates.children)
        pictures = self._backbone.codec.decode_with_gradient(clean)
        if not torch.is_grad_enabled():
            pictures = pictures.clamp(0.0, 1.0)
        scores = self._judge(list(candidates.texts), pictures, candidates.children.clamp(min=0))
        return Scored(scores.to(candidates.latents.device), output)
