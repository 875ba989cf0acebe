"""Preference losses on tensors: no model, no data, every formula testable by hand.

Labels are probabilities: `label_a` [B] in [0, 1] that picture a is preferred, 0.5 for a tie. A tie's cross entropy
cannot fall below log 2; PickScore subtracts that constant so that the optimum of every hard label and tie is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_pair_losses(scores_a: Tensor, scores_b: Tensor, label_a: Tensor) -> Tensor:
    """Cross entropy of the softmax over two logits, with ties' log 2 removed; elementwise, same shape.

    loss = -label_a log p_a - (1 - label_a) log p_b - [label_a = 1/2] log 2,   p_a = sigmoid(s_a - s_b)
    """
    margin = scores_a - scores_b
    losses = label_a * F.softplus(-margin) + (1 - label_a) * F.softplus(margin)
    return losses - math.log(2) * (label_a == 0.5).to(losses.dtype)


def in_batch_losses(text: Tensor, image_a: Tensor, image_b: Tensor, scale: Tensor | float, label_a: Tensor) -> Tensor:
    """PickScore's criterion with in-batch negatives, per pair, [B].

    The softmax of text b runs over all 2B pictures, and each picture's over all B texts; the two are averaged.

    Args:
        text, image_a, image_b: unit features [B, D] of prompts and pictures.
        scale: exp(logit_scale).
        label_a: [B], see module docstring.
    """
    logits_a, logits_b = scale * text @ image_a.T, scale * text @ image_b.T
    own = torch.arange(len(text), device=text.device)
    label_b = 1 - label_a
    over_images = torch.cat([logits_a, logits_b], dim=1)
    from_text = label_a * F.cross_entropy(over_images, own, reduction="none")
    from_text = from_text + label_b * F.cross_entropy(over_images, own + len(text), reduction="none")
    from_text = from_text - math.log(2) * (label_a == 0.5).to(from_text.dtype)
    from_image = label_a * F.cross_entropy(logits_a.T, own, reduction="none")
    from_image = from_image + label_b * F.cross_entropy(logits_b.T, own, reduction="none")
    return (from_text + from_image) / 2


def hps_losses(scores_a: Tensor, scores_b: Tensor, label_a: Tensor) -> Tensor:
    """HPS v2's ranking loss per pair, [B]: cross entropy of the softmax over the pair, ties left at log 2."""
    margin = scores_a - scores_b
    return label_a * F.softplus(-margin) + (1 - label_a) * F.softplus(margin)


def listwise_losses(scores: Tensor, valid: Tensor, best: Tensor) -> Tensor:
    """HPS v1's loss per prompt, [G]: cross entropy of the softmax over its pictures against the chosen one.

    Args:
        scores: logits [G, K], padded.
        valid: bool [G, K], which entries are pictures.
        best: index [G] of the chosen picture.
    """
    return F.cross_entropy(scores.masked_fill(~valid, float("-inf")), best, reduction="none")


def multi_dimension_losses(scores_a: Tensor, scores_b: Tensor, labels_a: Tensor) -> Tensor:
    """MPS's loss per pair, [B]: the mean of the pair losses of the dimensions whose label is known.

    Args:
        scores_a, scores_b: logits [B, C] under C conditions.
        labels_a: [B, C], NaN where the dimension was not labelled.
    """
    known = ~labels_a.isnan()
    losses = soft_pair_losses(scores_a, scores_b, labels_a.nan_to_num(0.5)) * known
    return losses.sum(-1) / known.sum(-1).clamp(min=1)


def weighted_mean(losses: Tensor, weights: Tensor, total_weight: Tensor | None = None) -> Tensor:
    """sum_b w_b l_b / sum_b w_b; `total_weight` replaces the local sum by that of the global batch."""
    total = weights.sum() if total_weight is None else total_weight
    return (weights * losses).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)
