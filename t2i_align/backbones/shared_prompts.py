"""Several pictures of one prompt in a batch: the prompt goes through cross-attention once, not once per picture.

Pictures of a prompt stand side by side in the denoiser's batch, and the prompt's states come once for all of them.
Their positions then attend as if they were one long picture: attention over a prompt treats every position alone.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor


class SharedPrompt:
    """A diffusers attention processor around another one.

    Args:
        inner: whatever computes the attention, with any kernel.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any
    ) -> Tensor:
        """``[G * B, N, C]`` with B prompts ``[B, L, D]``; G is 1 in sampling."""
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or encoder_hidden_states.shape[0] == rows:
            return self.inner(attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **options)
        prompts, channels = encoder_hidden_states.shape[0], hidden_states.shape[-1]
        together = hidden_states.reshape(prompts, -1, channels)
        result = self.inner(attn, together, encoder_hidden_states=encoder_hidden_states, **options)
        return result.reshape(rows, -1, result.shape[-1])


def share_prompts(unet: UNet2DConditionModel) -> None:
    """Let every cross-attention layer take fewer prompts than pictures, in place."""
    processors = {
        name: SharedPrompt(processor) if name.endswith("attn2.processor") else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)


def side_by_side(tensor: Tensor, pictures: int) -> Tensor:
    """``[G * B, ...]`` picture-major (all first pictures, then all second ones) to prompt-major."""
    return tensor.unflatten(0, (pictures, -1)).transpose(0, 1).flatten(0, 1)


def apart(tensor: Tensor, pictures: int) -> Tensor:
    """The way back."""
    return tensor.unflatten(0, (-1, pictures)).transpose(0, 1).flatten(0, 1)
