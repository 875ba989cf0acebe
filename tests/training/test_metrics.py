"""metrics.jsonl, the |z| quantiles, accuracy by timestep, and the displacement watch."""

import importlib.util
import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from t2i_align.errors import UserError
from t2i_align.training.metrics import DisplacementWatch, MetricsWriter, logit_quantiles, read_metrics
from t2i_align.training.optimisers import check_optimizer
from t2i_align.training.run import train
from t2i_align.training.summary import accuracy_by_timestep
from t2i_align.training.trackers import check_trackers

from .runs import run_config


def test_a_resumed_file_reads_like_an_unbroken_run(tmp_path):
    writer = MetricsWriter(tmp_path, [], {}, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with writer.path.open("a") as file:
        file.write('{"step": 4, "lo')  # the line a kill cut short

    resumed = MetricsWriter(tmp_path, [], {}, resume_step=2)
    resumed.write(3, {"loss": 30.0})
    resumed.close()

    assert [(row["step"], row["loss"]) for row in read_metrics(writer.path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_non_finite_numbers_stay_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path, [], {}, resume_step=0)
    writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    writer.close()
    assert json.loads(writer.path.read_text()) == {"step": 1, "a": None, "b": None, "c": 1.0}


class FakeWandb(ModuleType):
    """Remembers what it was told; a run gets its id from ``init``, or a new one."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.runs, self.rows = [], []

    def init(self, **settings):
        self.runs.append(settings)
        return SimpleNamespace(
            id=settings["id"] or f"new-{len(self.runs)}",
            log=lambda values, step: self.rows.append((step, values)),
            finish=lambda: self.rows.append("finished"),
        )


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    check_trackers(["wandb"])
    for resume_step in (0, 1, 0):  # a new run, the same one resumed, and another one in the folder
        writer = MetricsWriter(tmp_path, ["wandb"], {"seed": 3}, resume_step)
        writer.write(resume_step + 1, {"loss": 0.5})
        writer.close()
    assert [run["id"] for run in fake.runs] == [None, "new-1", None]
    assert fake.rows[:2] == [(1, {"loss": 0.5}), "finished"] and fake.runs[0]["config"] == {"seed": 3}


def test_what_is_not_installed_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nowhere = (tmp_path / "no-model", tmp_path / "no-pairs", tmp_path / "run")
    for sections, package in (
        ({"report_to": ["wandb"]}, "wandb"),
        ({"training": {"optimizer": "adamw_8bit"}}, "bitsandbytes"),
    ):
        with pytest.raises(UserError, match=f"{package} is not installed"):
            train(run_config(*nowhere, **sections))


class Fake8bit(torch.optim.SGD):
    """In place of bitsandbytes' optimiser, which is an extra."""

    works = True

    def step(self, closure=None):
        if not self.works:
            raise RuntimeError("All input tensors need to be on the same GPU\nmore")
        super().step(closure)


@pytest.mark.parametrize("works", [True, False])
def test_8bit_adamw_is_tried_on_the_cpu(works, monkeypatch):
    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Fake8bit), __version__="0.49.2", __spec__=object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setattr(Fake8bit, "works", works)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = run_config("m", "p", "r", training={"optimizer": "adamw_8bit"}).training
    if works:
        check_optimizer(config)
    else:
        with pytest.raises(UserError, match=r"on the CPU with this bitsandbytes[\s\S]*0.49.2: All input [^\n]* GPU\n"):
            check_optimizer(config)


def test_logit_quantiles_by_hand():
    values = logit_quantiles(torch.tensor([-3.0, 0.0, 1.0, 2.0, -1.0]))
    assert values["logits/abs_p50"] == 1.0
    assert torch.isclose(values["logits/abs_p90"], torch.tensor(2.6))
    assert values["logits/abs_max"] == 3.0


def test_accuracy_by_timestep_leaves_empty_bins_out():
    accuracy = torch.tensor([1.0, 0.0, 0.5, 1.0])
    values = accuracy_by_timestep(accuracy, torch.tensor([0.0, 0.2, 0.3, 0.999]))
    assert {name[-6:]: float(value) for name, value in values.items()} == {"0_of_4": 0.5, "1_of_4": 0.5, "3_of_4": 1.0}


REFERENCE, NOISE = 0.027, 0.0015  # r_w of the shapes world, and how far d_w of a batch of 32 pairs strays


def watched(d_winner: torch.Tensor, margin: torch.Tensor, seed: int = 0) -> list[bool]:
    """What a watch says of two courses under the noise of batches."""
    draw = torch.Generator().manual_seed(seed)
    noisy = [course + NOISE * torch.randn(len(course), generator=draw) for course in (d_winner, margin)]
    watch = DisplacementWatch()
    return [watch.update(d, h, REFERENCE) for d, h in zip(noisy[0].tolist(), noisy[1].tolist(), strict=True)]


def test_displacement_is_a_winner_far_above_the_reference_under_a_growing_margin(caplog):
    watch = DisplacementWatch(half_window=5)
    with caplog.at_level(logging.WARNING):
        flags = [watch.update(0.001 * step, 0.002 * step, 0.031) for step in range(21)]
    # The later half of steps n-4 .. n has a mean of (n - 2) / 1000, above a third of 0.031 from n = 13 on.
    assert flags == [step >= 13 for step in range(21)]
    assert sum("displacement" in record.message for record in caplog.records) == 1
    assert "35 % above" in caplog.text  # 0.011 / 0.031


def test_no_displacement_while_the_winner_improves_or_the_margin_shrinks():
    improving, shrinking = DisplacementWatch(5), DisplacementWatch(5)
    assert not any(improving.update(-0.01 * step, 0.02 * step, 0.03) for step in range(20))
    assert not any(shrinking.update(0.01 * step, -0.02 * step, 0.03) for step in range(20))


@pytest.mark.parametrize("seed", range(5))
def test_healthy_runs_do_not_warn(seed, caplog):
    steps = torch.arange(2000) / 2000
    flat, rising = torch.zeros(2000), 0.2 * REFERENCE * steps  # the demo ends at a fifth of r_w, and wins
    with caplog.at_level(logging.WARNING):
        assert not any(watched(flat, flat, seed))
        assert not any(watched(rising, 0.05 * REFERENCE * steps, seed))
    assert not caplog.records


@pytest.mark.parametrize("seed", range(5))
def test_real_displacement_warns_in_time(seed):
    steps = torch.arange(400) / 400
    flags = watched(REFERENCE * steps, 0.2 * REFERENCE * steps, seed)  # as lr 10 times the demo's, slower
    first = flags.index(True)
    assert 1 / 3 < first / 400 < 1 / 2


def test_a_few_wild_batches_are_no_displacement():
    watch = DisplacementWatch()
    wild = [0.0] * 60
    wild[40] = wild[55] = 0.5
    assert not any(watch.update(d, 0.001 + d / 10, REFERENCE) for d in wild)
