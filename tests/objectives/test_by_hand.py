"""Every preset against numbers worked out by hand from its paper's formula.

The pair: e_w = 0.28, e_l = 0.41, r_w = 0.30, r_l = 0.40, beta = 100, k = 50. So u_w = 50 (0.30 - 0.28) = 1,
u_l = 50 (0.40 - 0.41) = -0.5 and z = 1.5. sp(u) = log(1 + exp(u)), s(u) = 1/(1 + exp(-u)).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from t2i_align.objectives import PairErrors, build
from t2i_align.objectives.presets import PRESETS
from tests.objectives.records import by_hand, slopes


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# preset, options, data fields, loss
BY_HAND: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
    ("sft", {}, {}, 0.28),
    ("dpo", {"beta": 100}, {}, 0.2014132779827524),  # sp(-1.5)
    ("hinge", {"beta": 100}, {}, 0.0),  # 1 - 1.5 < 0
    ("hinge", {"beta": 100, "margin": 2}, {}, 0.5),
    ("ipo", {"beta": 100}, {}, 1.0),  # (1.5 - 0.5)^2
    ("ipo", {"beta": 100, "target": 0.3}, {}, 1.44),
    ("cdpo", {"beta": 100}, {}, 0.35141327798275246),  # 0.9 sp(-1.5) + 0.1 sp(1.5)
    ("rdpo", {"beta": 100}, {}, 0.013913277982752388),  # [0.9 sp(-1.5) - 0.1 sp(1.5)] / 0.8
    ("exo", {"beta": 100}, {}, 0.7859172949383137),
    ("nca", {"beta": 100}, {}, 1.2069310233673876),  # sp(-1) + [sp(1) + sp(-0.5)]/2
    ("bco", {"beta": 100}, {}, 0.7873386716983295),  # sp(-1) + sp(-0.5)
    ("apo_zero", {"beta": 100}, {}, 0.6464820901681405),  # s(-1) + s(-0.5)
    ("apo_down", {"beta": 100}, {}, 0.9134841024363612),  # s(1) + s(-1.5)
    ("sppo_hard", {"beta": 100}, {}, 0.25),  # (1 - 0.5)^2 + (-0.5 + 0.5)^2
    ("discopop", {"beta": 100}, {}, 0.22313016014842776),  # b = s(30): exp(-1.5)
    ("aot", {"beta": 100}, {}, 0.2014132779827524),  # one pair: dpo
    ("aot_unpaired", {"beta": 100}, {}, 0.2014132779827524),
    ("dpo_shift", {"beta": 100}, {}, 0.22541265160164792),  # sp(-(1 + 0.75 * 0.5))
    ("cpo", {"beta": 100}, {}, 0.2815023101597543),  # sp(50 (0.28 - 0.41)) + 0.28
    ("simpo", {"beta": 100}, {}, 0.002475685137730456),  # sp(-6.5 + 0.5)
    ("alphapo", {"beta": 100}, {}, 0.0018594972368141877),
    ("orpo", {}, {}, 0.3293211022402776),
    ("ternary", {"beta": 100}, {"labels": column(1.0)}, 0.31326168751822286),  # sp(0.5 - 1.5)
    ("ternary", {"beta": 100}, {"labels": column(0.5)}, 1.8988648439482776),
    ("ternary", {"beta": 100}, {"labels": column(0.0)}, 2.1269280110429727),  # sp(0.5 + 1.5)
    ("modpo", {"beta": 100}, {"margins": column(0.6)}, 0.16396497747322178),  # sp(-(1.5 - 0.2 * 0.6) / 0.8)
    ("madpo", {"beta": 100}, {"margins": column(0.6)}, 0.11053795062077529),  # exp(-0.6) sp(-1.5)
    ("gapo", {"beta": 100}, {"scores": column(0.9, 0.4)[None]}, 0.11008405295002233),
    ("video_dpo_weight", {"beta": 100}, {"frequencies": column(0.36)}, 0.4028265559655048),  # 2 sp(-1.5)
    ("curriculum", {"beta": 100}, {"difficulty": column(0.1), "max_steps": 6}, 0.2014132779827524),
    ("curriculum", {"beta": 100}, {"difficulty": column(0.2), "max_steps": 6}, 0.0),
    ("curriculum", {"beta": 100}, {"difficulty": column(0.2), "max_steps": 6, "step": 1}, 0.2014132779827524),
    ("dcpo", {"beta": 100}, {}, 0.2014132779827524),  # the captions act before the errors
    ("ncp_dpo", {"beta": 100}, {}, 0.2014132779827524),
    ("ncp_cpo", {"beta": 100}, {}, 0.2815023101597543),
    ("ncp_sft", {}, {}, 0.28),
    ("self_npo", {}, {}, 0.28),
    ("inpo", {"beta": 100}, {}, 0.2014132779827524),
    (
        "smpo",
        {"beta": 100, "gamma": 2},
        {"margins": column(math.log(3))},
        0.2014132779827524,
    ),  # p = 3/4: 2 (2p - 1) = 1
    ("dro", {}, {}, 0.0),  # h = 0.03 > 0.001
    ("dro", {"margin": 0.05}, {}, 0.02),
    ("npo", {"beta": 100}, {}, 1.7014132779827524),  # sp(1.5)
    # A = 1/2 everywhere but the last, where SNR is 1/4: 1/sqrt(SNR) from 1 to 2, so lambda = 1 and 2
    ("rethinking_dpo", {"beta": 100}, {"timesteps": torch.tensor([0]), "snr": column(1, 1, 0.25)}, 0.2014132779827524),
    ("rethinking_dpo", {"beta": 100}, {"timesteps": torch.tensor([2]), "snr": column(1, 1, 0.25)}, 0.04858735157374206),
    # beta without 1/2: u_w = 2, u_l = -1, u0 = 0.5; both images are 1.5 on their right side: 1 - s(1.5)
    ("kto", {"beta": 100}, {}, 0.18242552380635635),
]


@pytest.mark.parametrize(("name", "options", "data", "loss"), BY_HAND)
def test_by_hand(name: str, options: dict[str, Any], data: dict[str, Any], loss: float) -> None:
    out = build(name, **options)(by_hand(0.28, 0.41, 0.30, 0.40, **data))
    assert out.loss.shape == (1,)
    assert out.loss.item() == pytest.approx(loss, rel=1e-12, abs=1e-12)


def test_rankdpo_by_hand() -> None:
    # scores 0.9, 0.1, 0.5 rank 1, 3, 2; gains 2^s - 1: 0.8660660, 0.0717735, 0.4142136
    # 1/log(1 + rank): 1.4426950, 0.7213475, 0.9102392; rewards 50 (r - e): 1, 0, -1
    # pairs (1st, 2nd) z = 1, (1st, 3rd) z = 2, (3rd, 2nd) z = -1
    errors = torch.tensor([[0.28, 0.30, 0.32]], dtype=torch.float64)
    record = PairErrors(errors, None, torch.full_like(errors, 0.30), scores=column(0.9, 0.1, 0.5)[None])
    out = build("rankdpo", beta=100)(record)
    weights = (0.794292521 * 0.721347520, 0.451852421 * 0.532455814, 0.342440100 * 0.188891706)
    softplus = (0.31326168751822286, 0.12692801104297263, 1.3132616875182228)
    expected = sum(weight * value for weight, value in zip(weights, softplus, strict=True))
    assert out.loss.item() == pytest.approx(expected, rel=1e-7)
    assert out.metrics["implicit_accuracy"].item() == pytest.approx(2 / 3)
    assert out.metrics["e_w"].item() == 0.28 and out.metrics["e_l"].item() == 0.30


@pytest.mark.parametrize(("name", "loss"), [("mdpo", 0.2014132779827524), ("mipo", 1.0)])
def test_groups_by_hand(name: str, loss: float) -> None:
    # rewards of winners 1.5 and 0.5, of losers -1 and 0: means 1 and -0.5
    groups = [[0.27, 0.29], [0.42, 0.40], [0.30, 0.30], [0.40, 0.40]]
    record = PairErrors(*(torch.tensor([group], dtype=torch.float64) for group in groups))
    assert build(name, beta=100)(record).loss.item() == pytest.approx(loss)


def test_unbiased_square_multiplies_the_half_groups() -> None:
    # half groups: z_1 = 1.5 - (-1) = 2.5, z_2 = 0.5 - 0 = 0.5; (2.5 - 0.5)(0.5 - 0.5) = 0
    groups = [[0.27, 0.29], [0.42, 0.40], [0.30, 0.30], [0.40, 0.40]]
    record = PairErrors(*(torch.tensor([group], dtype=torch.float64) for group in groups))
    assert build("mipo", beta=100, link="unbiased_square")(record).loss.item() == pytest.approx(0.0, abs=1e-9)
    assert build("mipo", beta=100, link={"name": "unbiased_square", "target": 0.3})(record).loss.item() == (
        pytest.approx(2.2 * 0.2)
    )


def test_kto_on_labelled_images() -> None:
    # u = 64 (r - e): 2, 1, 0; mean 1 is u0; labels +, -, -: 1 - s(1), 1 - s(0), 1 - s(1)
    policy, reference = column(0.25, 0.25, 0.25), column(0.28125, 0.265625, 0.25)
    record = PairErrors(policy, None, reference, labels=column(1, 0, 0))
    out = build("kto", beta=64, items="labelled", undesirable_weight=0.5)(record)
    expected = [0.2689414213699951, 0.25, 0.5 * 0.2689414213699951]
    assert out.loss.tolist() == pytest.approx(expected)
    assert out.metrics["reference_point"].item() == pytest.approx(1.0)
    assert out.metrics["implicit_accuracy"].tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_kto_reference_point_is_never_negative_and_carries_no_gradient() -> None:
    record = by_hand(0.31, 0.42, 0.30, 0.40)  # u = -1 and -2
    objective = build("kto", beta=100)
    assert objective(record).metrics["reference_point"].item() == 0.0
    found = slopes(build("kto", beta=100, utility="loss_averse"), by_hand(0.28, 0.39, 0.30, 0.40))
    # u_w = 2, u_l = 1, u0 = 1.5: slopes are +100 s(-0.5)/2 and -100 s(-0.5)/2, u0 held fixed
    assert found["policy_winner"].item() == pytest.approx(50 * 0.3775406687981454)
    assert found["policy_loser"].item() == pytest.approx(-50 * 0.3775406687981454)


def test_soft_labels_by_hand() -> None:
    record = by_hand(0.28, 0.41, 0.30, 0.40, labels=column(0.9))
    assert build("dpo", beta=100, link="soft_label")(record).loss.item() == pytest.approx(0.35141327798275246)


def test_a_pair_that_contradicts_its_scores_has_no_gain() -> None:
    """A negative weight would reverse the preference, and without a bound."""
    record = by_hand(0.28, 0.41, 0.30, 0.40, scores=column(0.4, 0.9)[None])
    assert build("gapo", beta=100)(record).loss.item() == 0.0


def test_busy_users_count_less() -> None:
    record = by_hand(0.28, 0.41, 0.30, 0.40, user_shares=column(4.0))
    plain = 0.2014132779827524
    for exponent, weight in ((1.0, 0.25), (0.5, 0.5)):
        objective = build("dpo", beta=100, weight={"name": "user_balance", "exponent": exponent})
        assert objective(record).loss.item() == pytest.approx(weight * plain)


def test_the_anchor_pulls_only_what_is_preferred() -> None:
    errors = torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]], dtype=torch.float64)
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]], dtype=torch.float64)
    ranked = PairErrors(errors, None, errors, scores=scores)
    with_anchor, without = build("rankdpo", anchor="winner")(ranked).loss, build("rankdpo")(ranked).loss
    assert (with_anchor - without).tolist() == pytest.approx([0.3, 0.5])  # the best of each list
    labelled = PairErrors(errors[0], None, errors[0], labels=column(1, 0, 1))
    anchored = build("kto", items="labelled", anchor={"name": "winner", "coefficient": 2.0})(labelled)
    plain = build("kto", items="labelled")(labelled).loss
    assert (anchored.loss - plain).tolist() == pytest.approx([0.4, 0.0, 0.8])
    groups = [torch.tensor([[0.2, 0.4]]), torch.tensor([[0.8, 0.9]])] * 2
    grouped = PairErrors(*groups)
    assert (build("mdpo", anchor="winner")(grouped).loss - build("mdpo")(grouped).loss).item() == pytest.approx(0.3)


def test_every_preset_is_covered() -> None:
    elsewhere = {"mapo", "mapo_paper", "rankdpo", "mdpo", "mipo"}
    assert set(PRESETS) == {name for name, *_ in BY_HAND} | elsewhere
