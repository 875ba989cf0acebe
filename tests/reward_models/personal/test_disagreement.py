"""Krippendorff's alpha on the worked example of the literature, and what disagreement reports."""

import math

import numpy as np
import pytest

from reward_models.errors import RewardModelError
from reward_models.personal.disagreement import disagreement, krippendorff_alpha, ratings_matrix

NAN = float("nan")
# Four observers, twelve units (Krippendorff, "Computing Krippendorff's alpha-reliability", section E).
WORKED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example(level, alpha):
    assert krippendorff_alpha(WORKED, level) == pytest.approx(alpha, abs=5e-4)


def test_two_observers_by_hand():
    # Coincidences: units (1,1), (1,0), (0,0): o_11 = 2, o_10 = o_01 = 1, o_00 = 2; n_1 = n_0 = 3, n = 6.
    # D_o = 2 / 6; D_e = 2 * 9 / (6 * 5); alpha = 1 - (1/3) / (3/5) = 4/9.
    assert krippendorff_alpha([[1, 1, 0], [1, 0, 0]]) == pytest.approx(4 / 9)


def test_the_sides_of_a_pair_do_not_matter_where_they_are_arbitrary():
    turned = [[0, 1, 0], [0, 0, 0]]  # the same answers with the first pair shown the other way round
    assert krippendorff_alpha(turned) != pytest.approx(4 / 9)
    for ratings in (turned, [[1, 1, 0], [1, 0, 0]]):
        result = disagreement(ratings, replicates=50, mirrored=True)
        assert result.alpha.value == pytest.approx(4 / 9)
        assert (result.units, result.ratings, result.agreement) == (3, 6, pytest.approx(2 / 3))


def test_full_agreement_is_one_opposition_is_negative_and_no_variation_is_undefined():
    assert krippendorff_alpha([[1, 0, 1], [1, 0, 1]]) == 1
    assert krippendorff_alpha([[1, 0, 1, 0], [0, 1, 0, 1]]) < 0
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))


def test_chance_has_an_interval_around_zero():
    result = disagreement(np.random.default_rng(0).integers(2, size=(3, 200)).astype(float), replicates=200)
    assert result.alpha.low < 0 < result.alpha.high
    assert result.agreement == pytest.approx(0.5, abs=0.06)


def test_who_disagrees_with_the_others():
    ratings = np.tile([1.0, 0.0, 1.0, 1.0, 0.0], (4, 1))
    ratings[3] = 1 - ratings[3]
    result = disagreement(ratings, replicates=50)
    assert result.with_others.tolist() == [1, 1, 1, 0]
    assert result.split_units == 1
    assert result.agreement == pytest.approx(0.5)  # three agreeing pairs of six
    assert (result.units, result.ratings) == (5, 20)


def test_a_matrix_from_rows():
    matrix, annotators, units = ratings_matrix(["a", "b", "a"], ["p", "p", "q"], [1, 0, 0.5])
    assert annotators == ["a", "b"]
    assert units == ["p", "q"]
    np.testing.assert_array_equal(matrix, [[1, 0.5], [0, NAN]])


def test_clear_messages():
    with pytest.raises(RewardModelError, match="no unit has two ratings"):
        krippendorff_alpha([[1, NAN], [NAN, 0]])
    with pytest.raises(RewardModelError, match="rated one unit twice"):
        ratings_matrix(["a", "a"], ["p", "p"], [1, 0])
