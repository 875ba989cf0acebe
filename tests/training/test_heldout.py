"""When the held-out pairs' reference errors are measured: early or late, the numbers are the same."""

from __future__ import annotations

import pytest

from t2i_align.backbones import Backbone
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .runs import run_config, write_pairs


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_reference_measured_after_updates_is_the_one_measured_before(tiny_sdxl, tmp_path, monkeypatch, mode):
    pairs = write_pairs(tmp_path / "pairs.parquet")

    def heldout(name: str) -> list[dict]:
        sections = {"data": {"heldout_fraction": 0.3}, "validation": {"validation_steps": 2, "heldout_draws": 2}}
        model = {"train": "full"} if mode == "full" else {}
        train(run_config(tiny_sdxl, pairs, tmp_path / name, model=model, training={"max_train_steps": 4}, **sections))
        return [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "heldout/margin" in row]

    late = heldout("late")  # a run with a reference waits until it validates
    monkeypatch.setattr(Backbone, "has_reference", property(lambda self: False))
    early = heldout("early")
    assert [row["step"] for row in late] == [2, 4]
    assert late[0]["heldout/margin"] != 0.0
    assert late == early
