"""Guidance away from a negative model: it answers the unconditional half of classifier-free guidance.

``eps = eps_neg(x_t, c_neg) + g (eps(x_t, c) - eps_neg(x_t, c_neg))``, Diffusion-NPO, arXiv 2505.11245.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t2i_align.backbones.lora_files import put_on, updates_of
from t2i_align.errors import UserError

# What two denoisers must share to take the same inputs.
SHARED = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type")


def attach(pipeline: Any, negative: nn.Module) -> None:
    """Let ``pipeline.unet`` ask another denoiser about the first, unconditional half of its batch.

    Args:
        pipeline: of the positive model; guidance must be on, or there is no first half.
        negative: a UNet of the same inputs, on the same device.

    Raises:
        UserError: the two take different inputs.
    """
    positive = pipeline.unet
    different = [name for name in SHARED if positive.config.get(name) != negative.config.get(name)]
    if different:
        found = "; ".join(f"{name} {positive.config.get(name)} and {negative.config.get(name)}" for name in different)
        raise UserError("The negative model takes other inputs than the model.", found, "give one of the same family")
    own_forward = positive.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        half = len(sample) // 2
        added = options.pop("added_cond_kwargs", None)
        options.pop("return_dict", None)
        answers = []
        for network, rows in ((negative, slice(None, half)), (own_forward, slice(half, None))):
            given = None if added is None else {name: value[rows] for name, value in added.items()}
            answers.append(
                network(
                    sample[rows],
                    timestep,
                    encoder_hidden_states[rows],
                    *args,
                    added_cond_kwargs=given,
                    return_dict=False,
                    **options,
                )[0]
            )
        return (torch.cat(answers),)

    positive.forward = forward


@torch.no_grad()
def merge(negative: nn.Module, positive: nn.Module, base: nn.Module, share: float) -> None:
    """Give the negative model ``share`` of what the positive one learnt: ``neg += share (pos - base)``, in place.

    Two models trained apart differ in more than what they were trained for, and guidance amplifies all of it; with the
    positive change in both, only the negative one is between them. The published share is 1.

    A LoRA that the positive model wears (in half precision, where merging it would round it away) is worn by the
    negative one too, at ``share`` of its strength; whole weights are added up in float32 and rounded once.

    Raises:
        UserError: a DoRA in half precision, whose change is no sum.
    """
    worn = updates_of(positive)
    both = {**worn, **updates_of(negative)}
    if worn and any(layer.magnitude is not None for layer in both.values()):
        raise UserError(
            "A DoRA cannot be merged into a negative model in half precision.",
            f"negative_merge {share:g} with adapters that are not merged into their base",
            "use --dtype fp32, where they are",
        )
    changed, initial = _plain(positive), _plain(base)
    for name, parameter in _plain(negative).items():
        parameter.copy_(parameter.float() + share * (changed[name].float() - initial[name].float()))
    if worn:
        put_on(negative, {name: replace(layer, scale=share * layer.scale) for name, layer in worn.items()}, "positive")


def _plain(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a network under the names they have without adapters."""
    named = network.named_parameters()
    return {name.replace(".base_layer.", "."): parameter for name, parameter in named if ".lora_" not in name}
