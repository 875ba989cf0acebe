"""Whole on-policy runs by the ordinary trainer: they differ from offline ones by the rollout section alone."""

import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

from t2i_align.config.loading import load_config
from t2i_align.evaluation.report.curves import read_run
from t2i_align.training.checkpoints import list_checkpoints
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .runs import run_config, run_settings, write_pairs
from .test_train import finish, launch

ROLLOUT = {
    "scorer": {"name": "channel_mean"},
    "threshold": {"schedule": "constant", "low": 0.3},
    "prompts_per_rollout": 3,
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
}
OBJECTIVE = {"preset": "dpo", "beta": 500.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(params=["tiny_sdxl", "tiny_sd", "tiny_sd_v"])
def model(request):
    return request.getfixturevalue(request.param)


def steps_of(folder):
    return [row for row in read_metrics(folder / "metrics.jsonl") if "passes/unet_forward" in row]


def weights(folder, step):
    return load_file(folder / f"checkpoint-{step}/trainable.safetensors")


def timeless(folder):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(folder / "metrics.jsonl")]


def test_a_section_makes_any_run_on_policy(model, pairs, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_settings(model, pairs, tmp_path / "run", rollout=ROLLOUT, objective=OBJECTIVE)))
    result = train(load_config(file))
    rows = steps_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["passes/train_forward_per_pair"] == 4.0 and rows[-1]["passes/train_backward_per_pair"] == 2.0
    assert 0 < rows[0]["rollout/acceptance"] <= 1 and rows[0]["rollout/staleness"] == 0.0
    assert rows[-1]["rollout/rollout_seconds"] + rows[-1]["rollout/train_seconds"] == pytest.approx(rows[-1]["seconds"])
    assert (result.export_dir / "pytorch_lora_weights.safetensors").is_file()
    assert load_config(tmp_path / "run/config.yaml").rollout is not None
    titles = {chart.title for chart in read_run("run", tmp_path / "run").charts}
    assert titles >= {"Score gap", "Accepted pairs", "Staleness", "Seconds so far", "UNet passes so far"}


def test_held_out_pairs_and_sample_grids_as_always(tiny_sdxl, pairs, tmp_path):
    validation = {"validation_prompts": ["a red circle"], "validation_steps": 1, "num_inference_steps": 2}
    data, training = {"heldout_fraction": 0.4}, {"max_train_steps": 1}
    config = run_config(
        tiny_sdxl, pairs, tmp_path / "run", rollout=ROLLOUT, data=data, validation=validation, training=training
    )
    train(config)
    assert (tmp_path / "run/samples/step-1.png").is_file()
    assert any("heldout/implicit_accuracy" in row for row in read_metrics(tmp_path / "run/metrics.jsonl"))


def test_kill_and_resume_reproduce_the_next_rollout_and_loss(tiny_sdxl, pairs, tmp_path):
    training = {"max_train_steps": 8, "checkpointing_steps": 1, "gradient_accumulation_steps": 2}

    def settings(name, **more):
        return run_settings(
            tiny_sdxl, pairs, tmp_path / name, rollout=ROLLOUT, objective=OBJECTIVE, training=training | more
        )

    train(run_config(tiny_sdxl, pairs, tmp_path / "whole", rollout=ROLLOUT, objective=OBJECTIVE, training=training))
    process = launch(settings("cut"), tmp_path / "launch")
    while len(list_checkpoints(tmp_path / "cut")) < 3 and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut/checkpoint-8").exists()
    finish(launch(settings("cut", resume_from_checkpoint="latest"), tmp_path / "again"))
    ours, theirs = weights(tmp_path / "whole", 8), weights(tmp_path / "cut", 8)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "cut")


def test_a_threshold_nobody_reaches_changes_nothing(tiny_sdxl, pairs, tmp_path):
    rollout = {**ROLLOUT, "threshold": {"schedule": "constant", "low": 1.0}}
    train(run_config(tiny_sdxl, pairs, tmp_path / "run", rollout=rollout, training={"checkpointing_steps": 1}))
    first, last = weights(tmp_path / "run", 1), weights(tmp_path / "run", 4)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert all(row["rollout/acceptance"] == 0.0 for row in steps_of(tmp_path / "run"))


def test_a_zero_learning_rate_leaves_the_weights_bit_identical_at_log_2(tiny_sd, pairs, tmp_path):
    training = {"learning_rate": 0.0, "checkpointing_steps": 1}
    train(run_config(tiny_sd, pairs, tmp_path / "run", rollout=ROLLOUT, objective=OBJECTIVE, training=training))
    first, last = weights(tmp_path / "run", 1), weights(tmp_path / "run", 4)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert [row["loss"] for row in steps_of(tmp_path / "run")] == pytest.approx([math.log(2)] * 4, abs=1e-6)


def test_two_processes_equal_one_with_twice_the_prompts(tiny_sdxl, pairs, tmp_path):
    for name, processes, prompts in (("one", 1, 6), ("two", 2, 3)):
        training = {"max_train_steps": 3, "train_batch_size": 64 // processes, "learning_rate": 1e-5}
        run = run_settings(tiny_sdxl, pairs, tmp_path / name, objective=OBJECTIVE, training=training)
        run["rollout"] = {**ROLLOUT, "prompts_per_rollout": prompts}
        finish(launch(run, tmp_path / f"{name}-launch", processes=processes))
    for single, double in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "two"), strict=True):
        for key in ("loss", "rollout/acceptance", "rollout/pairs", "rollout/accepted_pairs"):
            assert double[key] == pytest.approx(single[key], rel=1e-4, abs=1e-6), key
        # A process with fewer pairs fills up with rows of weight 0, which cost passes.
        assert double["passes/unet_backward"] >= single["passes/unet_backward"]
