"""Decoupled cross-attention: a second attention to the user's tokens beside the one to the text (arXiv 2308.06721).

    out = W_o [ Attn(Q, K_text, V_text) + scale * g * Attn(Q, E W_k', E W_v') ] + b_o

Q and W_o are the base's. W_k' and W_v' have no bias, so the tokens of the null user, zeros, add exactly 0 whatever
was trained. The text half is computed by the processor that was there before (any kernel, any LoRA), untouched; only
the user's half is added to its result. Before training W_v' or g is 0 and the sum is the base bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from t2i_align.personal.config import Start

UserInput = tuple[Tensor, float]  # tokens [N, M, W] of the N rows of a batch, and the scale


class UserAttention(nn.Module):
    """Weights of one layer.

    The projections are not called ``to_k`` and ``to_v``: rules that pick LoRA targets by name must not find them.

    Args:
        width: W of the tokens.
        channels: of the layer's queries.
        start: see `PersonalConfig`.
    """

    def __init__(self, width: int, channels: int, start: Start) -> None:
        super().__init__()
        self.key = nn.Linear(width, channels, bias=False)
        self.value = nn.Linear(width, channels, bias=False)
        self.gate = nn.Parameter(torch.zeros(())) if start == "gate" else None
        if start == "values":
            nn.init.zeros_(self.value.weight)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Queries ``[N, heads, L, d]`` and tokens ``[N, M, W]`` to ``[N, L, heads d]``."""
        rows, heads, _, depth = query.shape
        tokens = tokens.to(self.key.weight.dtype)
        key = self.key(tokens).view(rows, -1, heads, depth).transpose(1, 2).to(query.dtype)
        value = self.value(tokens).view(rows, -1, heads, depth).transpose(1, 2).to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(rows, -1, heads * depth)
        return attended if self.gate is None else torch.tanh(self.gate).to(attended.dtype) * attended


class UserProcessor:
    """A diffusers attention processor: what was there before, plus attention to the user.

    The tokens travel in ``cross_attention_kwargs`` under ``ip_hidden_states``, diffusers' word for the tokens of a
    decoupled branch: other processors ignore it in silence, and gradient checkpointing recomputes with the same tokens.

    Args:
        base: the processor of the text.
        layer: weights; registered with the adapter, not with the processor.
    """

    def __init__(self, base: Any, layer: UserAttention) -> None:
        self.base, self.layer = base, layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_hidden_states: UserInput | None = None,
    ) -> Tensor:
        """``[N, L, C]``, as diffusers calls it."""
        output = self.base(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            temb=temb,
        )
        if ip_hidden_states is None:
            return output
        tokens, scale = ip_hidden_states
        query = attn.to_q(hidden_states)
        query = query.view(*query.shape[:2], attn.heads, -1).transpose(1, 2)
        user = _without_bias(attn.to_out[0], self.layer(query, tokens))
        return output + scale * user / attn.rescale_output_factor


def _without_bias(projection: nn.Module, hidden: Tensor) -> Tensor:
    """W_o x: the bias is already in the text's half. Wrapped layers (LoRA) keep what they add to W_o."""
    if type(projection) is nn.Linear:
        return F.linear(hidden, projection.weight)
    projected = projection(hidden)
    bias = getattr(projection, "bias", None)
    return projected if bias is None else projected - bias.to(projected.dtype)
