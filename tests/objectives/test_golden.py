"""Numbers produced by the official code, through the public functions: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_align.objectives.types import ObjectiveOutput
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
    if case.objective.name == "orpo":
        named |= {"or_term": scaled.mean(), "per_pair": -scaled}
    metrics = out.metrics
    if "logit" in metrics:
        named |= {"inside_term": metrics["logit"], "logits": metrics["margin"]}
        named["diff"] = -metrics["logit"]
    if "implicit_accuracy" in metrics:
        named["implicit_acc"] = metrics["implicit_accuracy"].mean()
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
        present = [side for side in sides if side is not None]
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


@pytest.mark.parametrize("case_id", BY_ID)
def test_float64(case_id: str) -> None:
    compare(case_id, torch.float64)


@pytest.mark.parametrize("case_id", [case_id for case_id in BY_ID if "gaussian" not in case_id])
def test_float32(case_id: str) -> None:
    compare(case_id, torch.float32)
