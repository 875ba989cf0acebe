"""Everything a user can get wrong ends in one clear message, exit code 2, and not one training step."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from t2i_align.cli import app

from .tiny import edit_json
from .training.runs import run_settings, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


def refusal(settings: dict, folder: Path, *overrides: str) -> str:
    """The one message of a refused `t2i-align train`; fails if anything was trained or a traceback shown."""
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["train", str(config), *overrides])
    output = result.output
    assert result.exit_code == 2, output
    assert output.count("error:") == 1 and "Traceback" not in output, output
    assert "fix:" in output
    run = Path(settings["output_dir"])
    assert not list(run.glob("checkpoint-*")) and not (run / "metrics.jsonl").exists()
    return output


def edited(pairs: Path, target: Path, column: str, row: int, value: object) -> Path:
    """A copy of the pairs with one cell changed."""
    table = pq.read_table(pairs).to_pydict()
    table[column][row] = value
    import pyarrow as pa

    pq.write_table(pa.table(table), target)
    return target


def test_misspelt_keys_are_all_reported_with_the_nearest(tiny_sdxl, pairs, tmp_path):
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run", training={"learning_rat": 1.0}, data={"resolutoin": 3})
    output = refusal(settings, tmp_path)
    assert "learning_rate" in output and "resolution" in output


def test_a_wrong_type_names_the_key_and_the_value(tiny_sdxl, pairs, tmp_path):
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run")
    output = refusal(settings, tmp_path, "training.max_train_steps=many")
    assert "training.max_train_steps" in output and "many" in output


def test_an_unknown_objective_names_the_nearest(tiny_sdxl, pairs, tmp_path):
    output = refusal(run_settings(tiny_sdxl, pairs, tmp_path / "run", objective={"preset": "dpoo"}), tmp_path)
    assert "dpoo" in output and "dpo" in output


@pytest.mark.parametrize(("preset", "said"), [("gapo", "scores"), ("madpo", "margins")])
def test_an_objective_that_the_data_cannot_feed(tiny_sdxl, pairs, tmp_path, preset, said):
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run")
    settings["objective"] = {"preset": preset}
    assert said in refusal(settings, tmp_path)


def test_a_missing_model_folder(pairs, tmp_path):
    output = refusal(run_settings(tmp_path / "nowhere", pairs, tmp_path / "run"), tmp_path)
    assert str(tmp_path / "nowhere") in output


def test_a_missing_pair_file(tiny_sdxl, tmp_path):
    output = refusal(run_settings(tiny_sdxl, tmp_path / "none.parquet", tmp_path / "run"), tmp_path)
    assert "none.parquet" in output


def test_an_empty_data_set(tiny_sdxl, pairs, tmp_path):
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(pairs).slice(0, 0), empty)
    assert "empty.parquet" in refusal(run_settings(tiny_sdxl, empty, tmp_path / "run"), tmp_path)


def test_a_data_set_of_ties_only(tiny_sdxl, pairs, tmp_path):
    table = pq.read_table(pairs).slice(0, 1).to_pydict()
    table["label_0"] = table["label_1"] = [0.5]
    import pyarrow as pa

    path = tmp_path / "ties.parquet"
    pq.write_table(pa.table(table), path)
    assert "ties" in refusal(run_settings(tiny_sdxl, path, tmp_path / "run"), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a picture", "truncated"])
def test_a_corrupt_picture_names_its_row(tiny_sdxl, pairs, tmp_path, damage):
    if damage == "truncated":
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
        damage = buffer.getvalue()[:60]
    path = edited(pairs, tmp_path / "broken.parquet", "jpg_1", 5, damage)
    output = refusal(run_settings(tiny_sdxl, path, tmp_path / "run"), tmp_path)
    assert "row 5" in output, output


def test_a_label_out_of_range(tiny_sdxl, pairs, tmp_path):
    path = edited(pairs, tmp_path / "label.parquet", "label_0", 3, 7.0)
    output = refusal(run_settings(tiny_sdxl, path, tmp_path / "run"), tmp_path)
    assert "label_0" in output and "7" in output


@pytest.mark.parametrize("resolution", [30, 36])
def test_a_resolution_that_does_not_divide(tiny_sdxl, pairs, tmp_path, resolution):
    output = refusal(run_settings(tiny_sdxl, pairs, tmp_path / "run", data={"resolution": resolution}), tmp_path)
    assert str(resolution) in output and "32" in output


def test_xformers_without_cuda(tiny_sdxl, pairs, tmp_path):
    output = refusal(run_settings(tiny_sdxl, pairs, tmp_path / "run", model={"attention": "xformers"}), tmp_path)
    assert "xformers" in output and "CUDA" in output


def test_fp16_without_cuda(tiny_sdxl, pairs, tmp_path):
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run", training={"mixed_precision": "fp16"})
    assert "CUDA" in refusal(settings, tmp_path)


def test_a_lora_target_that_matches_nothing(tiny_sdxl, pairs, tmp_path):
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run", model={"lora": {"target_modules": ["to_x"]}})
    output = refusal(settings, tmp_path)
    assert "to_x" in output and "to_q" in output


def test_a_pipeline_that_is_not_supported(tiny_sdxl, pairs, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_sdxl, folder)
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    output = refusal(run_settings(folder, pairs, tmp_path / "run"), tmp_path)
    assert "FluxPipeline" in output and "StableDiffusionXLPipeline" in output


def test_a_checkpoint_of_another_architecture(tiny_sdxl, pairs, tmp_path):
    from t2i_align.training.run import train

    from .training.runs import run_config

    train(run_config(tiny_sdxl, pairs, tmp_path / "first", training={"max_train_steps": 2}))
    settings = run_settings(tiny_sdxl, pairs, tmp_path / "run", model={"lora": {"rank": 2}})
    checkpoint = tmp_path / "first/checkpoint-2"
    output = refusal(settings, tmp_path, f"training.resume_from_checkpoint={checkpoint}")
    assert "rank" in output or "shape" in output or "model" in output


def test_a_folder_that_already_holds_a_run(tiny_sdxl, pairs, tmp_path):
    from t2i_align.training.run import train

    from .training.runs import run_config

    train(run_config(tiny_sdxl, pairs, tmp_path / "run", training={"max_train_steps": 2}))
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run_settings(tiny_sdxl, pairs, tmp_path / "run")))
    result = CliRunner().invoke(app, ["train", str(config)])
    assert result.exit_code == 2 and "resume_from_checkpoint=latest" in result.output


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("launch", "sections", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, ["asks for DeepSpeed", "configs/accelerate/fsdp2.yaml", "ZeRO-3"]),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, ["asks for FSDP version 1", "fsdp_version: 2"]),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, ["asks for fsdp_offload_params"]),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, ["model.gradient_checkpointing"]),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, ["fsdp_cpu_ram_efficient_loading", "set it to false"]),
        (FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, ["TRANSFORMER_BASED_WRAP"]),
        (FSDP, {"training": {"mixed_precision": "fp16"}}, ["gradient scaler", "bf16"]),
        (FSDP, {"training": {"optimizer": "adafactor"}}, ["optimizer: adafactor", "training.optimizer=adamw"]),
        (FSDP, {"model": {"channels_last": True}}, ["model.channels_last", "configs/accelerate/ddp.yaml"]),
        (FSDP, {"objective": {"reference": {"name": "moving"}}}, ["its reference follows the policy"]),
        (FSDP, {"objective": {"latents": {"name": "ddim_inversion"}}}, ["its latents ask the policy"]),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(
    tiny_sdxl, pairs, tmp_path, monkeypatch, launch, sections, words
):
    from accelerate import Accelerator

    def never(*args, **kwargs):
        raise AssertionError("accelerate was set up")

    monkeypatch.setattr(Accelerator, "__init__", never)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    output = refusal(run_settings(tiny_sdxl, pairs, tmp_path / "run", **sections), tmp_path)
    assert all(word in output for word in words), output
