"""Statistics against hand-computed values, published tables and simulation."""

import math

import numpy as np
import pytest

from t2i_align.evaluation import statistics as st


def test_paired_outcomes_by_hand():
    outcomes = st.paired_outcomes(np.array([2.0, 1.0, 0.0, np.nan]), np.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(outcomes, [1.0, 0.5, 0.0, np.nan])


def test_tolerance_turns_small_differences_into_ties():
    outcomes = st.paired_outcomes(np.array([1.05, 1.2, 0.9]), np.ones(3), tolerance=0.1 + 1e-12)
    np.testing.assert_array_equal(outcomes, [0.5, 1.0, 0.5])


def test_unpaired_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        st.paired_outcomes(np.zeros(3), np.zeros(4))


def test_seeds_are_averaged_within_the_prompt_first():
    # Prompt 0 has three usable pictures, prompt 1 one, prompt 2 none: (1/3 + 1) / 2, not 2 of 4.
    scores = np.array([[1.0, 0.0, 0.0], [1.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(st.per_prompt(scores), [1 / 3, 1.0])
    assert st.mean(scores).value == pytest.approx(2 / 3)
    assert st.mean(scores).n == 2


def test_win_rate_counts_ties_as_half():
    rate = st.win_rate(np.array([1.0, 1.0, 0.0, 2.0]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert rate.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert st.tie_share(np.array([1.0, 1.0, np.nan]), np.array([0.0, 1.0, 1.0])) == pytest.approx(0.5)


def test_win_rate_is_antisymmetric():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 60, 2))
    forth, back = st.win_rate(a, b), st.win_rate(b, a)
    assert forth.value + back.value == pytest.approx(1.0)
    assert forth.low + back.high == pytest.approx(1.0, abs=0.02)


def test_interval_is_reproducible_and_shrinks_with_prompts():
    values = np.random.default_rng(1).normal(size=400)
    assert st.mean(values) == st.mean(values)
    wide, narrow = st.mean(values[:100]), st.mean(values)
    assert (wide.high - wide.low) > 1.5 * (narrow.high - narrow.low)


def test_both_ways_of_resampling_agree():
    """Outcomes repeated often are drawn as a multinomial; a hair of jitter forces the index path."""
    outcomes = np.repeat([0.0, 0.5, 1.0], [30, 10, 60])
    jittered = outcomes + np.random.default_rng(0).normal(scale=1e-9, size=100)
    fast, slow = st.bootstrap_means(outcomes, 20_000), st.bootstrap_means(jittered, 20_000)
    assert fast.mean() == pytest.approx(0.65, abs=0.002) and slow.mean() == pytest.approx(0.65, abs=0.002)
    expected = outcomes.std() / math.sqrt(100)
    assert fast.std() == pytest.approx(expected, rel=0.03) and slow.std() == pytest.approx(expected, rel=0.03)


def test_clean_sweep_of_few_prompts_is_not_certainty():
    rate = st.win_rate(np.ones(3), np.zeros(3))
    assert (rate.value, rate.high) == (1.0, 1.0)
    assert rate.low < 0.5  # three wins of three: p = 0.25
    assert st.win_rate(np.ones(20), np.zeros(20)).low > 0.8


def test_identical_models_tie_everywhere():
    scores = np.random.default_rng(2).normal(size=50)
    rate = st.win_rate(scores, scores)
    assert rate.value == 0.5 and not rate.excludes(0.5)
    assert st.tie_share(scores, scores) == 1.0


def test_no_usable_score_is_an_error():
    with pytest.raises(ValueError, match="no usable"):
        st.mean(np.array([np.nan, np.nan]))


@pytest.mark.parametrize(
    ("n", "low", "high"), [(500, 0.556, 0.642), (1632, 0.576, 0.624)], ids=["500 prompts", "PartiPrompts"]
)
def test_wilson_matches_the_table(n, low, high):
    assert st.wilson(0.6 * n, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_stays_inside_the_unit_interval():
    assert st.wilson(0, 10)[0] == 0.0
    assert st.wilson(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "prompts"), [(0.52, 4904), (0.55, 783), (0.58, 305), (0.60, 194)])
def test_minimum_detectable_win_rate_inverts_the_sample_size_table(rate, prompts):
    assert st.minimum_detectable_win_rate(prompts) == pytest.approx(rate, abs=2e-4)


def test_minimum_detectable_difference_by_hand():
    # sd of [1, -1, 1, -1] with n - 1 is sqrt(4/3); (1.960 + 0.8416) * 1.1547 / 2
    assert st.minimum_detectable_difference(np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(1.6175, abs=1e-3)
    assert st.minimum_detectable_difference(np.array([1.0])) == math.inf


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1 = 0.03, 0.04, 0.04.
    np.testing.assert_allclose(st.holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(st.holm([0.9, 0.8]), [1.0, 1.0])
    assert st.holm([]).shape == (0,)


def test_sign_flip_test_by_hand():
    # Five wins of five: two of 2^5 sign patterns are as extreme.
    assert st.sign_flip_p_value(np.full(5, 0.5)) == pytest.approx(2 / 32, abs=0.006)
    assert st.sign_flip_p_value(np.zeros(10)) == 1.0
    assert st.sign_flip_p_value(np.array([0.5, -0.5])) == 1.0


@pytest.mark.parametrize("prompts", [100, 500])
def test_win_rate_intervals_cover_the_truth(prompts):
    """95 % intervals hold the true win rate 93-97 % of the time (standard error here 0.5 points)."""
    generator = np.random.default_rng(prompts)
    simulations, truth = 2000, 0.60  # P(win) 0.55, P(tie) 0.10
    draws = generator.choice([1.0, 0.0, -1.0], p=[0.55, 0.10, 0.35], size=(simulations, prompts))
    held = 0
    for index, difference in enumerate(draws):
        rate = st.win_rate(difference, np.zeros(prompts), replicates=2000, seed=index)
        held += not rate.excludes(truth)
    assert 0.93 <= held / simulations <= 0.97


def test_mean_difference_intervals_cover_the_truth():
    generator = np.random.default_rng(7)
    simulations, prompts = 1000, 100
    held = 0
    for index in range(simulations):
        prompt_effect = generator.normal(size=(prompts, 1))
        tuned = prompt_effect + 0.2 + generator.normal(size=(prompts, 2))
        base = prompt_effect + generator.normal(size=(prompts, 2))
        held += not st.mean_difference(tuned, base, replicates=1000, seed=index).excludes(0.2)
    assert 0.93 <= held / simulations <= 0.97


def test_users_are_resampled_whole():
    values = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, np.nan])
    users = np.array(["anna", "anna", "ben", "ben", "ben", "cid", "dora"])  # dora's only prompt has no score
    assert st.usable_users(values, users).tolist() == [0, 0, 1, 1, 1, 2]
    estimate = st.mean(values, users=users, replicates=20_000)
    assert (estimate.value, estimate.n, estimate.users) == (0.5, 6, 3)
    means = st.bootstrap_means_over_users(st.per_prompt(values), st.usable_users(values, users), 20_000)
    ways = {0.0: 1, 1 / 7: 3, 1 / 4: 3, 1 / 2: 6, 1.0: 8}  # of the 27 ordered draws of three people
    for value, count in ways.items():
        assert np.mean(np.isclose(means, value)) == pytest.approx(count / 27, abs=0.015)
    alone = st.win_rate(np.ones(50), np.zeros(50), users=np.zeros(50))  # one person's fifty wins prove little
    assert alone.low < 0.5 < alone.high == 1.0


def test_intervals_over_users_cover_what_intervals_over_prompts_do_not():
    generator, hits = np.random.default_rng(3), {"users": 0, "prompts": 0}
    users = np.repeat(np.arange(40), 8)
    for trial in range(300):
        liking = np.repeat(generator.normal(size=40), 8)
        values = liking + 0.3 * generator.normal(size=320)
        hits["users"] += not st.mean(values, replicates=400, seed=trial, users=users).excludes(0.0)
        hits["prompts"] += not st.mean(values, replicates=400, seed=trial).excludes(0.0)
    assert hits["users"] / 300 > 0.9 > 0.7 > hits["prompts"] / 300


def test_signs_of_a_user_flip_together():
    differences, users = np.full(8, 0.5), np.repeat([0, 1], 4)
    assert st.sign_flip_p_value(differences) < 0.02
    assert st.sign_flip_p_value(differences, users=users) == pytest.approx(0.5, abs=0.02)  # two coins: 2 of 4 ways
    assert st.minimum_detectable_difference(np.array([1.0, 3.0, 0.0]), users=np.array([0, 0, 1])) == pytest.approx(
        st.minimum_detectable_difference(np.array([2.0, 0.0]))
    )


def test_only_value_sees_through_rounding_and_missing_scores():
    assert st.only_value(np.array([[0.0, np.nan], [0.0, 0.0]])) == 0.0
    assert st.only_value(np.array([20.0, 20.000002])) == 20.0  # 1e-7 of it: float32
    assert st.only_value(np.array([20.0, 20.001])) is None
    assert st.only_value(np.array([np.nan])) is None
