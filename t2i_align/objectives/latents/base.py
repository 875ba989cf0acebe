"""What the latents slot takes and gives: clean latents in, noisy ones and their regression target out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from t2i_align.objectives.base import Choice
from t2i_align.randomness import addressed_normal
from t2i_align.transfer import send

if TYPE_CHECKING:
    from t2i_align.backbones.embeddings import PromptEmbeddings

ALL_LAYOUTS = frozenset({"pair", "single", "labelled", "group", "ranked"})
LAGGING = "rollout"  # name of the snapshot that rollouts sample with


class Noiser(Protocol):
    """The part of a backbone that every choice needs."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


class Denoiser(Noiser, Protocol):
    """What choices that ask the network need on top."""

    @property
    def prediction_type(self) -> str: ...

    @property
    def alphas_cumprod(self) -> Tensor: ...

    @property
    def num_train_timesteps(self) -> int: ...

    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt: PromptEmbeddings, time_ids: Tensor | None = None
    ) -> Tensor: ...

    def empty_prompt(self, count: int) -> PromptEmbeddings: ...

    def inference(self, snapshot: str | None = None) -> AbstractContextManager[None]:
        """Passes of the policy, or of a snapshot of it, without gradients or dropout."""


class Lag(NamedTuple):
    """How the model that rollouts sample with follows the policy.

    Attributes:
        every: optimiser steps between updates.
        keep: share of the old weights that an update keeps; 0 copies the policy.
    """

    every: int
    keep: float = 0.0


@dataclass(frozen=True, eq=False)
class LatentRequest:
    """Clean latents of B items with G images each, image-major: all winners first, then all losers.

    Attributes:
        latents: ``[G * B, C, h, w]``, scaled.
        timesteps: ``[B]`` long, shared inside an item.
        ids: B item ids. epochs: B epoch numbers. draw: which repeat of the item. seed: of the run.
        prompt, time_ids: of the G * B images, for choices that ask the network.
    """

    latents: Tensor
    timesteps: Tensor
    ids: Sequence[str | int]
    epochs: Sequence[int]
    draw: int
    seed: int
    prompt: PromptEmbeddings | None = None
    time_ids: Tensor | None = None

    @property
    def images(self) -> int:
        """G, the number of images per item."""
        return self.latents.shape[0] // len(self.ids)

    @property
    def prompts(self) -> PromptEmbeddings:
        """``prompt``, where a choice cannot do without."""
        if self.prompt is None:
            raise ValueError("these latents ask the network, and the request holds no prompt")
        return self.prompt

    def noise(self, purpose: str, *which: int) -> Tensor:
        """``[B, C, h, w]`` float32; each item's is addressed by its epoch, id, draw and ``which``."""
        shape = self.latents.shape[1:]
        noise = torch.stack(
            [
                addressed_normal(shape, self.seed, purpose, epoch, item, self.draw, *which)
                for item, epoch in zip(self.ids, self.epochs, strict=True)
            ]
        )
        return send(noise, self.latents.device, self.latents.dtype)


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """What the network is asked: noisy latents, their timesteps ``[G * B]``, and the right answer."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


class Latents(Choice):
    """Base of the slot.

    ``layouts`` are the inputs it is defined on; ``asks_policy`` says that the answer depends on the weights;
    ``replaces_loser``, that the losers of the data are not looked at.
    """

    layouts: ClassVar[frozenset[str]] = ALL_LAYOUTS
    asks_policy: ClassVar[bool] = False
    replaces_loser: ClassVar[bool] = False

    @property
    def lag(self) -> Lag | None:
        """How its own copy of the policy is kept; None where it has none."""
        return None

    def check_schedule(self, snr: Tensor, prediction_type: str) -> None:
        """Raise UserError for a noise schedule ``[T]`` on which these latents are not defined."""

    def __call__(self, backbone: Denoiser, request: LatentRequest) -> NoisyLatents:
        raise NotImplementedError


def ask(
    backbone: Denoiser,
    noisy: Tensor,
    timesteps: Tensor,
    prompt: PromptEmbeddings,
    time_ids: Tensor | None,
    rows: Tensor,
) -> Tensor:
    """The network's output for some rows ``[R]`` (long) of a batch; to be called under `Denoiser.inference`."""
    ids = None if time_ids is None else time_ids[rows]
    return backbone.predict(noisy[rows], timesteps[rows], prompt.index(rows), ids)
