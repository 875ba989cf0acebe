"""The cross-modal part of MPS: image tokens read the prompt's tokens, four times.

Names follow the published checkpoint, `layers.{l}.0.fn.*` for the cross block and `layers.{l}.1.fn.*` for the self
block, so its weights load without translation. Both blocks run attention and feed-forward in parallel on one
normalised input, and have one key/value head shared by all query heads. In symbols, with x [N, I, D] the image
tokens, T [N, L, D] the prompt tokens and h heads of size d:

    cross:  y = norm(x);  [k | v] = T W_kv;  x <- x + softmax(y W_q k^T / sqrt(d) + mask) v W_o + ff(y)
    self:   [q | k | v | f] = norm(x) W_f;   x <- x + softmax(rot(q) rot(k)^T / sqrt(d)) v W_a + ff(f)
    ff:     [u | g] -> (silu(g) * u) W_2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the fusion module; the defaults are the published ones."""

    dim: int = 1024
    layer_num: int = 4
    heads: int = 16
    dim_head: int = 64
    ff_mult: int = 4


class GainNorm(nn.Module):
    """Layer norm whose bias is a stored buffer of zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias.to(self.weight.dtype), eps=1e-5)


class SwiGLU(nn.Module):
    """[u | g] to silu(g) * u; the gate is the second half."""

    def forward(self, x: Tensor) -> Tensor:
        values, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * values


class RotaryFrequencies(nn.Module):
    """Holds the stored frequencies and turns positions into angles, always in float32."""

    def __init__(self, dim_head: int) -> None:
        super().__init__()
        exponents = torch.arange(0, dim_head, 2).float() / dim_head
        self.register_buffer("inv_freq", 1.0 / (10000**exponents))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x [N, h, I, d], halves against each other; a token's index is its position, CLS 0."""
        positions = torch.arange(x.shape[-2], device=x.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(positions, self.inv_freq)
        angles = torch.cat([angles, angles], dim=-1)
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x * angles.cos() + rotated * angles.sin()).to(x.dtype)


class CrossBlock(nn.Module):
    """Image tokens attend to the unmasked prompt tokens."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.norm = GainNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * config.dim_head, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(config.dim, 2 * config.ff_mult * config.dim, bias=False),
            SwiGLU(),
            nn.Linear(config.ff_mult * config.dim, config.dim, bias=False),
        )

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(x)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        attended = shared_head_attention(split_heads(self.to_q(y), self.heads), key, value, mask[:, None, None, :])
        return self.to_out(attended) + self.ff(y)


class SelfBlock(nn.Module):
    """Image tokens attend to each other with rotary positions; one projection feeds both branches."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        inner, hidden = config.heads * config.dim_head, config.ff_mult * config.dim
        self.heads = config.heads
        self.splits = (inner, config.dim_head, config.dim_head, 2 * hidden)
        self.norm = GainNorm(config.dim)
        self.rotary_emb = RotaryFrequencies(config.dim_head)
        self.fused_attn_ff_proj = nn.Linear(config.dim, sum(self.splits), bias=False)
        self.attn_out = nn.Linear(inner, config.dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(hidden, config.dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(x)).split(self.splits, dim=-1)
        query = self.rotary_emb(split_heads(query, self.heads))
        key = self.rotary_emb(key[:, None])[:, 0]
        return self.attn_out(shared_head_attention(query, key, value, None)) + self.ff_out(hidden)


class Branch(nn.Module):
    """Wraps a block as `fn`, the name under which the checkpoint stores it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn


class CrossModel(nn.Module):
    """The whole fusion module, `cross_model.*` of the checkpoint."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Branch(CrossBlock(config)), Branch(SelfBlock(config))]) for _ in range(config.layer_num)
        )

    def forward(self, image_tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Fused image tokens.

        Args:
            image_tokens: [N, I, D], CLS first.
            context: [N, L, D] projected prompt tokens, not normalised.
            mask: [N, L], bool (which prompt tokens may be read, at least one per row) or an additive bias.
        """
        x = image_tokens
        for cross, own in self.layers:
            x = x + cross.fn(x, context, mask)
            x = x + own.fn(x)
        return x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, I, h * d] to [N, h, I, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def shared_head_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of h query heads [N, h, I, d] over one key/value head [N, L, d]; returns [N, I, h * d]."""
    shape = (-1, query.shape[1], -1, -1)
    attended = F.scaled_dot_product_attention(
        query, key[:, None].expand(shape), value[:, None].expand(shape), attn_mask=mask
    )
    return attended.transpose(1, 2).flatten(2)
