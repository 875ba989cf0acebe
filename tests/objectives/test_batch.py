"""A batch is a set of items: their order, their number and the number of processes change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from t2i_align.objectives import Objective, build
from t2i_align.objectives.presets import PRESETS
from tests.objectives.records import in_two_processes, random_record, slopes

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])
OF_THE_BATCH = {"kto", "aot", "aot_unpaired"}


def everything() -> list[Objective]:
    """Every preset, and the variants with a statistic of the batch."""
    variants = [
        build("gapo", weight={"normalize": True}),
        build("dpo", weight={"name": "user_balance", "normalize": True}),
        build("kto", items="labelled", reference_point="class_means"),
        build("mipo", link="unbiased_square"),
        build("dpo", timestep={"weighting": "min_snr"}),
    ]
    return [build(name) for name in PRESETS] + variants


@pytest.mark.parametrize("objective", everything(), ids=lambda objective: objective.name)
def test_order_of_the_batch(objective: Objective) -> None:
    record = random_record(objective)
    out, turned = objective(record), objective(record.select(ORDER))
    assert torch.allclose(turned.loss, out.loss[ORDER], rtol=1e-12)
    for name, value in out.metrics.items():
        assert torch.allclose(turned.metrics[name], value[ORDER] if value.dim() else value, rtol=1e-12), name


@pytest.mark.parametrize("name", sorted(set(PRESETS) - OF_THE_BATCH))
def test_size_of_the_batch(name: str) -> None:
    objective = build(name)
    record = random_record(objective)
    singles = [objective(record.select(torch.tensor([index]))).loss for index in range(6)]
    assert torch.allclose(torch.cat(singles), objective(record).loss, rtol=1e-12)


@pytest.mark.parametrize("objective", everything(), ids=lambda objective: objective.name)
def test_two_processes_are_one(objective: Objective) -> None:
    record = random_record(objective)
    losses, found = in_two_processes(objective, record)
    assert torch.allclose(losses, objective(record).loss, rtol=1e-12)
    for name, slope in slopes(objective, record).items():
        if found[name] is not None:
            assert torch.allclose(found[name], slope, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("name", PRESETS)
def test_data_weights_multiply_the_loss(name: str) -> None:
    objective = build(name)
    record = random_record(objective)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    weighted = objective(replace(record, weights=weights)).loss
    assert torch.allclose(weighted, weights * objective(record).loss, rtol=1e-14)


def test_normalised_weights_average_to_one() -> None:
    objective = build("gapo", weight={"normalize": True})
    record = random_record(objective)
    plain, scaled = build("gapo")(record).loss, objective(record).loss
    gains = 2 ** record.scores[:, 0] - 2 ** record.scores[:, 1]
    assert torch.allclose(scaled, plain / gains.mean(), rtol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_float32_gives_float32_and_finite(name: str) -> None:
    objective = build(name)
    record = random_record(objective)
    fields = ("policy_winner", "policy_loser", "reference_winner", "reference_loser")
    single = {f: getattr(record, f).detach().float() for f in fields if getattr(record, f) is not None}
    out = objective(replace(record, **single))
    assert out.loss.dtype == torch.float32 and torch.isfinite(out.loss).all()
    assert all(not value.requires_grad for value in out.metrics.values())
