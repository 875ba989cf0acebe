"""Whole runs on tiny random pipelines: every backbone, every basic objective, bit-exact resume, bad luck."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.training.checkpoints import list_checkpoints
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .processes import train_together
from .runs import run_config, run_settings, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(params=["tiny_sdxl", "tiny_sd", "tiny_sd_v"])
def model(request) -> Path:
    return request.getfixturevalue(request.param)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoint-{step}" / "trainable.safetensors")


def test_any_folder_trains_from_log_2_and_exports(model, pairs, tmp_path):
    result = train(run_config(model, pairs, tmp_path / "run"))
    rows = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)  # policy == reference
    assert rows[0]["implicit_accuracy"] == 0.5
    assert rows[1]["loss"] != rows[0]["loss"]
    assert (result.export_dir / "pytorch_lora_weights.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]["learning_rate"] == 1e-3
    assert (
        json.loads((tmp_path / "run/environment.json").read_text())["packages"]["torch"]
        == torch.__version__.split("+")[0]
    )


@pytest.mark.parametrize("train_mode", ["lora", "full"])
@pytest.mark.parametrize("preset", ["sft", "dpo", "mapo"])
def test_presets_train_with_adapters_and_whole(tiny_sdxl, pairs, tmp_path, preset, train_mode):
    model = {"train": train_mode} if train_mode == "full" else {}
    config = run_config(tiny_sdxl, pairs, tmp_path / "run", model=model, training={"max_train_steps": 2})
    config.objective = type(config.objective).model_validate({"preset": preset})
    train(config)
    name = "pytorch_lora_weights.safetensors" if train_mode == "lora" else "unet"
    assert (tmp_path / "run/export" / name).exists()
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run", 2).values())


def test_a_zero_learning_rate_leaves_the_weights_and_the_loss_at_log_2(tiny_sdxl, pairs, tmp_path):
    train(run_config(tiny_sdxl, pairs, tmp_path / "run", training={"learning_rate": 0.0}))
    first, last = weights(tmp_path / "run", 2), weights(tmp_path / "run", 4)
    assert all(torch.equal(first[name], last[name]) for name in first)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert losses == pytest.approx([0.6931472] * 4, abs=1e-6)


def test_accumulation_changes_nothing_but_memory(tiny_sdxl, pairs, tmp_path):
    # A small rate and scale: Adam's first steps have unit size whatever the gradient, and k multiplies what kernels for
    # other batch sizes round differently; both would magnify rounding, not errors.
    objective = {"preset": "dpo", "beta": 20.0}
    common = {"max_train_steps": 2, "learning_rate": 1e-5}
    plain = {"train_batch_size": 4, **common}
    parts = {"train_batch_size": 2, "gradient_accumulation_steps": 2, **common}
    train(run_config(tiny_sdxl, pairs, tmp_path / "plain", objective=objective, training=plain))
    train(run_config(tiny_sdxl, pairs, tmp_path / "parts", objective=objective, training=parts))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "parts")]
    for one, other in zip(*rows, strict=True):
        for key in ("loss", "grad_norm", "e_w", "e_l"):
            assert other[key] == pytest.approx(one[key], rel=1e-5), (one["step"], key)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def launch(settings: dict, folder: Path, processes: int = 1) -> subprocess.Popen:
    """`t2i-align train` in a process of its own (or two, over gloo)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "t2i_align", "train", str(config)]
    if processes > 1:
        port = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *port, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def test_kill_minus_nine_and_resume_is_bit_identical(tiny_sdxl, pairs, tmp_path):
    training = {"max_train_steps": 24, "checkpointing_steps": 3, "ema": {"enabled": True}}
    training |= {"gradient_accumulation_steps": 2, "lr_warmup_steps": 4}
    data = {"heldout_fraction": 0.3, "proportion_empty_prompts": 0.2}
    model = {"lora": {"rank": 4, "dropout": 0.1}}

    def settings(name: str, **more) -> dict:
        sections = {"training": training | more, "data": data, "model": model}
        return run_settings(tiny_sdxl, pairs, tmp_path / name, **sections)

    finish(launch(settings("unbroken"), tmp_path / "a"))
    process = launch(settings("killed"), tmp_path / "b")
    while len(list_checkpoints(tmp_path / "killed")) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/checkpoint-24").exists()
    finish(launch(settings("killed", resume_from_checkpoint="latest"), tmp_path / "c"))

    whole, resumed = weights(tmp_path / "unbroken", 24), weights(tmp_path / "killed", 24)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("ema.safetensors",):
        ours, theirs = (load_file(tmp_path / run / "checkpoint-24" / name) for run in ("unbroken", "killed"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    drop = {"seconds"}
    rows = [
        [{k: v for k, v in row.items() if k not in drop} for row in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("unbroken", "killed")
    ]
    assert rows[0] == rows[1]


def test_two_processes_equal_one_with_twice_the_batch(tiny_sdxl, pairs, tmp_path):
    # An objective with two statistics of the batch, KTO's reference point and a weight's mean: over all processes.
    # A small rate and scale: Adam's first steps have unit size whatever the gradient, and k multiplies what kernels for
    # other batch sizes round differently; both would magnify rounding, not errors.
    common = {"max_train_steps": 3, "learning_rate": 1e-5}
    weight = {"name": "adaptive_margin", "width": 0.5, "normalize": True}
    objective = {"preset": "kto", "beta": 20.0, "weight": weight}
    table = pq.read_table(pairs)
    margins = pa.array([{"clip": 0.1 * (index % 5)} for index in range(len(table))])
    pq.write_table(table.append_column("margins", margins), tmp_path / "margins.parquet")

    def settings(name: str, batch: int) -> dict:
        training = {"train_batch_size": batch, **common}
        source = tmp_path / "margins.parquet"
        return run_settings(tiny_sdxl, source, tmp_path / name, objective=objective, training=training)

    one, two = settings("one", 4), settings("two", 2)
    train(RunConfig.model_validate(one))
    train_together([two], tmp_path / "logs")
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        for key in ("loss", "grad_norm", "margin", "e_w", "d_w", "logits/abs_max"):
            assert double[key] == pytest.approx(single[key], rel=1e-5, abs=1e-5), key
        assert double["reference_point"] == pytest.approx(single["reference_point"], abs=2e-6)


def test_a_stop_signal_writes_a_checkpoint_and_says_how_to_go_on(tiny_sdxl, pairs, tmp_path):
    training = {"max_train_steps": 5000, "checkpointing_steps": 5000}
    process = launch(run_settings(tiny_sdxl, pairs, tmp_path / "run", training=training), tmp_path / "a")
    while len(read_metrics(tmp_path / "run/metrics.jsonl")) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "resume_from_checkpoint=latest" in output
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_a_non_finite_loss_stops_before_any_update(tiny_sdxl, pairs, tmp_path, monkeypatch):
    from t2i_align.backbones import Backbone

    calls = []
    predict = Backbone.predict

    def broken(self, *args, **kwargs):
        calls.append(1)
        result = predict(self, *args, **kwargs)
        return (
            result * float("nan") if len(calls) > 3 else result
        )  # after the check of the base, the second step's policy

    monkeypatch.setattr(Backbone, "predict", broken)
    with pytest.raises(UserError, match="loss became nan at step 2; no update"):
        train(run_config(tiny_sdxl, pairs, tmp_path / "run", training={"checkpointing_steps": 1}))
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [1]


def test_the_cache_and_live_pictures_give_the_same_run(tiny_sdxl, pairs, tmp_path):
    # Latents agree to rounding (the encoder's batches differ); a small beta keeps the logit from magnifying it.
    objective = {"preset": "dpo", "beta": 2.0}
    train(run_config(tiny_sdxl, pairs, tmp_path / "live", objective=objective))
    data = {"cache_dir": str(tmp_path / "cache")}
    train(run_config(tiny_sdxl, pairs, tmp_path / "cached", objective=objective, data=data))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), abs=1e-6)


def test_samples_and_heldout_accuracy_are_written(tiny_sdxl, pairs, tmp_path):
    validation = {"validation_prompts": ["a red circle", "a blue square"], "validation_steps": 2}
    config = run_config(
        tiny_sdxl,
        pairs,
        tmp_path / "run",
        data={"heldout_fraction": 0.4},
        validation=validation | {"num_inference_steps": 2},
    )
    train(config)
    assert {path.name for path in (tmp_path / "run/samples").glob("*.png")} == {
        "step-0.png",
        "step-2.png",
        "step-4.png",
    }
    heldout = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if "heldout/implicit_accuracy" in row]
    assert [row["step"] for row in heldout] == [2, 4]
    assert all(0 <= row["heldout/implicit_accuracy"] <= 1 for row in heldout)


def test_shuffled_labels_are_another_run(tiny_sdxl, pairs, tmp_path):
    train(run_config(tiny_sdxl, pairs, tmp_path / "true"))
    train(run_config(tiny_sdxl, pairs, tmp_path / "control", data={"shuffle_labels": True}))
    assert losses(tmp_path / "true")[1:] != losses(tmp_path / "control")[1:]
