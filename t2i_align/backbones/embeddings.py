"""What a text encoder hands to the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_align.transfer import send


@dataclass
class PromptEmbeddings:
    """B encoded prompts.

    Attributes:
        hidden: ``[B, L, D]`` per-token states for cross-attention.
        pooled: ``[B, P]`` pooled state (SDXL), or None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PromptEmbeddings:
        """The same prompts on another device or in another dtype."""
        return self._map(lambda tensor: send(tensor, tensor.device if device is None else device, dtype))

    def cat(self, *others: PromptEmbeddings) -> PromptEmbeddings:
        """These prompts followed by those of `others`; all must have (or all lack) a pooled state."""
        everyone = [self, *others]
        hidden = torch.cat([one.hidden for one in everyone])
        pooled = [one.pooled for one in everyone if one.pooled is not None]
        if len(pooled) not in (0, len(everyone)):
            raise ValueError("prompts with and without a pooled state cannot be joined")
        return PromptEmbeddings(hidden, torch.cat(pooled) if pooled else None)

    def repeat(self, times: int) -> PromptEmbeddings:
        """The whole batch `times` times, one after another: ``[B, ...] -> [times * B, ...]``."""
        return self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))

    def for_pictures(self, count: int) -> PromptEmbeddings:
        """A prompt for each of `count` pictures, a multiple of B: the batch again and again."""
        return self if count == len(self) else self.repeat(count // len(self))

    def index(self, rows: Tensor | slice | list[int]) -> PromptEmbeddings:
        """The prompts at `rows` (long or bool tensor, slice or list)."""
        return self._map(lambda tensor: tensor[rows])

    def where(self, keep: Tensor, other: PromptEmbeddings) -> PromptEmbeddings:
        """Row by row: this prompt where `keep` ``[B]`` is true, the prompt of `other` (B rows, or one) elsewhere."""
        keep = keep.to(device=self.hidden.device, dtype=torch.bool)
        hidden = torch.where(keep[:, None, None], self.hidden, other.hidden)
        if self.pooled is None:
            return PromptEmbeddings(hidden)
        if other.pooled is None:
            raise ValueError("prompts with and without a pooled state cannot be mixed")
        return PromptEmbeddings(hidden, torch.where(keep[:, None], self.pooled, other.pooled))

    def _map(self, function: Callable[[Tensor], Tensor]) -> PromptEmbeddings:
        return PromptEmbeddings(function(self.hidden), None if self.pooled is None else function(self.pooled))
