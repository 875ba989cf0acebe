"""The guided denoiser of rollouts and step losses, and the count of what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings


@dataclass
class PassCounter:
    """Rows that went through the network: one row is one UNet pass of one latent.

    Guidance doubles rows. Recomputation under gradient checkpointing is not counted.

    Attributes:
        rollout: forward passes that sampled.
        scoring: forward passes that predicted clean pictures for a scorer.
        train_forward: forward passes of policy and reference in the loss.
        train_backward: rows whose gradient was taken.
        pairs: accepted pairs that were trained on.
    """

    rollout: int = 0
    scoring: int = 0
    train_forward: int = 0
    train_backward: int = 0
    pairs: int = 0

    def tensor(self) -> Tensor:
        """``[5]`` long, for storing and for sums over processes."""
        return torch.tensor([getattr(self, field.name) for field in fields(self)])

    def restore(self, values: Tensor) -> None:
        """Take what :meth:`tensor` gave."""
        for field, value in zip(fields(self), values.tolist(), strict=True):
            setattr(self, field.name, int(value))


class GuidedDenoiser:
    """The policy (or, inside ``backbone.reference()``, the reference) with classifier-free guidance.

    Args:
        backbone: what is denoised.
        guidance_scale: s in ``u + s (c - u)`` of the outputs; 1 and below make a single conditional pass.
        counter: where rows are counted.
    """

    def __init__(self, backbone: Backbone, guidance_scale: float, counter: PassCounter) -> None:
        self._backbone, self._scale, self._counter = backbone, guidance_scale, counter
        self._empty: PromptEmbeddings | None = None
        self._purpose = "rollout"

    @property
    def rows_per_state(self) -> int:
        """Rows through the network per latent."""
        return 2 if self._scale > 1.0 else 1

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Count passes inside under ``rollout``, ``scoring`` or ``train``."""
        before, self._purpose = self._purpose, name
        try:
            yield
        finally:
            self._purpose = before

    def __call__(self, latents: Tensor, timesteps: Tensor, prompt: PromptEmbeddings, time_ids: Tensor | None) -> Tensor:
        """Guided output ``[N, C, h, w]`` float32.

        Args:
            latents: ``[N, C, h, w]``.
            timesteps: ``[N]`` long.
            prompt: N prompts.
            time_ids: ``[N, 6]`` or None.
        """
        timesteps = timesteps.to(latents.device)
        if self.rows_per_state == 1:
            return self._counted(self._backbone.predict(latents, timesteps, prompt, time_ids))
        both = self._unconditional(len(latents)).cat(prompt)
        ids = None if time_ids is None else time_ids.repeat(2, 1)
        output = self._backbone.predict(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), both, ids)
        unconditional, conditional = self._counted(output).chunk(2)
        return unconditional + self._scale * (conditional - unconditional)

    def _unconditional(self, count: int) -> PromptEmbeddings:
        if self._empty is None:
            self._empty = self._backbone.empty_prompt(1)
        return self._empty.repeat(count)

    def _counted(self, output: Tensor) -> Tensor:
        rows, counter = len(output), self._counter
        if self._purpose != "train":
            setattr(counter, self._purpose, getattr(counter, self._purpose) + rows)
            return output
        counter.train_forward += rows
        if output.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                counter.train_backward += rows

            output.register_hook(count_backward)
        return output
