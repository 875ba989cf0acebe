"""Accuracy with ties, reliability and calibration by hand and against the official protocol."""

import math

import numpy as np
import pytest

from reward_models.training.metrics import (
    best_tie_threshold,
    expected_calibration_error,
    pair_report,
    reliability_curve,
    tie_accuracy,
    tie_credits,
    untied_accuracy,
)
from tests.reward_models.golden import expected


def test_pick_a_pic_protocol():
    golden = expected("pickscore")
    p = [pair[0] for pair in golden["pair_probs_first_two_images"]]
    tie = golden["tie_eval"]
    for threshold, accuracy in zip(tie["thresholds"], tie["accuracy"], strict=True):
        assert tie_accuracy(p, tie["label_0"], threshold) == pytest.approx(accuracy)


def test_credits_by_hand():
    p, label = [0.9, 0.9, 0.55, 0.55, 0.1, 0.4], [1, 0, 0.5, 1, 0.5, 0.3]
    assert tie_credits(p, label, 0.2).tolist() == [1, 0, 1, 0.5, 0.5, 0.5]
    assert tie_credits(p, label, 0.0).tolist() == [1, 0, 0.5, 1, 0.5, 1]
    assert tie_accuracy([0.5], [0.5], 0.0) == 1


def test_best_threshold_is_the_smallest_of_equals():
    assert best_tie_threshold([0.9, 0.6], [1, 0.5]) == 0.2
    assert best_tie_threshold([0.9, 0.9], [1, 1]) == 0.0


def test_untied_accuracy():
    assert untied_accuracy([0.9, 0.2, 0.5, 0.6], [1, 1, 0, 0.5]) == pytest.approx(1.5 / 3)
    assert math.isnan(untied_accuracy([0.9], [0.5]))


def test_calibration_by_hand():
    """Three pairs at 0.75, two right: 0.75 predicted, 2/3 observed; mirrored at 0.25."""
    curve = reliability_curve([0.75, 0.75, 0.25], [1, 0, 0], bins=2)
    assert [(part.count, part.predicted, part.observed) for part in curve] == [
        (3, pytest.approx(0.25), pytest.approx(1 / 3)),
        (3, pytest.approx(0.75), pytest.approx(2 / 3)),
    ]
    assert expected_calibration_error(curve) == pytest.approx(0.75 - 2 / 3)


def test_perfectly_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=200_000)
    label = (rng.uniform(size=p.size) < p).astype(float)
    assert expected_calibration_error(reliability_curve(p, label)) < 0.005
    overconfident = np.where(p > 0.5, 0.99, 0.01)
    assert expected_calibration_error(reliability_curve(overconfident, label)) > 0.2


def test_report_is_complete():
    report = pair_report([0.9, 0.2, 0.5], [1, 1, 0.5])
    assert (report["pairs"], report["untied_pairs"], report["accuracy"]) == (3, 2, 0.5)
    by_hand = -(math.log(0.9) + math.log(0.2) + math.log(0.5)) / 3
    assert report["log_loss"] == pytest.approx(by_hand)
    assert sum(part["count"] for part in report["reliability"]) == 6
