"""The unification table: each objective becomes another at the right setting, exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from t2i_align.objectives import PairErrors, build
from tests.objectives.records import random_record, slopes

DPO = build("dpo")
PAIRS = random_record(DPO)
ONES = torch.ones(6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "options", "data"),
    [
        ("dpo_shift", {"lam": 1.0}, {}),
        ("dpo_shift", {"lam": 0.4, "schedule": "increase"}, {"step": 50, "max_steps": 50}),
        ("cdpo", {"label_smoothing": 0.0}, {}),
        ("dcpo", {"beta": 5000}, {}),
        ("ncp_dpo", {}, {}),
        ("inpo", {"beta": 5000}, {}),
        ("rethinking_dpo", {"timestep": "uniform"}, {}),
        ("rdpo", {"label_smoothing": 0.0}, {}),
        ("dpo", {"link": "soft_label"}, {"labels": ONES}),
        ("dpo", {"weight": "confidence"}, {"labels": ONES}),
        ("dpo", {"weight": "user_balance"}, {"user_shares": ONES}),
        ("gapo", {}, {"scores": torch.stack([ONES, 0 * ONES], 1)}),
        ("video_dpo_weight", {"numerator": 0.5}, {"frequencies": 0.5 * ONES}),
        ("madpo", {}, {"margins": 0 * ONES}),
        ("curriculum", {"stages": 1}, {"difficulty": ONES, "max_steps": 10}),
        ("curriculum", {}, {"difficulty": ONES, "step": 9, "max_steps": 10}),
        ("modpo", {"preference_weight": 1.0}, {"margins": ONES}),
        ("dpo", {"timestep": {"weighting": {"name": "min_snr", "gamma": 1.0}}}, {"prediction_type": "sample",
            "snr": torch.ones(1000, dtype=torch.float64), "timesteps": torch.arange(6)}),
    ],
)  # fmt: skip
def test_is_dpo(name: str, options: dict, data: dict) -> None:
    record = replace(PAIRS, **data)
    objective = build(name, **options)
    assert torch.equal(objective(record).loss, DPO(PAIRS).loss)
    for field, slope in slopes(objective, record).items():
        assert torch.allclose(slope, slopes(DPO, PAIRS)[field], rtol=1e-14)


def test_smoothed_by_score_with_weight_one_is_dpo() -> None:
    """SmPO's logit with gamma (2p - 1) = 1 leaves InPO, which is DPO on inverted latents."""
    logit = {"name": "smoothed_by_score", "beta": 5000, "gamma": 1.0}
    certain = replace(PAIRS, margins=1e4 * ONES)  # p = 1
    assert torch.equal(build("dpo", logit=logit)(certain).loss, DPO(PAIRS).loss)


def test_npo_is_dpo_of_the_swapped_pair() -> None:
    swapped = PairErrors(PAIRS.e_l, PAIRS.e_w, PAIRS.r_l, PAIRS.r_w)
    assert torch.equal(build("npo")(PAIRS).loss, DPO(swapped).loss)


def test_smpo_with_weight_one_is_inpo() -> None:
    smpo = build("smpo", gamma=1.0, latents={"steps": 10, "eta": 0.1, "renoise": 0})
    assert smpo.latents == build("inpo").latents
    certain = replace(PAIRS, margins=1e4 * ONES)  # 2p - 1 = 1
    assert torch.equal(smpo(certain).loss, build("inpo")(PAIRS).loss)


def test_dpo_shift_towards_zero_is_the_winner_alone() -> None:
    loss = build("dpo_shift", lam=1e-300)(PAIRS).loss
    assert torch.equal(loss, torch.nn.functional.softplus(-2500 * (PAIRS.r_w - PAIRS.e_w)))


@pytest.mark.parametrize(
    ("name", "options", "base"),
    [
        ("inpo", {"latents": "shared_noise", "beta": 5000}, "dpo"),
        ("dcpo", {"beta": 5000}, "dpo"),
        ("ncp_dpo", {"error": "prediction"}, "dpo"),
        ("ncp_cpo", {"error": "prediction"}, "cpo"),
        ("ncp_sft", {"error": "prediction"}, "sft"),
        ("rethinking_dpo", {"timestep": "uniform", "reference": "initial"}, "dpo"),
        ("video_dpo_weight", {"weight": "none"}, "dpo"),
        ("curriculum", {"weight": "none"}, "dpo"),
        ("dro", {"latents": "shared_noise", "beta": 5000, "margin": 1.0}, "hinge"),
        ("npo", {"logit": "full"}, "dpo"),
        ("simpo", {"gamma": 0.0, "anchor": "winner"}, "cpo"),
        ("self_npo", {"latents": "shared_noise", "error": "prediction"}, "sft"),
    ],
)
def test_one_slot_away_is_another_preset(name: str, options: dict, base: str) -> None:
    """Not only the loss: every slot, so that a run draws and measures the same."""
    assert build(name, **options).slots == build(base).slots


def test_dro_with_the_losers_of_the_data_is_a_hinge() -> None:
    hinge = build("hinge", beta=2.0, margin=0.001)
    assert torch.equal(build("dro", latents="shared_noise")(PAIRS).loss, hinge(PAIRS).loss)


def test_ncp_rows_are_their_bases_in_the_loss() -> None:
    for name, base in (("ncp_sft", "sft"), ("ncp_cpo", "cpo")):
        plain = build(name, error="prediction")
        record = random_record(plain)
        assert torch.equal(plain(record).loss, build(base)(record).loss)


