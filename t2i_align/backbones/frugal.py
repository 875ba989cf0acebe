"""Layers that keep less for the backward pass than torch's own, with the same numbers and the same parameter names."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn import functional as F


class _InputGradient(torch.autograd.Function):
    """A convolution whose weight gets no gradient. torch's own saves the input for that gradient all the same."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = inputs.shape, how
        return F.conv2d(inputs, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        left_over = [  # rows and columns at the end that no step of the stride reached
            size - ((out - 1) * step - 2 * pad + spread * (kernel - 1) + 1)
            for size, out, kernel, step, pad, spread in zip(
                ctx.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
            )
        ]
        found = F.conv_transpose2d(gradient, weight, None, stride, padding, left_over, groups, dilation)
        return found, None, None, None, None, None, None


class FrozenConv2d(nn.Conv2d):
    """A convolution that never trains and keeps no input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H', W']``."""
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            return super().forward(inputs)
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        weight, bias = self.weight.to(inputs.dtype), None if self.bias is None else self.bias.to(inputs.dtype)
        return _InputGradient.apply(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class _GatedGelu(torch.autograd.Function):
    """``h * gelu(g)`` of ``[..., h | g]``. torch keeps gelu(g) too, a third more, which is cheap to compute again."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        hidden, gate = projected.chunk(2, dim=-1)
        return hidden * F.gelu(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (projected,) = ctx.saved_tensors
        hidden, gate = projected.chunk(2, dim=-1)
        through_gate = torch.ops.aten.gelu_backward(gradient * hidden, gate)
        return torch.cat([gradient * F.gelu(gate), through_gate], dim=-1)


class FrugalGEGLU(GEGLU):
    """The gate of a transformer's feed-forward layer; keeps what it projected and nothing else."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[..., D]`` to ``[..., E]``."""
        return _GatedGelu.apply(self.proj(hidden_states))


def keep_less(network: nn.Module) -> None:
    """Exchange in place what can keep less: gates, and convolutions whose weights are frozen."""
    for module in network.modules():
        if type(module) is GEGLU:
            module.__class__ = FrugalGEGLU
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = FrozenConv2d
