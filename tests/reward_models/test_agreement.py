"""Agreement, ranking accuracy, dominance and labels by hand and against the official protocols."""

import math

import numpy as np
import pytest

from reward_models import RewardModelError
from reward_models.agreement import agree, rank_accuracy, scores_to_ranks, strict_pair_accuracy
from reward_models.dominance import MPCF, DominanceRule, dominance_mask, mpo_rule
from reward_models.labels import label_pairs, mean_probability, rank_gains
from tests.reward_models.golden import expected

RANKINGS = expected("hpsv2")["ranking_accuracy"]


@pytest.mark.parametrize("case", RANKINGS)
def test_official_ranking_accuracies(case):
    scores, true = case["pred_scores"], case["gt_rank_no_ties"]
    reference = case["hpsv2_inversion_score_rank_vs_rank"]
    assert rank_accuracy(case["pred_rank_0_is_best"], true) == pytest.approx(reference)
    by_scores = rank_accuracy(scores_to_ranks(scores), true)
    assert by_scores == pytest.approx(case["mps_hpd_inversion_score_scores_vs_rank"])
    right, total = strict_pair_accuracy(scores, case["gt_rank_with_ties"])
    assert right / total == pytest.approx(case["imagereward_style_accuracy_ties_skipped"])


def test_agreement_by_hand():
    """a: right, right, wrong, predicted tie; the last pair is a labelled tie."""
    margins = {"a": [1.0, -2.0, -1.0, 0.0, 3.0], "b": [2.0, -1.0, 1.0, 1.0, 0.0]}
    result = agree(margins, [1, 0, 1, 1, 0.5], groups=["p", "p", "q", "q", "r"], replicates=200)
    assert (result.pairs, result.untied_pairs, result.groups) == (5, 4, 3)
    assert result.accuracy["a"].value == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)
    assert result.untied_accuracy["a"].value == pytest.approx(2.5 / 4)
    assert result.accuracy["b"].value == 1.0 and result.accuracy["b"].low == 1.0
    assert result.tau["b"].value > result.tau["a"].value
    assert result.between_accuracy[0, 1] == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)
    np.testing.assert_array_equal(result.between_accuracy, result.between_accuracy.T)
    np.testing.assert_allclose(np.diag(result.between_tau), 1.0)
    table = result.table()
    assert "5 pairs, 4 untied, 3 prompts" in table and "| b | 1.000 [1.000, 1.000] |" in table


def test_interval_covers_the_truth_and_uses_the_groups():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    margin = np.where(right, 1.0, -1.0) * rng.uniform(0.5, 1.5, 400)
    single = agree({"a": margin}, np.ones(400), replicates=500, seed=1).accuracy["a"]
    # Normal approximation of a proportion: half-width 1.96 sqrt(p (1 - p) / n).
    half = 1.96 * math.sqrt(single.value * (1 - single.value) / 400)
    assert single.low == pytest.approx(single.value - half, abs=0.01)
    assert single.high == pytest.approx(single.value + half, abs=0.01)
    doubled = agree({"a": np.tile(margin, 4)}, np.ones(1600), groups=list(range(400)) * 4, replicates=500, seed=1)
    assert doubled.accuracy["a"].low == pytest.approx(single.low, abs=0.01)  # copies are no new evidence


def test_heat_map(tmp_path):
    rng = np.random.default_rng(0)
    result = agree({name: rng.normal(size=20) for name in "abc"}, rng.integers(0, 2, 20), replicates=10)
    result.heat_map(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_agreement_refuses_nonsense():
    with pytest.raises(RewardModelError, match="finite and one per pair"):
        agree({"a": [1.0, float("nan")]}, [1, 0])
    with pytest.raises(RewardModelError, match="at least one scorer"):
        agree({}, [1, 0])


def test_pareto_dominance_by_hand():
    a = {"x": [1, 1, 1, 0, 1, 2], "y": [1, 0, 0, 0, 0, 2]}
    b = {"x": [0, 1, 0, 1, 0, 2], "y": [0, 0, 1, 0, 0, 2]}
    label = [1, 1, 1, 0, 0.5, 1]
    # better on both; equal (not strict); mixed; b wins and is better on x; a tie; equal
    kept = dominance_mask(a, b, label, mpo_rule(["x", "y"]))
    assert kept.tolist() == [True, False, False, True, False, False]


def test_dominance_is_irreflexive_antisymmetric_and_transitive():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 3, (30, 2)).astype(float)
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(30), np.arange(30), indexing="ij"))
    a = {"x": points[first, 0], "y": points[first, 1]}
    b = {"x": points[second, 0], "y": points[second, 1]}
    beats = dominance_mask(a, b, np.ones(900), mpo_rule(["x", "y"])).reshape(30, 30)
    assert not beats.diagonal().any()
    assert not (beats & beats.T).any()
    assert not ((beats.astype(int) @ beats.astype(int) > 0) & ~beats).any()