def test_ternary_win_with_no_room_for_ties_is_dpo() -> None:
    loss = build("ternary", tie_width=1e-12)(replace(PAIRS, labels=ONES)).loss
    assert torch.allclose(loss, DPO(PAIRS).loss, rtol=1e-11)


def test_ternary_outcomes_are_probabilities() -> None:
    outcomes = [build("ternary")(replace(PAIRS, labels=label * ONES)).loss for label in (0.0, 0.5, 1.0)]
    assert torch.allclose(torch.stack(outcomes).neg().exp().sum(0), ONES, rtol=1e-12)


@pytest.mark.parametrize(("group", "pair"), [("mdpo", "dpo"), ("mipo", "ipo")])
def test_groups_of_one_are_pairs(group: str, pair: str) -> None:
    errors = [error.unsqueeze(1) for error in (PAIRS.e_w, PAIRS.e_l, PAIRS.r_w, PAIRS.r_l)]
    assert torch.equal(build(group)(PairErrors(*errors)).loss, build(pair)(PAIRS).loss)
    repeated = [error.repeat(1, 4) for error in errors]
    assert torch.allclose(build(group)(PairErrors(*repeated)).loss, build(pair)(PAIRS).loss, rtol=1e-12)
    unbiased = build("mipo", link="unbiased_square")(PairErrors(*repeated)).loss
    assert torch.allclose(unbiased, build("ipo")(PAIRS).loss, rtol=1e-12)


def test_rankdpo_of_two_images_is_a_multiple_of_dpo() -> None:
    policy, reference = torch.stack([PAIRS.e_l, PAIRS.e_w], 1), torch.stack([PAIRS.r_l, PAIRS.r_w], 1)
    record = PairErrors(policy, None, reference, scores=torch.stack([0 * ONES, ONES], 1))
    factor = 1 / math.log(2) - 1 / math.log(3)  # 0.5325
    assert torch.allclose(build("rankdpo")(record).loss, factor * DPO(PAIRS).loss, rtol=1e-14)
    assert torch.equal(build("rankdpo")(replace(record, scores=0.5 * torch.ones(6, 2))).loss, 0 * ONES)


def test_rankdpo_does_not_see_the_order_of_the_list() -> None:
    objective = build("rankdpo")
    record = random_record(objective)
    turned = [record.e_w[:, [2, 0, 1]], None, record.r_w[:, [2, 0, 1]]]
    again = objective(PairErrors(*turned, scores=record.scores[:, [2, 0, 1]]))
    assert torch.allclose(again.loss, objective(record).loss, rtol=1e-12)


def test_margin_terms_vanish_into_sft() -> None:
    for name in ("mapo", "orpo"):
        assert torch.allclose(build(name, beta=1e-300)(PAIRS).loss, PAIRS.e_w, rtol=1e-14)
    assert torch.equal(build("dpo", logit="none", link="none", anchor="winner")(
        PairErrors(PAIRS.e_w)).loss, build("sft")(PairErrors(PAIRS.e_w)).loss)  # fmt: skip


def test_reference_free_family() -> None:
    cpo, simpo = build("cpo", anchor="none"), build("simpo", gamma=0.0)
    assert torch.equal(cpo(PAIRS).loss, simpo(PAIRS).loss)
    bent = build("alphapo", alpha=1e-9)(PAIRS).loss
    assert torch.allclose(bent, build("simpo")(PAIRS).loss, rtol=1e-5)
    # without a reference and without an anchor, CPO is DPO against a reference of equal errors
    flat = PairErrors(PAIRS.e_w, PAIRS.e_l, ONES, ONES)
    assert torch.allclose(build("cpo", anchor="none", beta=5000)(PAIRS).loss, DPO(flat).loss, rtol=1e-9)


def test_timestep_weight_multiplies_the_logit() -> None:
    snr = torch.linspace(4.0, -3.0, 1000, dtype=torch.float64).exp()
    record = replace(PAIRS, timesteps=torch.tensor([0, 200, 400, 600, 800, 999]), snr=snr)
    weighted = build("dpo", timestep={"weighting": "noise_level"})
    factors = weighted.timestep.weights(record)
    assert factors[0] == 1 and factors[-1] == 2 and (factors.diff() > 0).all()
    for index, factor in enumerate(factors.tolist()):
        item = record.select(torch.tensor([index]))
        assert torch.allclose(weighted(item).loss, build("dpo", beta=5000 * factor)(item).loss, rtol=1e-12)


def test_vanishing_beta_is_a_constant() -> None:
    assert DPO(PairErrors(PAIRS.e_w, PAIRS.e_w, PAIRS.r_w, PAIRS.r_w)).loss.tolist() == [math.log(2)] * 6
    assert torch.allclose(build("dpo", beta=1e-12)(PAIRS).loss, math.log(2) * ONES)


def test_divergences_tend_to_the_reverse_kl() -> None:
    """f'(0) = 1 for alpha and forward KL, 1/2 for Jensen-Shannon: small log-ratios see DPO at beta f'(0)."""
    cases = [
        ({"divergence": "forward_kl"}, 1.0),
        ({"divergence": "js"}, 0.5),
        ({"divergence": "alpha", "alpha": 0.5}, 1.0),
    ]
    for options, slope in cases:
        loss = build("dpo", logit={"name": "divergence", "beta": 5000, **options})(PAIRS).loss
        assert torch.allclose(loss, build("dpo", beta=5000 * slope)(PAIRS).loss, rtol=2e-2)
