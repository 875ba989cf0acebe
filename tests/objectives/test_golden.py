"""Numbers produced by the official code, through the public functions: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_align.data.provider import orient
from t2i_align.data.record import PairRecord
from t2i_align.objectives.timestep_weights import MinSnr
from t2i_align.objectives.types import ObjectiveOutput, PairErrors, snr_table
from tests.objectives.golden import ADAPTERS, CASES, TENSORS, Case, Inputs

BY_ID = {case["id"]: case for case in CASES}


def close(ours: Tensor, expected: Any, tolerance: float) -> bool:
    """Largest difference relative to the largest expected number."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    ours = ours.detach().double()
    assert ours.shape == expected.shape
    return bool((ours - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30))


def outputs(case: Case, out: ObjectiveOutput) -> dict[str, Tensor]:
    """The official code's names for what our output holds."""
    scaled = case.loss_scale * out.loss
    named = {"loss": scaled.mean(), "loss_all_axes": scaled.mean(), "per_pair": scaled, "l_kto": scaled}
    if case.objective.name == "cpo":
        named |= {"loss_sign_corrected": scaled.mean(), "log_odds": -out.metrics["logit"]}
    if case.objective.name == "orpo":
        named |= {"or_term": scaled.mean(), "per_pair": -scaled}
    metrics = out.metrics
    if "logit" in metrics:
        named |= {"inside_term": metrics["logit"], "logits": metrics["margin"]}
        named["diff"] = -metrics["logit"]
    if "implicit_accuracy" in metrics:
        named["implicit_acc"] = metrics["implicit_accuracy"].mean()
    if case.mirrored:
        named["logits"], named["implicit_acc"] = -named["logits"], 1 - named["implicit_acc"]
    if "reference_point" in metrics:
        named["kl"] = metrics["reference_point"] / case.objective.logit_scale
    if case.objective.name == "mapo":
        named["ratio_losses"] = -(out.loss - case.record.policy_winner)
    return named


def compare(case_id: str, dtype: torch.dtype) -> None:
    golden = BY_ID[case_id]
    case = ADAPTERS[golden["kind"]](Inputs(golden, dtype))
    out = case.objective(case.record)
    ours = outputs(case, out)
    mean = case.loss_scale * out.loss.mean()
    if case.logps is not None:
        ours["grad_chosen"], ours["grad_rejected"] = torch.autograd.grad(mean, case.logps, retain_graph=True)
    elif case.prediction is not None:
        sides = [case.record.policy_winner, case.record.policy_loser]
        present = [side for side in (sides[::-1] if case.mirrored else sides) if side is not None]
        ours["slope"] = torch.cat(torch.autograd.grad(mean, present, retain_graph=True))
    if golden["params"].get("loss_type", "").startswith("aot"):
        # the official code returns its losses in sorted order; ours stay with their pairs
        ours["per_pair"] = ours["per_pair"].sort().values
        golden["expected"]["per_pair"]["value"] = sorted(golden["expected"]["per_pair"]["value"])
    compared = 0
    for name, expected in golden["expected"].items():
        if name not in ours:
            continue
        tolerance = 1e-7 if dtype == torch.float64 else max(1e-5, expected.get("tol_float32", 1e-5))
        tolerance = max(tolerance, 1e-6) if name == "slope" else tolerance
        assert close(ours[name], expected["value"], tolerance), (name, ours[name], expected["value"])
        compared += 1
    assert compared >= 1
    if f"{case_id}.grad" in TENSORS and case.prediction is not None:
        gradient = torch.autograd.grad(mean, case.prediction)[0]
        assert close(gradient, TENSORS[f"{case_id}.grad"].double(), 1e-5 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("label", [1.0, 0.0])
def test_the_preferred_picture_comes_first_as_in_every_official_script(label: float) -> None:
    """label_0 = 1 puts jpg_0 first, 0 puts jpg_1 first; a tie is no win, there or here."""
    record, sides = orient(PairRecord("id", "a circle", b"0", b"1", label), ("side 0", "side 1"), seed=0)
    assert sides == (("side 0", "side 1") if label else ("side 1", "side 0"))
    assert (record.image_0, record.label_0) == (b"0" if label else b"1", 1.0)


def test_the_released_orpo_script_has_the_sign_reversed_and_ours_has_not() -> None:
    golden = BY_ID["orpo_diffusers_beta0.9"]
    case = ADAPTERS["orpo_diffusers"](Inputs(golden, torch.float64))
    assert case.record.policy_loser is not None
    loss = case.loss_scale * case.objective(case.record).loss.mean()
    assert abs(loss.item() - golden["expected"]["loss_as_released"]["value"]) > 1e-4
    slope = torch.autograd.grad(loss, case.record.policy_loser)[0]
    assert (slope < 0).all()  # the released loss lowers the loser's error


def test_schedule_and_min_snr_weights() -> None:
    """SNR and weights of diffusers' training script."""
    alphas, timesteps = TENSORS["schedule.alphas_cumprod"].double(), TENSORS["schedule.timesteps"]
    snr = snr_table(alphas)
    assert close(snr[timesteps], TENSORS["schedule.snr"], 1e-6)
    for kind, name in (("epsilon", "epsilon"), ("v_prediction", "v")):
        record = PairErrors(torch.ones(len(timesteps)), timesteps=timesteps, snr=snr, prediction_type=kind)
        assert close(MinSnr(gamma=5.0)(record), TENSORS[f"schedule.min_snr_weight_{name}"], 1e-6)


@pytest.mark.parametrize("case_id", BY_ID)
def test_float64(case_id: str) -> None:
    compare(case_id, torch.float64)


@pytest.mark.parametrize("case_id", [case_id for case_id in BY_ID if "gaussian" not in case_id])
def test_float32(case_id: str) -> None:
    compare(case_id, torch.float32)
