"""What a latent reward model is trained with: preferences as a two-way softmax, with ties and prompt weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from reward_models.errors import unknown_name

Contrast = Literal["pair", "batch", "both"]


def preference_loss(
    image_0: Tensor,
    image_1: Tensor,
    text: Tensor,
    scale: Tensor | float,
    label_0: Tensor,
    contrast: Contrast = "pair",
    batch_weight: float = 1.0,
) -> Tensor:
    """Per-pair loss ``[B]``.

    With ``s_k = scale <image_k, text>`` and y the probability that picture 0 is preferred::

        pair:  y sp(s_1 - s_0) + (1 - y) sp(s_0 - s_1) - H(y)
        batch: half of [the pictures' cross-entropy over all texts + the texts' over all 2B pictures - H(y)]

    The entropy H(y) is a constant that puts the optimum of every soft label at exactly 0; for a tie it is log 2. In the
    second line only a text has to divide its probability between two pictures.

    Args:
        image_0, image_1: ``[B, D]`` unit vectors of the two pictures.
        text: ``[B, D]`` unit vectors of their prompts.
        scale: exp(logit_scale).
        label_0: ``[B]`` y in [0, 1]; 0.5 is a tie.
        contrast: against the other picture, against the whole (local) batch, or ``pair + batch_weight * batch``.
        batch_weight: of the second term of ``both``.
    """
    if contrast not in get_args(Contrast):
        raise unknown_name("contrast", contrast, get_args(Contrast))
    label = label_0.to(image_0.dtype)
    loss = torch.zeros_like(label)
    if contrast != "batch":
        loss = loss + _against_the_other(image_0, image_1, text, scale, label)
    if contrast != "pair":
        factor = 1.0 if contrast == "batch" else batch_weight
        loss = loss + factor * _against_the_batch(image_0, image_1, text, scale, label)
    return loss


def prompt_weights(examples_per_prompt: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """``[B]`` weights ``(1 / n_i) / sum_j (1 / n_j)``: every prompt counts alike, however many rows it has.

    Args:
        examples_per_prompt: ``[B]`` n, rows of the data set with this row's prompt.
        gather: ``[B] -> [P B]`` over P processes, so that the weights sum to 1 over the global batch.
    """
    inverse = 1.0 / examples_per_prompt.to(torch.get_default_dtype())
    total = (inverse if gather is None else gather(inverse)).sum()
    return inverse / total


def _against_the_other(image_0: Tensor, image_1: Tensor, text: Tensor, scale: Tensor | float, label: Tensor) -> Tensor:
    margin = scale * ((image_0 - image_1) * text).sum(-1)
    return label * softplus(-margin) + (1.0 - label) * softplus(margin) - _entropy(label)


def _against_the_batch(image_0: Tensor, image_1: Tensor, text: Tensor, scale: Tensor | float, label: Tensor) -> Tensor:
    count, own = len(text), torch.arange(len(text), device=text.device)
    pictures = torch.cat([image_0, image_1])
    similarity = scale * pictures @ text.T  # [2B, B]
    over_texts = log_softmax(similarity, dim=1)
    over_pictures = log_softmax(similarity, dim=0)
    first, second = own, own + count
    by_text = label * over_texts[first, own] + (1.0 - label) * over_texts[second, own]
    by_picture = label * over_pictures[first, own] + (1.0 - label) * over_pictures[second, own]
    return -0.5 * (by_text + by_picture + _entropy(label))


def _entropy(label: Tensor) -> Tensor:
    """``-y log y - (1 - y) log(1 - y)``, 0 at the ends."""
    return -(torch.xlogy(label, label) + torch.xlogy(1.0 - label, 1.0 - label))
