"""Records to feed any objective with, float64 unless asked otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from t2i_align.objectives import Objective, PairErrors

LEAVES = ("policy_winner", "policy_loser")


def by_hand(w: float, l: float, rw: float, rl: float, **more: Any) -> PairErrors:  # noqa: E741
    """One pair from four numbers; the policy errors are leaves that want gradients."""
    policy = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (w, l))
    reference = (torch.tensor([value], dtype=torch.float64) for value in (rw, rl))
    return PairErrors(*policy, *reference, **more)


def random_record(objective: Objective, batch: int = 6, seed: int = 0, at_reference: bool = False) -> PairErrors:
    """A record with everything the objective reads; with ``at_reference`` policy and reference agree
    exactly."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = {"group": (batch, 4), "ranked": (batch, 3)}.get(objective.layout, (batch,))
    errors = {name: 0.05 + 0.1 * uniform(*shape) for name in ("policy_winner", "policy_loser")}
    small = {name: 0.002 * (uniform(*shape) - 0.5) for name in errors}
    if not objective.needs_loser:
        del errors["policy_loser"]
    record: dict[str, Any] = {name: value.clone().requires_grad_() for name, value in errors.items()}
    if objective.needs_reference:
        for name, value in errors.items():
            offset = torch.zeros_like(value) if at_reference else small[name]
            record[name.replace("policy", "reference")] = value + offset
    data = {
        "margins": uniform(batch) + 0.1,
        "labels": torch.ones(batch, dtype=torch.float64),
        "scores": uniform(*shape) if objective.layout == "ranked" else uniform(batch, 2).sort(-1, descending=True)[0],
        "frequencies": 0.1 + 0.8 * uniform(batch),
        "difficulty": torch.zeros(batch, dtype=torch.float64),
        "user_shares": 0.5 + uniform(batch),
        "timesteps": torch.randint(0, 1000, (batch,), generator=generator),
        "snr": torch.linspace(4.0, -3.0, 1000, dtype=torch.float64).exp(),
        "max_steps": 100,
    }
    if objective.layout == "labelled":
        data["labels"] = torch.arange(batch, dtype=torch.float64) % 2
    return PairErrors(**record, **{name: data[name] for name in objective.needs})


def slopes(objective: Objective, record: PairErrors) -> dict[str, Tensor]:
    """d(sum of losses) / d(policy errors), by field; zero where the loss does not depend on one."""
    present = {name: getattr(record, name) for name in LEAVES if getattr(record, name) is not None}
    loss = objective(record).loss.sum()
    found = torch.autograd.grad(loss, list(present.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(present.items(), found, strict=True)
    }


def in_two_processes(objective: Objective, record: PairErrors) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and slopes of the record split over two threads that gather from each other."""
    halves = record.batch_size // 2
    barrier, shared, results = threading.Barrier(2), [None, None], [None, None]

    def gather_on(rank: int) -> Callable[[Tensor], Tensor]:
        def gather(value: Tensor) -> Tensor:
            shared[rank] = value
            barrier.wait(timeout=10)
            both = torch.cat(shared)
            barrier.wait(timeout=10)
            return both

        return gather

    def run(rank: int) -> None:
        part = record.select(torch.arange(halves) + rank * halves)
        leaves = {
            name: getattr(part, name).detach().requires_grad_() for name in LEAVES if getattr(part, name) is not None
        }
        part = replace(part, **leaves, gather=gather_on(rank), process_index=rank)
        out = objective(part)
        found = torch.autograd.grad(out.loss.sum(), list(leaves.values()), allow_unused=True)
        results[rank] = (out.loss.detach(), dict(zip(leaves, found, strict=True)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    losses = torch.cat([result[0] for result in results])
    return losses, {name: torch.cat([result[1][name] for result in results]) for name in results[0][1]}
