"""Where a key holds text, the word on the command line is text, whatever YAML would make of it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from t2i_align.compare.config import CompareConfig
from t2i_align.config.layers import merge, override_layer
from t2i_align.config.loading import load_config, load_data_section
from t2i_align.config.schema import RunConfig
from t2i_align.config.texts import text_keys
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig

WORDS = [
    "20240501",
    "1e5",
    "true",
    "no",
    "[set] one",
    "pairs #1",
    "{a}",
    "a: b",
    "runs/lr=1e-4/export",
    "2024-05-01",
    "-",
]


class Inner(BaseModel):
    path: Path | None = None
    number: int = 0


class Outer(BaseModel):
    name: str = ""
    perhaps: Annotated[str | None, Field(description="x")] = None
    either: str | int = 0
    choice: Literal["a", "b"] = "a"
    inner: Inner | None = None
    many: dict[str, Inner | None] = {}
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("name", "text"),
        ("perhaps", "text or null"),
        ("inner.path", "text or null"),
        ("many.tuned.path", "text or null"),
        ("either", None),
        ("choice", None),
        ("inner.number", None),
        ("inner", None),
        ("free.x", None),
        ("name.x", None),
        ("unknown", None),
    ],
)
def test_what_the_schema_calls_text(path: str, kind: str | None) -> None:
    assert text_keys(Outer)(path) == kind


def test_sections_may_come_from_elsewhere() -> None:
    keys = text_keys(Outer, ("free", Inner))
    assert (keys("free.path"), keys("freedom.path"), keys("path")) == ("text or null", None, None)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_text_where_the_key_holds_text(word: str) -> None:
    keys = text_keys(RunConfig)
    for key in ("data.source", "output_dir", "model.pretrained_model_name_or_path", "data.heldout_source"):
        section, _, name = key.rpartition(".")
        values = override_layer([f"{key}={word}"], keys).values
        assert (values[section] if section else values)[name] == word


def test_null_is_nothing_only_where_the_key_may_be_nothing() -> None:
    keys = text_keys(RunConfig)
    values = override_layer(["data.source=null", "data.heldout_source=null", "output_dir="], keys).values
    assert (values.data.source, values.data.heldout_source, values.output_dir) == ("null", None, None)


def test_quotes_around_the_whole_of_a_word_are_taken_off() -> None:
    values = override_layer(["output_dir='a b'", "data.source='it''s'"], text_keys(RunConfig)).values
    assert (values.output_dir, values.data.source) == ("a b", "it's")


def test_other_keys_stay_yaml() -> None:
    values = override_layer(["training.learning_rate=1e-5", "report_to=[wandb]"], text_keys(RunConfig)).values
    assert values.training.learning_rate == 1e-5 and list(values.report_to) == ["wandb"]


def test_interpolations_of_text_still_resolve(write: WriteConfig) -> None:
    merged = merge(write("a: one\noutput_dir: x\n"), ["output_dir=runs/${a}"], text_keys(RunConfig))
    assert merged.values["output_dir"] == "runs/one"


def test_runs_data_sections_and_comparisons_read_text(write: WriteConfig) -> None:
    config = load_config(
        write(), ["data.source=20240501", "output_dir=null", "model.pretrained_model_name_or_path=1e5"]
    )
    assert (config.data.source, config.output_dir) == ("20240501", "null")
    assert config.model.pretrained_model_name_or_path == "1e5"
    assert load_data_section(["data.source=[set] one"]).source == "[set] one"
    assert text_keys(CompareConfig)("output_dir") == "text"


def test_reward_trainings_read_text_too() -> None:
    from t2i_align.rewards.keys import reward_keys

    values = override_layer(["data.source=20240501", "output_dir=1e5"], reward_keys()).values
    assert (values.data.source, values.output_dir) == ("20240501", "1e5")


def test_numbers_are_still_refused_where_text_is_no_number(write: WriteConfig) -> None:
    with pytest.raises(UserError, match="max_train_steps"):
        load_config(write(), ["training.max_train_steps=many"])
