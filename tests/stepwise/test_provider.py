"""Dealing pairs out: over steps, micro-steps and processes, and through a checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from t2i_align.stepwise import provider as provider_module
from t2i_align.stepwise.batch import StepPairs

from .harness import trainer

THRESHOLD = {"threshold": {"schedule": "constant", "low": 0.8}, "prompts_per_rollout": 3}


def processes(folder, count: int, monkeypatch, **training) -> list:
    """Trainers of several processes; `sample` plays their one collective."""
    runs = [
        trainer(
            folder,
            THRESHOLD,
            accelerator=SimpleNamespace(
                num_processes=count, process_index=rank, device=torch.device("cpu"), gather=lambda value: value
            ),
            **training,
        )
        for rank in range(count)
    ]
    for run in runs:
        monkeypatch.setattr(run.parts.provider, "_exchange", lambda number, statistics: [number] * count)
    return runs


def sample(runs) -> list[StepPairs]:
    """The first rollout of every process, and the numbers they agreed on."""
    for run in runs:
        run.parts.provider._refill(0)
    agreed = [len(run.parts.provider._pending) for run in runs]
    for run in runs:
        run.parts.provider._counts = list(agreed)
        run.parts.provider._steps = run.parts.provider._steps_for(agreed)
    return [run.parts.provider._pending for run in runs]


def number(pairs: StepPairs) -> torch.Tensor:
    return pairs.winner.flatten(1).double().mean(1)


def test_processes_sample_what_one_would(tiny_sd, monkeypatch):
    two = sample(processes(tiny_sd, 2, monkeypatch))
    one = trainer(tiny_sd, {**THRESHOLD, "prompts_per_rollout": 6})
    one.parts.provider._refill(0)
    ours, theirs = number(StepPairs.cat(two)).sort().values, number(one.parts.provider._pending).sort().values
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_mean_over_everything_is_the_mean_over_pairs(tiny_sd, monkeypatch, accumulation):
    runs = processes(tiny_sd, 2, monkeypatch, train_batch_size=2, gradient_accumulation_steps=accumulation)
    pools = sample(runs)
    assert len(pools[0]) != len(pools[1])  # or nothing is tested
    steps, seen = runs[0].parts.provider._steps, 0
    for step in range(steps):
        total, real = 0.0, []
        for micro in range(accumulation):
            batches = [run.parts.provider.batch(step, micro) for run in runs]
            assert len({len(batch) for batch in batches}) == 1 and 1 <= len(batches[0]) <= 2
            for batch in batches:
                total += float((batch.weights * number(batch.pairs)).mean()) / accumulation / 2
                real.append(number(batch.pairs)[batch.weights > 0])
        seen += len(torch.cat(real))
        assert total == pytest.approx(float(torch.cat(real).mean()), rel=1e-5, abs=1e-7)
    assert seen == len(pools[0]) + len(pools[1])
    assert [len(run.parts.provider._pending) for run in runs] == [0, 0]


def test_a_process_without_pairs_goes_along(tiny_sd, monkeypatch):
    runs = processes(tiny_sd, 2, monkeypatch, train_batch_size=2)
    sample(runs)
    empty = runs[1].parts.provider
    empty._pending = StepPairs.empty((4, 8, 8), torch.device("cpu"))
    for run in runs:
        run.parts.provider._counts[1] = 0
        run.parts.provider._steps = run.parts.provider._steps_for(run.parts.provider._counts)
    full, idle = (run.parts.provider.batch(0, 0) for run in runs)
    assert len(full) == len(idle) > 0 and (idle.weights == 0).all()
    output, _ = runs[1].parts.step.loss(idle, None, 0)
    assert (output.loss == 0).all()
    output.loss.mean().backward()  # takes part in the reduction of gradients
    assert all((p.grad == 0).all() for p in runs[1].backbone.trainable_parameters() if p.grad is not None)


def test_waiting_pairs_survive_a_change_of_processes(tiny_sd, monkeypatch):
    runs = processes(tiny_sd, 2, monkeypatch, train_batch_size=2)
    pools = sample(runs)
    everyone = [{**pool.tensors(), "passes": run.parts.counter.tensor()} for run, pool in zip(runs, pools, strict=True)]
    monkeypatch.setattr(provider_module, "gather_object", lambda mine: everyone)
    state = runs[0].parts.provider.state()
    same = processes(tiny_sd, 2, monkeypatch, train_batch_size=2)
    for run, pool in zip(same, pools, strict=True):
        run.parts.provider.restore(state)
        assert torch.equal(run.parts.provider._pending.winner, pool.winner)
        assert run.parts.provider._steps == runs[0].parts.provider._steps
    alone = trainer(tiny_sd, THRESHOLD, train_batch_size=4)
    alone.parts.provider.restore(state)
    served = []
    for step in range(alone.parts.provider._steps):
        served.append(alone.parts.provider.batch(step, 0))
        assert (served[-1].weights == 1).all()
    assert sum(len(batch) for batch in served) == sum(len(pool) for pool in pools)


def test_state_is_plain_tensors(tiny_sd, tmp_path):
    from safetensors.torch import load_file, save_file

    run = trainer(tiny_sd).steps(1)
    state = run.parts.provider.state()
    save_file(state, tmp_path / "rollout.safetensors")
    other = trainer(tiny_sd)
    other.parts.provider.restore(load_file(tmp_path / "rollout.safetensors"))
    ours, theirs = (one.parts.provider.batch(1, 0).pairs for one in (run, other))
    assert all(torch.equal(value, theirs.tensors()[name]) for name, value in ours.tensors().items())
