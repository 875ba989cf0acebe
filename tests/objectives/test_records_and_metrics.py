"""What goes in is checked, what comes out is logged under the promised names."""

from __future__ import annotations

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.objectives import PairErrors, build
from t2i_align.objectives.logits.grouped import discounted_gain_weights
from t2i_align.objectives.weights import Curriculum
from tests.objectives.records import by_hand, random_record

ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"policy_loser": torch.ones(2)}, "policy_loser must be"),
        ({"policy_loser": ONES.half()}, "must be float32"),
        ({"reference_winner": torch.ones(3, 1)}, "reference_winner must be"),
        ({"weights": torch.ones(1)}, r"weights must be \[3\]"),
        ({"labels": torch.ones(3, 1)}, r"labels must be \[3\]"),
        ({"margins": {"clip": torch.ones(2)}}, "margins\\['clip'\\] must be"),
        ({"scores": torch.ones(3)}, r"scores must be \[3, 2\]"),
    ],
)
def test_shapes_are_checked(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PairErrors(ONES, **fields)


def test_more_than_two_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="policy_winner must be"):
        PairErrors(torch.ones(2, 3, 4))


def test_layouts_are_checked() -> None:
    with pytest.raises(ValueError, match="takes the layout 'pair'"):
        build("dpo")(PairErrors(*[torch.ones(2, 3)] * 4))
    with pytest.raises(ValueError, match="takes the layout 'group'"):
        build("mdpo")(PairErrors(*[ONES] * 4))


def test_odd_groups_cannot_be_halved() -> None:
    with pytest.raises(UserError, match="halves each group"):
        build("mipo", link="unbiased_square")(PairErrors(*[torch.ones(2, 3)] * 4))


@pytest.mark.parametrize(("preset", "missing"), [("gapo", "scores"), ("madpo", "margins"), ("ternary", "labels")])
def test_missing_data_are_named(preset: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"objective '{preset}' needs {missing}"):
        build(preset)(random_record(build("dpo")))


def test_margins_by_name() -> None:
    margins = {"clip": torch.tensor([0.5]), "aesthetic": torch.tensor([2.0])}
    record = by_hand(0.28, 0.41, 0.30, 0.40, margins=margins)
    logit = {"preference_weight": 0.5, "margin_weights": {"clip": 0.2, "aesthetic": 0.3}}
    out = build("modpo", beta=100, logit=logit)(record)
    assert out.metrics["logit"].item() == pytest.approx((1.5 - 0.1 - 0.6) / 0.5)
    with pytest.raises(UserError, match="must be told which reward margin"):
        build("madpo")(record)
    with pytest.raises(UserError, match="unknown reward margin"):
        build("madpo", margin="pick")(record)
    assert build("madpo", margin="clip")(record).loss.shape == (1,)


def test_dpo_metrics() -> None:
    out = build("dpo", beta=100)(by_hand(0.28, 0.41, 0.30, 0.40))
    assert set(out.metrics) == {
        "e_w", "e_l", "r_w", "r_l", "d_w", "d_l", "margin", "logit", "implicit_accuracy",
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    }  # fmt: skip
    assert all(value.shape == (1,) and not value.requires_grad for value in out.metrics.values())


def test_a_tie_counts_as_half_right() -> None:
    record = by_hand(0.25, 0.5, 0.25, 0.5)
    for name in ("dpo", "kto", "hinge"):
        assert build(name)(record).metrics["implicit_accuracy"].item() == 0.5


def test_errors_are_logged_before_timestep_weights() -> None:
    objective = build("dpo", timestep={"weighting": "noise_level"})
    record = random_record(objective)
    assert torch.equal(objective(record).metrics["e_w"], record.policy_winner)


def test_a_reference_free_margin_is_the_difference_of_errors() -> None:
    record = by_hand(0.28, 0.41, 0.0, 0.0)
    out = build("simpo")(PairErrors(record.policy_winner, record.policy_loser))
    assert out.metrics["margin"].item() == pytest.approx(0.13)
    assert "d_w" not in out.metrics and "r_w" not in out.metrics


def test_discounted_gains_of_four() -> None:
    """Scores .95, .6, .4, .05: swapping first and last costs 0.7364, second and third 0.0371."""
    weights = discounted_gain_weights(torch.tensor([[0.95, 0.6, 0.4, 0.05]], dtype=torch.float64))[0]
    assert weights[0, 3].item() == pytest.approx(0.7364, abs=1e-4)
    assert weights[1, 2].item() == pytest.approx(0.0371, abs=1e-4)
    assert torch.equal(weights, weights.T)


def test_curriculum_only_adds_pairs() -> None:
    curriculum = Curriculum(stages=4, until=0.5)
    stages = [curriculum.stage(step, 80) for step in range(0, 81, 10)]
    assert stages == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    difficulty = torch.linspace(0, 1, 101)
    seen = [
        curriculum.raw(PairErrors(torch.ones(101), difficulty=difficulty, step=step, max_steps=80)).sum().item()
        for step in (0, 10, 20, 30)
    ]
    assert seen == [25, 50, 75, 101]


def test_dpo_shift_schedule() -> None:
    shifted = build("dpo_shift", lam=0.6, schedule="increase").slots.logit
    assert [shifted.current(step, 10) for step in (0, 5, 10, 20)] == pytest.approx([0.6, 0.8, 1.0, 1.0])
    falling = build("dpo_shift", lam=0.6, schedule="decrease")
    assert [falling.slots.logit.current(step, 10) for step in (0, 10)] == pytest.approx([1.0, 0.6])
    with pytest.raises(UserError, match="needs max_steps"):
        falling(random_record(build("dpo")))
