"""Training losses against the official criteria and by hand."""

import math

import numpy as np
import pytest
import torch

from reward_models.training.losses import (
    hps_losses,
    in_batch_losses,
    listwise_losses,
    multi_dimension_losses,
    soft_pair_losses,
    weighted_mean,
)
from tests.reward_models.golden import arrays, expected


def criterion(in_batch_negatives):
    data = arrays("pickscore")
    text, image_a, image_b = (
        torch.tensor(data[f"crit_{name}"], requires_grad=True) for name in ("text", "image_0", "image_1")
    )
    scale = torch.tensor(expected("pickscore")["criterion"]["logit_scale_multiplier"], requires_grad=True)
    label_a = torch.tensor(data["crit_label_0"])
    weights = 1 / torch.tensor(data["crit_num_examples_per_prompt"])
    if in_batch_negatives:
        losses = in_batch_losses(text, image_a, image_b, scale, label_a)
    else:
        losses = soft_pair_losses(scale * (text * image_a).sum(-1), scale * (text * image_b).sum(-1), label_a)
    return weighted_mean(losses, weights), (text, image_a, image_b, scale)


@pytest.mark.parametrize(("key", "negatives"), [("pairwise", False), ("in_batch_negatives", True)])
def test_pickscore_criterion_and_gradients(key, negatives):
    golden = expected("pickscore")["criterion"][key]
    loss, inputs = criterion(negatives)
    assert float(loss.detach()) == pytest.approx(golden["loss"], abs=1e-5)
    gradients = torch.autograd.grad(loss, inputs)
    for name, gradient in zip(("text", "image_0", "image_1"), gradients[:3], strict=True):
        np.testing.assert_allclose(gradient, arrays("pickscore")[f"crit_{key}_grad_{name}"], rtol=0, atol=1e-4)
    assert float(gradients[3]) == pytest.approx(golden["grad_logit_scale_multiplier"], abs=1e-5)


def test_hps_ranking_loss():
    golden = expected("hpsv2")["losses"]["hps_loss"]
    logits = torch.tensor(golden["text_logits"])
    count = len(logits)
    labels = torch.tensor(golden["labels_concat_label0_then_label1"])
    own = torch.arange(count)
    losses = hps_losses(logits[own, own], logits[own, own + count], labels[:count])
    assert float(losses.sum()) == pytest.approx(golden["loss_sum"], abs=1e-5)


def test_hps_v1_listwise_loss():
    """Row g scores all pictures against prompt g; the pictures of prompt g lie consecutively."""
    golden = expected("hpsv2")["losses"]["preference_loss_hps_v1_style"]
    logits, counts = torch.tensor(golden["logits_per_image"]), golden["num_images"]
    scores = torch.zeros(len(counts), max(counts))
    valid = torch.zeros(len(counts), max(counts), dtype=torch.bool)
    first = 0
    for group, count in enumerate(counts):
        scores[group, :count] = logits[first : first + count, group]
        valid[group, :count] = True
        first += count
    losses = listwise_losses(scores, valid, torch.tensor(golden["label_best_index"]))
    assert float(losses.mean()) == pytest.approx(golden["loss_mean"], abs=1e-5)


def test_soft_pair_loss_by_hand():
    """Margin log 3 means p_a = 3/4."""
    a, b = torch.full((4,), math.log(3.0)), torch.zeros(4)
    labels = torch.tensor([1.0, 0.0, 0.5, 0.25])
    by_hand = [
        -math.log(0.75),
        -math.log(0.25),
        -0.5 * math.log(0.75 * 0.25) - math.log(2),
        -0.25 * math.log(0.75) - 0.75 * math.log(0.25),
    ]
    torch.testing.assert_close(soft_pair_losses(a, b, labels), torch.tensor(by_hand))


def test_optimum_is_zero_for_wins_and_ties():
    large = torch.tensor([40.0, 0.0, -40.0])
    losses = soft_pair_losses(large, torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(losses, torch.zeros(3), atol=1e-6, rtol=0)


def test_swapping_sides_changes_nothing():
    a, b, label = torch.randn(6), torch.randn(6), torch.tensor([0, 1, 0.5, 0.2, 0.9, 1])
    torch.testing.assert_close(soft_pair_losses(a, b, label), soft_pair_losses(b, a, 1 - label))
    torch.testing.assert_close(hps_losses(a, b, label), hps_losses(b, a, 1 - label))


def test_unknown_dimensions_do_not_count():
    a = torch.tensor([[1.0, 5.0], [2.0, -1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    losses = multi_dimension_losses(a, torch.zeros(2, 2), labels)
    softplus = torch.nn.functional.softplus
    expected_losses = torch.stack([softplus(-a[0, 0]), (softplus(a[1, 0]) + softplus(-a[1, 1])) / 2])
    torch.testing.assert_close(losses, expected_losses)
    losses.sum().backward()
    assert a.grad[0, 1] == 0 and torch.isfinite(a.grad).all()


def test_weighted_mean():
    losses, weights = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 0.0])
    assert weighted_mean(losses, weights) == 1.5
    assert weighted_mean(losses, weights, total_weight=torch.tensor(4.0)) == 0.75
