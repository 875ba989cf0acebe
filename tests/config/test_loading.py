"""``load_config``: every error at once, in words that lead to the right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_align.config.loading import dump, load_config, save_resolved
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig


def failure(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_values_defaults_and_overrides(write: WriteConfig) -> None:
    config = load_config(write(), ["seed=3", "training.learning_rate=1"])
    assert config.seed == 3
    assert config.training.learning_rate == 1.0
    assert config.model.pretrained_model_name_or_path == "shapes:base"
    assert config.training.train_batch_size == 4
    assert config.objective.preset == "dpo"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.learning_rat=1", "training.learning_rate"),
        ("training.resolution=64", "data.resolution"),
        ("model.batch_size=2", "training.train_batch_size"),
        ("trainig={seed: 1}", "training"),
        ("validation.seed=1", "validation.validation_seed"),
        ("model.lora.rnk=4", "model.lora.rank"),
        ("use_dora=true", "model.lora.use_dora"),
        ("training.sed=1", "seed"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(write: WriteConfig, override: str, meant: str) -> None:
    message = failure(write(), override)
    assert "1. " + override.partition("=")[0] + ": unknown key" in message
    assert f"did you mean {meant}?" in message


def test_unknown_key_without_neighbour_lists_the_section(write: WriteConfig) -> None:
    message = failure(write(), "training.zzz=1")
    assert "training.zzz: unknown key" in message
    assert "training has: train_batch_size, " in message


def test_every_error_is_reported_with_its_place(write: WriteConfig) -> None:
    text = """\
model: {pretrained_model_name_or_path: "shapes:base", train: loro}
data: {source: "shapes:pairs", resolution: big}
objective: {preset: dop}
training:
  max_train_steps: -1
  learning_rat: 1e-5
"""
    path = write(text)
    message = failure(path, "seed=1.5")
    assert "8 problems" in message
    for expected in (
        "output_dir: required key is missing",
        "seed: expected integer, at least 0  [command line]",
        f"model.train: expected lora | full | user  [{path}:1]",
        "did you mean 'lora'?",
        f"data.resolution: expected integer, at least 1  [{path}:2]",
        "found: 'big' (text)",
        f"objective: unknown objective preset  [{path}:3]",
        "did you mean 'dpo'?",
        f"training.max_train_steps: expected integer, at least 0  [{path}:5]",
        "training.learning_rate: required key is missing",
        f"training.learning_rat: unknown key  [{path}:6]",
    ):
        assert expected in message, message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rate=fast", "expected number, at least 0"),
        ("training.allow_tf32=1", "expected true or false"),
        ("seed=true", "found: true (true or false)"),
        ('training.max_train_steps="100"', "found: '100' (text)"),
        ("validation.validation_prompts=a cat", "expected list of text"),
        ("validation.validation_prompts=[1]", "expected list of text"),
        ("model=base", "expected section"),
        ("training.ema.decay=1", "expected number, above 0 and below 1"),
        ("report_to=[tensorbord]", "did you mean 'tensorboard'?"),
        ("data.resolution=null", "found: null"),
        ("objective.bta=3", "does not read the option 'bta'"),
    ],
)
def test_wrong_types_say_what_was_expected(write: WriteConfig, override: str, expected: str) -> None:
    assert expected in failure(write(), override)


def test_unquoted_no_is_a_precision_not_false(write: WriteConfig) -> None:
    assert load_config(write(), ["training.mixed_precision=no"]).training.mixed_precision == "no"


def test_resolved_file_loads_to_the_same_run(write: WriteConfig, tmp_path: Path) -> None:
    config = load_config(write())
    save_resolved(config, tmp_path / "run" / "config.yaml")
    again = load_config(tmp_path / "run" / "config.yaml")
    assert dump(again) == dump(config)
    assert again.training == config.training and again.data == config.data and again.model == config.model


def test_resolved_file_holds_defaults_and_leaves_out_what_is_not_read(write: WriteConfig) -> None:
    text = dump(load_config(write()))
    assert "train_batch_size: 4" in text
    assert "beta: 2000" in text and "softplus" in text
    assert "lora" not in text and "kohya" not in text and "heldout_split" not in text
