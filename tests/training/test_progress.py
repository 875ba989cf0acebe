"""The terminal: pace and time left, silence when asked for it; sample grids in the trackers."""

import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.training.progress import Progress, in_words

from .runs import run_settings, write_pairs
from .test_metrics import FakeWandb


def shown(capsys, updates, total=100, enabled=True) -> list[str]:
    progress = Progress(total, enabled)
    for step, seconds in updates:
        progress.update(step, {"loss": 0.5, "seconds": seconds})
    progress.close()
    return capsys.readouterr().err.splitlines()


def test_a_line_says_seconds_a_step_and_the_time_left(capsys):
    lines = shown(capsys, [(1, 60.0), (5, 68.0), (10, 78.0)])  # the first step is slow: it is no pace
    assert lines == [
        "step 1/100  loss 0.5",
        "step 5/100  loss 0.5  2 s/step  3 min 10 s left",
        "step 10/100  loss 0.5  2 s/step  3 min left",
    ]


def test_a_resumed_run_has_its_own_pace(capsys):
    assert shown(capsys, [(50, 1000.0), (55, 1010.0)])[-1].endswith("2 s/step  1 min 30 s left")


def test_the_last_line_has_nothing_left(capsys):
    assert shown(capsys, [(99, 10.0), (100, 11.0)])[-1] == "step 100/100  loss 0.5  1 s/step"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (48, "48 s"), (60, "1 min"), (725, "12 min 5 s"), (3600, "1 h"), (12_030, "3 h 20 min")],
)
def test_durations(seconds, words):
    assert in_words(seconds) == words


def test_other_processes_and_quiet_runs_say_nothing(capsys, monkeypatch):
    assert shown(capsys, [(1, 1.0), (100, 2.0)], enabled=False) == []
    monkeypatch.setattr("t2i_align.progress._quiet", True)
    assert shown(capsys, [(1, 1.0), (100, 2.0)]) == []


def test_brackets_are_shown_as_they_are(capsys):
    progress = Progress(1, True)
    progress.note("data.source: [a] before, [/b] from here on")
    assert capsys.readouterr().err == "data.source: [a] before, [/b] from here on\n"


def test_grids_are_in_tensorboard_and_wandb_and_quiet_is_quiet(tiny_sd, tmp_path, monkeypatch):
    wandb = FakeWandb()
    wandb.Image = lambda file: ("picture", file)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = tmp_path / "run"
    settings = run_settings(
        tiny_sd,
        write_pairs(tmp_path / "pairs.parquet"),
        run,
        report_to=["tensorboard", "wandb"],
        training={"max_train_steps": 2},
        validation={"validation_prompts": ["a", "b"], "num_inference_steps": 1, "validation_steps": 1},
    )
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["-q", "train", str(file)])
    assert result.exit_code == 0, result.output
    # Warnings stay: untrained weights do predict worse than zero.
    assert [line for line in result.stderr.splitlines() if not line.startswith("the base model predicts worse")] == []
    assert result.stdout.startswith("2 steps in ") and result.stdout.count("\n") == 1

    grids = [run / f"samples/step-{step}.png" for step in (0, 1, 2)]
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["samples"]
    for event, step, grid in zip(events.Images("samples"), (0, 1, 2), grids, strict=True):
        (tmp_path / "event.png").write_bytes(event.encoded_image_string)
        assert event.step == step
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "event.png")), np.asarray(Image.open(grid).convert("RGB"))
        )
    pictures = [
        (step, row["samples"]) for step, row in (row for row in wandb.rows if row != "finished") if "samples" in row
    ]
    assert pictures == [(step, ("picture", str(grid))) for step, grid in enumerate(grids)]
