"""sft, dpo and mapo against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.objectives import ObjectiveConfig, PairErrors, build, resolve


def errors(w: float, l: float, rw: float, rl: float, **more: object) -> PairErrors:  # noqa: E741
    pair = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (w, l))
    reference = (torch.tensor([value], dtype=torch.float64) for value in (rw, rl))
    return PairErrors(*pair, *reference, **more)


def test_dpo_by_hand() -> None:
    # h = (0.30 - 0.28) - (0.40 - 0.41) = 0.03; k = 100/2; z = 1.5; loss = log(1 + exp(-1.5)) = 0.201413
    record = errors(0.28, 0.41, 0.30, 0.40)
    out = build("dpo", beta=100)(record)
    assert out.loss.item() == pytest.approx(0.2014132779827524)
    g_w, g_l = torch.autograd.grad(out.loss.sum(), (record.policy_winner, record.policy_loser))
    assert g_w.item() == pytest.approx(50 * 0.18242552380635635)  # k sigmoid(-1.5)
    assert g_l.item() == pytest.approx(-g_w.item())
    expected = {
        "e_w": 0.28,
        "d_w": -0.02,
        "d_l": 0.01,
        "margin": 0.03,
        "logit": 1.5,
        "implicit_accuracy": 1.0,
    }
    expected |= {
        "rewards/chosen": 1.0,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.5,
        "rewards/accuracies": 1,
    }
    for name, value in expected.items():
        assert out.metrics[name].tolist() == pytest.approx([value]), name


def test_mapo_by_hand() -> None:
    # q(0.2) = 0.1/(e^0.1 - 1) = 0.9508332, q(0.4) = 0.2/(e^0.2 - 1) = 0.9033311; a = 47.5020667
    record = errors(0.2, 0.4, 0, 0)
    a = 1000 * (0.1 / math.expm1(0.1) - 0.2 / math.expm1(0.2))
    out = build("mapo")(record)
    assert out.loss.item() == pytest.approx(0.2 + 0.1 * math.log1p(math.exp(-a)), rel=1e-12)
    assert out.metrics["logit"].item() == pytest.approx(47.5020666, rel=1e-6)


def test_mapo_paper_by_hand() -> None:
    phi = [(e / math.expm1(e)) ** 8 for e in (0.2, 0.4)]
    out = build("mapo_paper")(errors(0.2, 0.4, 0, 0))
    assert out.loss.item() == pytest.approx(0.2 + math.log1p(math.exp(phi[1] - phi[0])) / 8, rel=1e-12)


def test_sft_is_the_winners_error() -> None:
    out = build("sft")(PairErrors(torch.tensor([0.25, 0.5])))
    assert out.loss.tolist() == [0.25, 0.5]
    assert set(out.metrics) == {"e_w"}


def test_resolved_config_resolves_to_the_same_objective() -> None:
    objective = build("dpo", beta=2000, timestep={"name": "range", "low": 0, "high": 500, "weighting": "min_snr"})
    assert resolve(ObjectiveConfig(**objective.config)) == objective


def test_missing_reference_is_explained() -> None:
    with pytest.raises(UserError, match="needs reference_winner, reference_loser"):
        build("dpo")(PairErrors(torch.ones(2), torch.ones(2)))
