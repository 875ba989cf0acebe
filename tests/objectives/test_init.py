"""What must hold at policy == reference: the value of the loss, and which way each error is pushed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from t2i_align.objectives import PairErrors, build, describe
from t2i_align.objectives.logits.grouped import discounted_gain_weights
from t2i_align.objectives.presets import PRESETS
from tests.objectives.records import random_record, slopes

LOG2 = math.log(2)
VALUE_AT_INIT = {
    "dpo": LOG2, "kto": 0.5, "mdpo": LOG2, "mipo": 0.25, "curriculum": None, "ipo": 0.25, "hinge": 1.0, "cdpo": LOG2,
    "rdpo": LOG2, "dpo_shift": LOG2, "exo": -LOG2 - math.log(1e-3 * (1 - 1e-3)) / 2, "nca": 2 * LOG2, "bco": 2 * LOG2,
    "dcpo": LOG2, "ncp_dpo": LOG2, "inpo": LOG2, "dro": 0.001, "npo": LOG2, "rethinking_dpo": LOG2,
    "apo_zero": 1.0, "apo_down": 1.0, "sppo_hard": 0.5, "discopop": (1 + LOG2) / 2, "aot": LOG2, "aot_unpaired": LOG2,
}  # fmt: skip
# sft and its like have no loser; apo_down pushes only the loser at first; discopop's own slope at z = 0 has the wrong
# sign; npo is the mirror on purpose.
SIGN_EXCEPTIONS = {"sft", "ncp_sft", "self_npo", "apo_down", "discopop", "npo"}


@pytest.mark.parametrize("name", PRESETS)
def test_value_at_policy_equals_reference(name: str) -> None:
    objective = build(name)
    assert objective.value_at_init == (
        pytest.approx(VALUE_AT_INIT[name], abs=1e-12) if VALUE_AT_INIT.get(name) else None
    )
    if VALUE_AT_INIT.get(name):
        loss = objective(random_record(objective, at_reference=True)).loss
        assert loss.tolist() == pytest.approx([VALUE_AT_INIT[name]] * 6, abs=1e-12)


WHERE_ERRORS_AGREE = {  # presets without a reference, at e_w = e_l = 0.1
    "mapo": 0.1 + 0.1 * LOG2, "mapo_paper": 0.1 + LOG2 / 8, "orpo": 0.1 + 0.1 * LOG2, "cpo": 0.1 + LOG2,
    "ncp_cpo": 0.1 + LOG2, "simpo": math.log1p(math.exp(0.5)), "alphapo": math.log1p(math.exp(0.5)),
    "sft": 0.1, "ncp_sft": 0.1, "self_npo": 0.1,
}  # fmt: skip
OF_THE_DATA = {  # presets that read the data, from the record
    "gapo": lambda r: LOG2 * (2 ** r.scores[:, 0] - 2 ** r.scores[:, 1]),
    "video_dpo_weight": lambda r: LOG2 * 0.72 / r.frequencies,
    "madpo": lambda r: LOG2 * torch.exp(-r.margins).clamp(0.5, 2),
    "curriculum": lambda r: LOG2 * torch.ones(6),
    "smpo": lambda r: LOG2 * torch.ones(6),
    "modpo": lambda r: torch.log1p(torch.exp(0.2 * r.margins / 0.8)),
    "ternary": lambda r: math.log1p(math.exp(0.5)) * torch.ones(6),  # wins; ties below
    "rankdpo": lambda r: LOG2 * discounted_gain_weights(r.scores).sum((1, 2)) / 2,
}


@pytest.mark.parametrize("name", WHERE_ERRORS_AGREE)
def test_value_without_a_reference_where_the_errors_agree(name: str) -> None:
    error = torch.full((2,), 0.1, dtype=torch.float64)
    assert build(name)(PairErrors(error, error)).loss.tolist() == pytest.approx([WHERE_ERRORS_AGREE[name]] * 2)


@pytest.mark.parametrize("name", OF_THE_DATA)
def test_value_at_policy_equals_reference_given_the_data(name: str) -> None:
    objective = build(name)
    record = random_record(objective, at_reference=True)
    assert objective(record).loss.tolist() == pytest.approx(OF_THE_DATA[name](record).tolist())


def test_a_tie_under_ternary_starts_at_its_value() -> None:
    record = replace(random_record(build("ternary"), at_reference=True), labels=torch.full((6,), 0.5))
    tie = 2 * math.log1p(math.exp(0.5)) - math.log(math.e - 1)  # a = 1/2
    assert build("ternary")(record).loss.tolist() == pytest.approx([tie] * 6)


def test_every_preset_has_its_value_here() -> None:
    constant = {name for name, value in VALUE_AT_INIT.items() if value}
    assert constant | set(WHERE_ERRORS_AGREE) | set(OF_THE_DATA) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_what_show_says_about_the_start_is_so(name: str) -> None:
    """`objectives show` prints the number that the tests expect, where it is one number."""
    objective, value = build(name), VALUE_AT_INIT.get(name)
    printed = describe(name).split("at the start  ")[1].splitlines()[0].removesuffix(", where policy == reference")
    if value is None:
        assert printed == objective.at_init
    else:
        assert printed in (f"{objective.at_init} = {value:.6g}", f"{value:g}")


@pytest.mark.parametrize("name", ["sft", "ncp_sft", "self_npo"])
def test_without_a_loser_the_winner_is_pulled(name: str) -> None:
    found = slopes(build(name), random_record(build(name)))
    assert set(found) == {"policy_winner"} and (found["policy_winner"] > 0).all()


@pytest.mark.parametrize("name", sorted(set(PRESETS) - SIGN_EXCEPTIONS - {"rankdpo"}))
def test_winner_is_pulled_and_loser_pushed(name: str) -> None:
    """g_w > 0 > g_l where policy == reference, or e_w == e_l without one: a reversed sign cannot hide."""
    objective = build(name)
    record = random_record(objective, at_reference=True)
    if not objective.needs_reference:
        error = record.policy_winner.detach()
        record = PairErrors(error.clone().requires_grad_(), error.clone().requires_grad_())
    found = slopes(objective, record)
    assert (found["policy_winner"] > 0).all()
    assert (found["policy_loser"] < 0).all()


def test_ranked_best_is_pulled_and_worst_pushed() -> None:
    objective = build("rankdpo")
    record = random_record(objective, at_reference=True)
    found = slopes(objective, record)["policy_winner"]
    assert (found.gather(1, record.scores.argmax(1, keepdim=True)) > 0).all()
    assert (found.gather(1, record.scores.argmin(1, keepdim=True)) < 0).all()


def test_named_sign_exceptions() -> None:
    record = random_record(build("dpo"), at_reference=True)
    down = slopes(build("apo_down"), record)
    assert down["policy_winner"].abs().max() < 1e-9 and (down["policy_loser"] < 0).all()
    assert (slopes(build("discopop"), record)["policy_winner"] < 0).all()
    assert (slopes(build("discopop", temperature=1.0), record)["policy_winner"] > 0).all()
    mirrored = slopes(build("npo"), record)
    assert (mirrored["policy_winner"] < 0).all() and (mirrored["policy_loser"] > 0).all()


@pytest.mark.parametrize(("name", "slope"), [("dpo", 1250.0), ("hinge", 2500.0), ("cdpo", 1000.0), ("rdpo", 1562.5)])
def test_published_slopes_at_init(name: str, slope: float) -> None:
    """k sigmoid(0) and its relatives at beta = 5000, q = 0.1."""
    found = slopes(build(name), random_record(build(name), at_reference=True))
    assert found["policy_winner"].tolist() == pytest.approx([slope] * 6)
    assert found["policy_loser"].tolist() == pytest.approx([-slope] * 6)


def test_pure_margin_links_move_both_sides_alike_and_shift_does_not() -> None:
    for name in ("dpo", "ipo", "hinge", "cdpo", "rdpo", "exo", "simpo"):
        found = slopes(build(name), random_record(build(name)))
        assert torch.allclose(found["policy_winner"], -found["policy_loser"], rtol=1e-12), name
    found = slopes(build("dpo_shift", lam=0.6), random_record(build("dpo_shift")))
    assert torch.allclose(found["policy_loser"], -0.6 * found["policy_winner"], rtol=1e-12)
    found = slopes(build("cpo"), random_record(build("cpo")))
    assert torch.allclose(found["policy_winner"], 1 - found["policy_loser"], rtol=1e-12)
