"""The latent reward model's loss: the published code's numbers and its fixed points."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_models.errors import RewardModelError
from reward_models.latent_loss import preference_loss, prompt_weights

GOLDEN = Path(__file__).parents[1] / "data/golden/latent_reward"
CASES = [case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"] if case["kind"] == "lrm_loss"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_losses(case):
    given = {name: value.double() for name, value in load_file(GOLDEN / "lrm_criterion.safetensors").items()}
    stored, params = load_file(GOLDEN / "expected.safetensors"), case["params"]
    vectors = {name: given[name].requires_grad_() for name in ("image_0", "image_1", "text")}
    per_pair = preference_loss(
        **vectors,
        scale=params["scale"],
        label_0=given["label_0"],
        contrast=params["loss_type"],
        batch_weight=params["batch_coeff"],
    )
    loss = (per_pair * prompt_weights(given["num_examples_per_prompt"]).double()).sum()
    assert loss.item() == pytest.approx(case["expected"]["loss"]["rederived"], rel=3e-7)
    loss.backward()
    for name, vector in vectors.items():
        wanted = stored[case["expected"][f"grad_{name}"]["tensor"]].double()
        assert (vector.grad - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def unit_vectors(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_equal_scores_cost_log_2_and_a_tie_nothing():
    torch.manual_seed(0)
    image, text = unit_vectors(2, 8), unit_vectors(2, 8)
    loss = preference_loss(image, image, text, 14.3, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([math.log(2), 0.0], dtype=torch.float64))


def test_swapping_pictures_and_labels_changes_nothing():
    torch.manual_seed(0)
    first, second, text = unit_vectors(5, 8), unit_vectors(5, 8), unit_vectors(5, 8)
    label = torch.tensor([1.0, 0.0, 0.5, 0.7, 0.2], dtype=torch.float64)
    for contrast in ("pair", "batch", "both"):
        forward = preference_loss(first, second, text, 10.0, label, contrast)
        backward = preference_loss(second, first, text, 10.0, 1 - label, contrast)
        torch.testing.assert_close(forward, backward)


def test_a_soft_label_is_met_exactly_at_zero_loss():
    """P(0 over 1) = 0.7 at margin log(0.7 / 0.3), where the loss has its minimum, 0."""
    text, zero = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    label = torch.tensor([0.7], dtype=torch.float64)
    scale = torch.tensor(math.log(0.7 / 0.3), dtype=torch.float64, requires_grad=True)
    loss = preference_loss(text, zero, text, scale, label)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and scale.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_pairs_do_not_see_each_other_unless_asked():
    torch.manual_seed(0)
    first, second, text = unit_vectors(4, 8), unit_vectors(4, 8), unit_vectors(4, 8)
    label = torch.ones(4)
    pair = preference_loss(first, second, text, 10.0, label)
    torch.testing.assert_close(pair[:1], preference_loss(first[:1], second[:1], text[:1], 10.0, label[:1]))
    with pytest.raises(RewardModelError, match="did you mean 'pair'"):
        preference_loss(first, second, text, 10.0, label, contrast="pairs")


def test_prompt_weights_sum_to_one_over_all_processes():
    counts = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(prompt_weights(counts), torch.tensor([4 / 7, 2 / 7, 1 / 7]))
    other = torch.tensor([4.0])
    both = prompt_weights(counts, lambda mine: torch.cat([mine, 1 / other]))
    rest = prompt_weights(other, lambda mine: torch.cat([mine, 1 / counts]))
    assert both.sum() + rest.sum() == pytest.approx(1.0)