def test_mpcf_strategies_are_nested_and_ties_have_their_own_rule():
    rng = np.random.default_rng(1)
    names = ("aesthetic", "clip_score", "vqa_score")
    a, b = ({name: rng.normal(size=2000) for name in names} for _ in range(2))
    label = rng.choice([0, 0.5, 1], 2000)
    kept = [dominance_mask(a, b, label, MPCF[strategy]) for strategy in (1, 2, 3)]
    won = label != 0.5
    assert (kept[0][won] <= kept[1][won]).all() and (kept[1][won] <= kept[2][won]).all()
    assert kept[0].sum() < kept[1].sum() < kept[2].sum()
    close = np.all([np.abs(a[n] - b[n]) <= band for n, band in MPCF[2].tie_band.items()], axis=0)
    np.testing.assert_array_equal(kept[1][~won], close[~won])


def test_swapping_sides_keeps_the_same_pairs():
    rng = np.random.default_rng(2)
    a, b = {"x": rng.normal(size=50)}, {"x": rng.normal(size=50)}
    label = rng.choice([0, 0.5, 1], 50)
    rule = DominanceRule({"x": 0.1}, tie_band={"x": 0.5})
    np.testing.assert_array_equal(dominance_mask(a, b, label, rule), dominance_mask(b, a, 1 - label, rule))


def test_dominance_refuses_nonsense():
    with pytest.raises(RewardModelError, match="needs scores of 'y'"):
        dominance_mask({"x": [1]}, {"x": [0]}, [1], mpo_rule(["x", "y"]))
    with pytest.raises(RewardModelError, match="at least 0"):
        DominanceRule({"x": -1})
    with pytest.raises(RewardModelError, match="must name the scorers"):
        DominanceRule({"x": 0}, tie_band={"y": 0})
    assert dominance_mask({"x": [np.nan]}, {"x": [0]}, [1], mpo_rule(["x"])).tolist() == [False]


def test_labels_by_hand():
    labels = label_pairs([2.0, 1.0, 3.0], [1.0, 1.0, 5.0], preference_scale=math.log(3))
    np.testing.assert_allclose(labels.margin, [1, 0, -2])
    np.testing.assert_allclose(labels.probability_a, [0.75, 0.5, 0.1])
    assert labels.label_a.tolist() == [1, 0.5, 0]
    other = label_pairs([0, 0, 0], [1000, 0, -1000], preference_scale=1.0)
    np.testing.assert_allclose(other.probability_a, [0, 0.5, 1], atol=1e-12)
    mean = mean_probability({"a": labels, "b": other}, {"a": 3, "b": 1})
    np.testing.assert_allclose(mean, [0.5625, 0.5, 0.325])
    with pytest.raises(RewardModelError, match="finite"):
        label_pairs([math.nan], [0], 1.0)


def test_rank_gains_by_hand():
    """Judge 1 ranks x > y > z, judge 2 x = y > z: wins 3.5, 2.5, 0 of 4."""
    np.testing.assert_allclose(rank_gains([[3, 2, 1], [5, 5, 0]]), [3.5 / 4, 2.5 / 4, 0])
    assert rank_gains([[1.0, 1.0]]).tolist() == [0.5, 0.5]
    with pytest.raises(RewardModelError, match="judges"):
        rank_gains([[1.0]])
