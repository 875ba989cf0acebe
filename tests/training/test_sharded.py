"""FSDP2 on two CPU processes: the numbers, checkpoints and exports of one process, and refusals before any work."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from t2i_align.backbones.pieces import NamedTensors, part_files
from t2i_align.config.schema import RunConfig
from t2i_align.export import export_checkpoint
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .processes import SHARDED, train_together
from .runs import run_settings, write_pairs

pytestmark = pytest.mark.timeout(900)  # all runs are made before the first test, on a busy machine slowly

# A small rate and scale: Adam's first steps have unit size whatever the gradient, and k multiplies what kernels for
# other batch sizes round differently; both would magnify rounding, not errors. Gradients are clipped at every step.
STEPS = 3
TRAINING = {"max_train_steps": STEPS, "checkpointing_steps": 1, "learning_rate": 1e-5, "max_grad_norm": 1e-3}
HALF = {"max_train_steps": 2, "train_batch_size": 1, "mixed_precision": "bf16"}
SHOWN = {"validation_prompts": ["a red circle", "a blue square", "a star"], "num_inference_steps": 1}


@pytest.fixture(scope="module")
def runs(tiny_sdxl, tmp_path_factory) -> Path:
    """Folder of all runs, those of two processes (sharded) and those of one."""
    root = tmp_path_factory.mktemp("sharded")
    pairs = write_pairs(root / "pairs.parquet")

    def settings(name: str, model: dict, training: dict, **more) -> dict:
        objective = {"preset": "dpo", "beta": 20.0}
        run = run_settings(tiny_sdxl, pairs, root / name, model=model, objective=objective, training=training, **more)
        if model["train"] == "full":
            del run["model"]["lora"]
        return run

    def full(name: str, batch: int, **more) -> dict:
        training = TRAINING | {"train_batch_size": batch, "gradient_accumulation_steps": 2, "ema": {"enabled": True}}
        data = {"heldout_fraction": 0.3}
        return settings(name, {"train": "full"}, training | more, data=data, validation=SHOWN)

    def lora(name: str, training: dict) -> dict:
        return settings(name, {"train": "lora", "gradient_checkpointing": True}, training)

    measured = {"train": "full", "reference": "precomputed", "reference_dir": str(root / "errors")}
    sharded = [
        full("two", 2),
        full("again", 2, resume_from_checkpoint=str(root / "two/checkpoint-1")),
        full("taken", 2, resume_from_checkpoint=str(root / "one/checkpoint-1")),
        lora("lora", {**TRAINING, "train_batch_size": 2}) | {"environment": {"FSDP_RESHARD_AFTER_FORWARD": "false"}},
        settings("half", {"train": "full", "gradient_checkpointing": True}, HALF),
        lora("half_lora", HALF),
        settings("measured", measured, HALF),
    ]
    train(RunConfig.model_validate(full("one", 4)))
    train_together(sharded, root / "logs", **SHARDED)
    whole = [
        lora("lora_one", {**TRAINING, "train_batch_size": 4}),
        full("alone", 4, resume_from_checkpoint=str(root / "two/checkpoint-1")),
    ]
    for run in whole:
        train(RunConfig.model_validate(run))
    return root


def rows(run: Path) -> list[dict]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def state(run: Path, part: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    tensors = NamedTensors(part_files(run / f"checkpoint-{step}", part))
    return {name: tensors.rows(name) for name in tensors.shapes}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys() and ours
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize(("one", "two"), [("one", "two"), ("lora_one", "lora")])
def test_losses_norms_and_weights_are_those_of_one_process(runs, one, two):
    for single, double in zip(rows(runs / one), rows(runs / two), strict=True):
        for key in ("loss", "grad_norm", "e_w", "d_w"):
            assert double[key] == pytest.approx(single[key], rel=1e-5, abs=1e-6), (single["step"], key)
    assert distance(state(runs / one, "trainable"), state(runs / two, "trainable")) < 1e-6  # of 3e-5 that Adam moved
    assert (runs / two / "checkpoint-3/trainable-00002-of-00002.safetensors").is_file()


def test_averages_validation_and_pictures_are_those_of_one_process(runs):
    assert distance(state(runs / "one", "ema"), state(runs / "two", "ema")) < 1e-6
    single, double = (read_metrics(runs / name / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(single, double, strict=True):
        for key in ("heldout/margin", "heldout/d_w"):
            assert (key in ours) == (key in theirs)
            assert theirs.get(key, 0.0) == pytest.approx(ours.get(key, 0.0), abs=1e-6)
    for step in (0, STEPS):  # three prompts for two processes: one makes passes that the other does not join
        ours, theirs = (Image.open(runs / name / f"samples/step-{step}.png") for name in ("one", "two"))
        assert max(abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)) <= 2


def test_resume_is_bit_identical_and_takes_any_number_of_processes(runs):
    for part in ("trainable", "ema", "moments"):
        assert distance(state(runs / "two", part), state(runs / "again", part)) == 0
    drop = {"seconds"}
    unbroken, resumed = (
        [{key: value for key, value in row.items() if key not in drop} for row in rows(runs / name)]
        for name in ("two", "again")
    )
    assert unbroken[1:] == resumed
    for other in ("alone", "taken"):  # from rows to one process, and from one process to rows
        for part in ("trainable", "ema"):
            assert distance(state(runs / "one", part), state(runs / other, part)) < 1e-6


def test_exports_load_in_plain_diffusers_and_are_those_of_one_process(runs, tmp_path):
    averaged = state(runs / "two", "ema")
    for folder in (runs / "two/export", export_checkpoint(runs / "two", "checkpoint-3", tmp_path / "later")):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        assert distance(dict(unet.state_dict()), averaged) == 0
    assert {path.name for path in (runs / "lora/export").iterdir()} == {
        path.name for path in (runs / "lora_one/export").iterdir()
    }


@pytest.mark.parametrize("name", ["half", "half_lora", "measured"])
def test_in_half_precision_policy_and_reference_start_from_the_same_numbers(runs, name):
    first, second = rows(runs / name)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6) and first["d_w"] == 0
    assert second["loss"] != first["loss"]
    assert all(tensor.dtype == torch.float32 for tensor in state(runs / name, "trainable", 2).values())
