"""What a text encoder hands to the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PromptEmbeddings:
    """Encoded prompts.

    Attributes:
        hidden: ``[B, L, D]`` per-token states for cross-attention.
        pooled: ``[B, P]`` pooled state (SDXL), or None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PromptEmbeddings:
        """The same prompts on another device or in another dtype."""
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return PromptEmbeddings(self.hidden.to(device=device, dtype=dtype), pooled)
