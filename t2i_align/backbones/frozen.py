"""Frozen convolutions that keep no input: a gradient for what lies before them needs their weight alone."""

from __future__ import annotations

from typing import Any

import torch
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
        return torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, *ctx.how), None, None, *[None] * len(ctx.how)


class FrozenConv2d(nn.Conv2d):
    """A convolution that never trains; same numbers, same parameter names."""

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H', W']``."""
        if not (torch.is_grad_enabled() and inputs.requires_grad) or self.padding_mode != "zeros":
            return super().forward(inputs)
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        weight, bias = self.weight.to(inputs.dtype), None if self.bias is None else self.bias.to(inputs.dtype)
        return _InputGradient.apply(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def keep_no_inputs(network: nn.Module) -> None:
    """Turn every convolution of `network` whose weights are frozen into one that keeps no input, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = FrozenConv2d
