"""Resumed runs: what changed acts and is written down, or is refused; a finished run is left alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from t2i_align.errors import UserError
from t2i_align.export import export_checkpoint
from t2i_align.training.metrics import read_metrics
from t2i_align.training.once import OtherRunError, train_once
from t2i_align.training.resume_rules import RULES, Rule
from t2i_align.training.run import train

from .runs import contents, run_config, write_pairs

LATEST = {"resume_from_checkpoint": "latest"}
# A falling schedule, and gradients that are clipped: so that every setting of the optimiser has something to act on.
TRAINING = {"lr_scheduler": "linear", "max_grad_norm": 0.01, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(scope="module")
def unbroken(tiny_sd, pairs, tmp_path_factory) -> Path:
    """Folder of a finished run of four steps; treat it as read-only."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(run_config(tiny_sd, pairs, folder, training=TRAINING))
    return folder


@pytest.fixture
def half(unbroken, tmp_path) -> Path:
    """A copy that was killed after checkpoint-2."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for name in ("checkpoint-4", "export"):
        shutil.rmtree(folder / name)
    (folder / "finished.json").unlink()
    return folder


@pytest.fixture
def resumed(tiny_sd, pairs, half):
    """Goes on from the copy with other settings; returns the run folder."""

    def go(**sections: Any) -> Path:
        sections["training"] = {**TRAINING, **LATEST, **sections.get("training", {})}
        train(run_config(tiny_sd, sections.pop("pairs", pairs), half, **sections))
        return half

    return go


def weights(folder: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "trainable.safetensors")


def same(one: Path, other: Path, step: int = 4) -> bool:
    ours, theirs = weights(one, step), weights(other, step)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def rates(folder: Path) -> list[float]:
    return [row["lr"] for row in read_metrics(folder / "metrics.jsonl") if "lr" in row]


USED: dict[str, tuple[Any, dict[str, Any]]] = {  # key -> a new value, and what it is in the optimiser's groups
    "training.learning_rate": (4e-3, {"initial_lr": 4e-3}),
    "training.scale_lr": (True, {"initial_lr": 2e-3}),
    "training.lr_scheduler": ("constant", {}),
    "training.lr_warmup_steps": (3, {}),
    "training.max_train_steps": (8, {}),
    "training.adam_beta1": (0.1, {"betas": (0.1, 0.999)}),
    "training.adam_beta2": (0.5, {"betas": (0.9, 0.5)}),
    "training.adam_weight_decay": (20.0, {"weight_decay": 20.0}),
    "training.adam_epsilon": (0.1, {"eps": 0.1}),
    "training.max_grad_norm": (1e-6, {}),
    "training.mixed_precision": ("bf16", {}),
}


def test_every_used_key_is_tried():
    assert {*USED, "training.allow_tf32"} == set(RULES[Rule.USED])


@pytest.mark.parametrize("path", USED)
def test_a_changed_setting_acts_from_the_resumed_step_on(path, unbroken, resumed):
    value, expected = USED[path]
    folder = resumed(training={path.removeprefix("training."): value})
    assert same(folder, unbroken, step=2)
    assert not same(folder, unbroken, step=4)
    group = torch.load(folder / "checkpoint-4/optimizer.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert {name: pytest.approx(group[name]) for name in expected} == expected
    assert rates(folder)[:2] == rates(unbroken)[:2]  # what was before stays on record
    entry = json.loads((folder / "resumed.json").read_text())[0]
    assert entry["step"] == 2 and list(entry["changed"]) == [path]
    assert entry["changed"][path]["now"] == value
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"][path.removeprefix("training.")] == value


def test_tensor_cores_are_switched_by_the_resumed_run_too(resumed):
    resumed(training={"allow_tf32": True})
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]),  # (4 - n) / 4 of the rate after n steps
        ({"learning_rate": 4e-3}, [1e-3, 0.75e-3, 2e-3, 1e-3]),
        ({"max_train_steps": 8}, [1e-3, 0.75e-3, 0.75e-3, 0.625e-3, 0.5e-3, 0.375e-3, 0.25e-3, 0.125e-3]),
        ({"lr_scheduler": "constant"}, [1e-3, 0.75e-3, 1e-3, 1e-3]),
    ],
)
def test_rates_by_hand(change, expected, resumed):
    assert rates(resumed(training=change)) == pytest.approx(expected)


def test_adafactor_takes_the_new_rate_and_decay(tiny_sd, pairs, tmp_path):
    common = {"optimizer": "adafactor", "lr_scheduler": "constant"}
    train(run_config(tiny_sd, pairs, tmp_path / "run", training={**common, "max_train_steps": 2}))
    changed = {**common, **LATEST, "learning_rate": 5e-4, "adam_weight_decay": 0.5}
    train(run_config(tiny_sd, pairs, tmp_path / "run", training=changed))
    assert rates(tmp_path / "run") == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    group = torch.load(tmp_path / "run/checkpoint-4/optimizer.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 0.5)


FREE: dict[str, Any] = {  # exact: the same operations on the same shapes
    "report_to": ["tensorboard"],
    "model.reference_dir": "elsewhere",
    "model.gradient_checkpointing": "auto",
    "model.memory_limit_gb": 64.0,
    "data.heldout_split": "test",
    "data.dataloader_num_workers": 1,
    "training.checkpointing_steps": 1,
    "training.checkpoints_total_limit": 3,
    "training.resume_from_checkpoint": "checkpoint-2",
    "training.logging_steps": 3,
    "validation.validation_prompts": ["a red circle"],
    "validation.validation_steps": 3,
    "validation.num_inference_steps": 1,
    "validation.guidance_scale": 1.0,
    "validation.validation_seed": 7,
    "validation.heldout_pairs": 3,
    "validation.heldout_draws": 2,
    "export.kohya": True,
    "export.save_dtype": "fp16",
}
ROUNDED = {"model.attention": "sdpa_math", "model.channels_last": True}
ELSEWHERE = {  # where a changed value is tried
    "output_dir": "test_a_branch_goes_on_in_another_folder",
    "data.heldout_source": "test_what_is_free_changes_no_bit",
    "data.cache_dir": "test_what_is_free_changes_no_bit",
    "model.compile": "tests/backbones/test_attention.py: compiled blocks predict the same",
    "rollout.scorer.candidates_per_pass": "tests/training/test_resume_rules.py; changes the scorer's passes only",
    "online.pictures_per_pass": "tests/training/test_resume_rules.py; changes the sampler's passes only",
}


def test_every_free_key_is_tried():
    assert {*FREE, *ROUNDED, *ELSEWHERE} == set(RULES[Rule.FREE])


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, value in flat.items():
        section, _, name = path.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = value
    return result


def test_what_is_free_changes_no_bit(unbroken, resumed, tmp_path):
    sections = nested(FREE)
    heldout = write_pairs(tmp_path / "heldout.parquet", count=16, seed=100)
    sections["data"] |= {"heldout_source": str(heldout), "cache_dir": str(tmp_path / "cache")}
    folder = resumed(**sections)
    assert same(folder, unbroken)
    entry = json.loads((folder / "resumed.json").read_text())[0]
    missing = {*FREE, "data.heldout_source", "data.cache_dir"} - entry["beside"].keys()
    assert missing == {"training.resume_from_checkpoint"}  # how it was resumed, not what was set
    assert entry["changed"] == {}
    assert "resumed with other settings" not in (folder / "export/README.md").read_text()


def test_other_kernels_change_the_last_bits_only(unbroken, resumed):
    ours, theirs = weights(resumed(**nested(ROUNDED))), weights(unbroken)
    start = weights(unbroken, 2)
    for name, tensor in theirs.items():  # Adam's steps have unit size: a sum of rounding is far below one step
        assert (ours[name] - tensor).abs().max() <= 0.05 * (tensor - start[name]).abs().max()


def test_nothing_changed_is_bit_identical_and_says_so(unbroken, resumed):
    folder = resumed()
    assert same(folder, unbroken)
    entry = {"step": 2, "checkpoint": "checkpoint-2", "changed": {}, "beside": {}, "environment": {}}
    assert json.loads((folder / "resumed.json").read_text()) == [entry]
    ours, theirs = ((run / "export/README.md").read_text().splitlines() for run in (folder, unbroken))
    assert [line for line in ours if "seconds" not in line] == [line for line in theirs if "seconds" not in line]


def test_pairs_may_move_but_not_change(tiny_sd, pairs, half, unbroken, tmp_path):
    moved = Path(shutil.copy(pairs, tmp_path / "moved.parquet"))
    nothing = tmp_path / "no-model"
    for change in ({"max_pairs": 5}, {"heldout_fraction": 0.5}):
        with pytest.raises(UserError) as refusal:
            train(run_config(tiny_sd, pairs, half, data=change, training={**TRAINING, **LATEST}))
        name, value = next(iter(change.items()))
        assert f"data.{name}: {'null' if name == 'max_pairs' else 0.0} then, {value} now" in refusal.value.found
    other = write_pairs(tmp_path / "other.parquet", seed=50)
    shutil.move(half / "checkpoint-2", tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", half / "checkpoint-2")
    state = json.loads((half / "checkpoint-2/state.json").read_text())
    state["identity"]["model.pretrained_model_name_or_path"] = str(nothing)
    (half / "checkpoint-2/state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=f"data.source: {pairs} then, {other} now"):  # before a model is looked for
        train(run_config(nothing, other, half, training={**TRAINING, **LATEST}))
    shutil.rmtree(half / "checkpoint-2")
    shutil.move(tmp_path / "kept", half / "checkpoint-2")
    train(run_config(tiny_sd, moved, half, training={**TRAINING, **LATEST}))
    assert same(half, unbroken)


def test_the_batch_may_be_divided_otherwise(resumed, unbroken):
    folder = resumed(training={"train_batch_size": 1, "gradient_accumulation_steps": 2})
    rows = [[row for row in read_metrics(run / "metrics.jsonl") if row["step"] == 3] for run in (folder, unbroken)]
    assert rows[0][0]["loss"] == pytest.approx(rows[1][0]["loss"], rel=1e-3)


def test_card_and_configuration_say_from_which_step(resumed, tmp_path):
    folder = resumed(training={"learning_rate": 4e-3, "checkpointing_steps": 1})
    line = "From step 3 on training.learning_rate is 0.004; before: 0.001."
    assert f"# {line}" in (folder / "config.yaml").read_text()
    assert f"# {line}" in (folder / "export/config.yaml").read_text()
    row = "| 3 | `training.learning_rate` | 0.001 | 0.004 |"
    assert row in (folder / "export/README.md").read_text()
    early = export_checkpoint(folder, "checkpoint-2", tmp_path / "early")
    late = export_checkpoint(folder, "checkpoint-3", tmp_path / "late")
    assert row not in (early / "README.md").read_text()
    assert row in (late / "README.md").read_text()


def test_what_of_the_machine_is_another_is_recorded(half, resumed):
    file = half / "environment.json"
    before = json.loads(file.read_text())
    before["packages"]["torch"] = "1.0"
    file.write_text(json.dumps(before))
    resumed()
    entry = json.loads((half / "resumed.json").read_text())[0]
    assert entry["environment"]["packages.torch"]["then"] == "1.0"


def test_steps_made_again_have_one_history(tiny_sd, pairs, half):
    for rate in (4e-3, 5e-3):  # the first was killed before its first checkpoint
        train(run_config(tiny_sd, pairs, half, training={**TRAINING, **LATEST, "learning_rate": rate}))
        history = json.loads((half / "resumed.json").read_text())
        assert [entry["changed"]["training.learning_rate"] for entry in history] == [{"then": 1e-3, "now": rate}]
        shutil.rmtree(half / "checkpoint-4")


@pytest.fixture
def finished(unbroken, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    return folder


@pytest.mark.parametrize("request_", ["latest", "checkpoint-4"])
def test_a_finished_run_is_left_as_it_is(request_, tiny_sd, pairs, finished, caplog):
    before = contents(finished)
    training = {**TRAINING, "resume_from_checkpoint": request_, "logging_steps": 2}
    with caplog.at_level("INFO", logger="t2i_align"):
        result = train(run_config(tiny_sd, pairs, finished, training=training))
    assert contents(finished) == before
    assert (result.trained, result.steps) == (False, 4)
    assert result.train_seconds > 0
    assert "not acted on: training.logging_steps" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume_from_checkpoint": None}, "already holds a run"),
        ({"resume_from_checkpoint": "checkpoint-2"}, "later checkpoints"),
        ({"learning_rate": 5e-3}, "is finished; what has changed would not be used"),
        ({"max_train_steps": 3}, "beyond the end of the run"),
    ],
)
def test_a_finished_run_is_never_rewritten(change, message, tiny_sd, pairs, finished):
    before = contents(finished)
    with pytest.raises(UserError, match=message):
        train(run_config(tiny_sd, pairs, finished, training={**TRAINING, **LATEST, **change}))
    assert contents(finished) == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_started_over(tiny_sd, pairs, finished):
    for path in finished.glob("checkpoint-*"):
        shutil.rmtree(path)
    before = contents(finished)
    with pytest.raises(UserError, match="checkpoints are gone"):
        train(run_config(tiny_sd, pairs, finished, training={**TRAINING, **LATEST}))
    assert contents(finished) == before


def test_other_export_settings_export_a_finished_run_again(tiny_sd, pairs, finished):
    train(run_config(tiny_sd, pairs, finished, export={"kohya": True}, training={**TRAINING, **LATEST}))
    assert (finished / "export/kohya_lora_weights.safetensors").is_file()


def test_more_steps_go_on_from_the_end(tiny_sd, pairs, finished):
    result = train(run_config(tiny_sd, pairs, finished, training={**TRAINING, **LATEST, "max_train_steps": 5}))
    assert (result.trained, result.steps) == (True, 5)
    assert json.loads((finished / "finished.json").read_text()) == {"steps": 5}


def test_a_branch_goes_on_in_another_folder(tiny_sd, pairs, finished, unbroken, tmp_path):
    start = {"resume_from_checkpoint": str(finished / "checkpoint-2")}
    before = contents(finished)
    train(run_config(tiny_sd, pairs, tmp_path / "branch", training={**TRAINING, **start}))
    assert same(tmp_path / "branch", unbroken)
    assert contents(finished) == before


@pytest.mark.parametrize("training", [{}, LATEST])
def test_a_configuration_of_ones_own_is_not_overwritten(training, tiny_sd, pairs, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("extends: base.yaml\n")
    with pytest.raises(UserError, match="overwrite a file of yours"):
        train(run_config(tiny_sd, pairs, tmp_path, training=training))
    assert file.read_text() == "extends: base.yaml\n"


def test_a_training_that_is_kept_never_changes_its_settings_halfway(tiny_sd, pairs, half):
    with pytest.raises(OtherRunError, match=r"learning_rate: 0\.001 then, 0\.004 now"):
        train_once(run_config(tiny_sd, pairs, half, training={**TRAINING, **LATEST, "learning_rate": 4e-3}))
