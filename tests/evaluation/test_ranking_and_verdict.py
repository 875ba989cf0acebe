"""Bradley-Terry strengths and the sentences made from intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest

from t2i_align.evaluation.ranking import bradley_terry, elo
from t2i_align.evaluation.statistics import Estimate
from t2i_align.evaluation.verdict import MIN_UNITS, Evidence, judge, judge_all, judge_control, percent, span


def test_two_models_have_the_log_odds_of_the_wins():
    theta = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), pseudo_wins=0.0)
    assert theta[0] - theta[1] == pytest.approx(math.log(3))
    assert theta.sum() == pytest.approx(0.0)


def test_three_models_recover_known_strengths():
    truth = np.array([0.7, 0.0, -0.7])
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    wins = 1000 * chance * (1 - np.eye(3))
    np.testing.assert_allclose(bradley_terry(wins, pseudo_wins=0.0), truth, atol=1e-8)


def test_swapping_models_swaps_strengths_and_doubling_rows_changes_nothing():
    wins = np.array([[0.0, 8.0, 5.0], [2.0, 0.0, 6.0], [5.0, 4.0, 0.0]])
    order = [2, 0, 1]
    swapped = bradley_terry(wins[np.ix_(order, order)])
    np.testing.assert_allclose(swapped, bradley_terry(wins)[order], atol=1e-9)
    np.testing.assert_allclose(bradley_terry(2 * wins, pseudo_wins=0), bradley_terry(wins, pseudo_wins=0), atol=1e-9)


def test_a_model_that_only_wins_stays_finite_and_ties_are_equal():
    assert np.isfinite(bradley_terry(np.array([[0.0, 10.0], [0.0, 0.0]]))).all()
    np.testing.assert_allclose(bradley_terry(np.array([[0.0, 5.0], [5.0, 0.0]])), 0.0, atol=1e-12)


def test_disconnected_models_are_refused():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 5.0
    with pytest.raises(ValueError, match="never compared"):
        bradley_terry(wins)


def test_elo_is_anchored_and_its_intervals_hold_the_point():
    generator = np.random.default_rng(0)
    shifts = {"base": 0, "mid": 0.5, "good": 1.5}
    scores = {name: generator.normal(loc=shift, size=(200, 1)) for name, shift in shifts.items()}
    table = elo(scores, "base", replicates=500)
    assert list(table) == ["base", "mid", "good"]
    assert (table["base"].low, table["base"].value, table["base"].high) == (1000.0, 1000.0, 1000.0)
    assert 1000 < table["mid"].low < table["mid"].value < table["mid"].high < table["good"].value
    shuffled = elo({name: values[::-1] for name, values in scores.items()}, "base", replicates=500)
    assert shuffled["good"].value == pytest.approx(table["good"].value)


@pytest.mark.parametrize(
    ("rate", "p", "kind", "start"),
    [
        (Estimate(0.74, 0.68, 0.80, 200), 0.001, "better", "tuned is better than base"),
        (Estimate(0.74, 0.68, 0.80, 200), 0.051, "inconclusive", "No evidence of improvement"),
        (Estimate(0.56, 0.499, 0.62, 200), 0.04, "inconclusive", "No evidence of improvement"),
        (Estimate(0.56, 0.5, 0.62, 200), 0.04, "inconclusive", "No evidence of improvement"),
        (Estimate(0.30, 0.24, 0.36, 200), 0.001, "worse", "tuned is worse than base"),
        (Estimate(0.30, 0.24, 0.36, 200), 0.3, "inconclusive", "No evidence of improvement"),
    ],
)
def test_verdict_needs_the_interval_and_the_corrected_p_value(rate, p, kind, start):
    verdict = judge("tuned", "base", Evidence(rate, p, 3, 200), "oracle overall")
    assert "after Holm's correction for 3 comparisons" in verdict.sentence
    assert verdict.kind == kind
    assert verdict.headline.startswith(start)
    assert "200 prompts" in verdict.sentence and "95 % interval" in verdict.sentence


def test_control_verdicts():
    flat, won = (
        Evidence(Estimate(0.5, 0.43, 0.57, 200), 1.0, 1, 200),
        Evidence(Estimate(0.6, 0.53, 0.67, 200), 0.3, 1, 200),
    )
    gap = Evidence(Estimate(0.7, 0.63, 0.77, 200), 0.001, 1, 200)
    assert judge_control("shuffled", "base", flat, "tuned", gap).kind == "better"
    few = judge_control("shuffled", "base", replace(flat, units=4), "tuned", gap)
    assert (few.kind, few.headline) == (
        "inconclusive",
        "The control: too few prompts for a verdict (4 of 20)",
    )
    silent = judge_control("shuffled", "base", replace(flat, constant=0.0), "tuned", gap)
    assert silent.headline == "No verdict on the control: the judge gave every picture the same score (0.000)"
    assert judge_control("shuffled", "base", won, "tuned").kind == "worse"
    assert judge_control("shuffled", "base", flat, "tuned", flat).kind == "inconclusive"


def test_percentages_never_hide_the_side_of_a_half():
    assert percent(0.743) == "74 %"
    assert percent(0.503) == "50.3 %"
    assert percent(0.5) == "50 %"
    assert percent(0.998) == "99.8 %"
    assert span(Estimate(0.7, 0.681, 0.802, 9)) == "68 to 80 %"


def test_several_models_get_one_verdict_that_survives_the_correction():
    def rate(value, half):
        return Estimate(value, value - half, value + half, 100, 0.95)

    rates = {"dpo": rate(0.7, 0.1), "sft": rate(0.52, 0.1), "lucky": rate(0.6, 0.09), "ppd": rate(0.3, 0.1)}
    adjusted = {"dpo": 0.001, "sft": 1.0, "lucky": 0.09, "ppd": 0.002}
    found = {name: Evidence(rates[name], adjusted[name], 4, 100) for name in rates}
    verdict = judge_all("base", found, "oracle overall")
    assert verdict.kind == "better"
    assert verdict.headline == ("dpo is better than base; no evidence of improvement of sft and lucky; ppd is worse")
    assert "over 100 prompts, with 95 % intervals" in verdict.sentence and "correction for 4" in verdict.sentence
    none = judge_all("base", {"a": found["sft"], "b": found["lucky"]}, "x")
    assert (none.kind, none.headline) == ("inconclusive", "No evidence of improvement of a and b")
    worse = judge_all("base", {"ppd": found["ppd"]}, "x")
    assert (worse.kind, worse.headline) == ("worse", "ppd is worse than base")
    few = judge_all("base", {"dpo": found["dpo"], "new": replace(found["sft"], units=4)}, "x")
    assert few.headline == "dpo is better than base; new: too few prompts for a verdict (4 of 20)"
    silent = judge_all("base", {name: replace(one, constant=0.0) for name, one in found.items()}, "x")
    assert silent.headline.startswith(
        "No verdict on dpo, sft, lucky and ppd: the judge gave every picture the same score"
    )
    assert silent.sentence.endswith("same score (0.000): it says nothing about these pictures.")


def test_too_few_prompts_are_no_verdict_however_clear():
    sure = Estimate(1.0, 0.9, 1.0, 19)
    verdict = judge("tuned", "base", Evidence(sure, 0.0001, 1, MIN_UNITS - 1))
    assert (verdict.kind, verdict.headline) == (
        "inconclusive",
        "tuned: too few prompts for a verdict (19 of 20)",
    )
    assert judge("tuned", "base", Evidence(sure, 0.0001, 1, MIN_UNITS)).kind == "better"
    people = judge("tuned", "base", Evidence(replace(sure, n=500, users=4), 0.0001, 1, 4))
    assert "too few users for a verdict (4 of 20)" in people.headline


def test_a_judge_that_tells_no_picture_apart_is_no_basis():
    tie = Evidence(Estimate(0.5, 0.42, 0.58, 128), 1.0, 1, 128, constant=0.0)
    verdict = judge("tuned", "base", tie, "oracle overall")
    assert verdict.kind == "inconclusive"
    assert verdict.sentence == (
        "By oracle overall, the judge gave every picture the same score (0.000): it says nothing about these pictures."
    )


def test_the_smallest_number_lets_unanimous_prompts_through_the_correction():
    def agreed(n: int, models: int) -> bool:
        return 2.0 ** (1 - n) * models < 0.05  # the exact sign test's smallest p-value, times Holm's largest factor

    assert (agreed(6, 1), agreed(5, 1), agreed(10, 20), agreed(9, 20), agreed(MIN_UNITS, 26_000)) == (
        True,
        False,
        True,
        False,
        True,
    )


def test_rankings_resample_users_where_they_are_given():
    generator = np.random.default_rng(0)
    liking = np.repeat(generator.normal(size=(10, 1)), 20, axis=0)
    scores = {"base": np.zeros((200, 1)), "tuned": liking + 0.1 * generator.normal(size=(200, 1))}
    users = np.repeat(np.arange(10), 20)
    wide, narrow = elo(scores, "base", users=users)["tuned"], elo(scores, "base")["tuned"]
    assert wide.value == narrow.value and (wide.users, narrow.users) == (10, None)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
