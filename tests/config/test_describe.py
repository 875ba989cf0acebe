"""The table and the JSON schema name every key."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from t2i_align.config.describe import WIDTH, describe
from t2i_align.config.fields import json_schema, keys, nearest_key, type_in_words
from t2i_align.config.loading import dump, load_config
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig


def test_every_key_has_a_description() -> None:
    assert [key.path for key in keys().values() if not key.description] == []


def test_table_names_every_key_within_its_width() -> None:
    text = describe()
    for key in keys().values():
        assert key.path in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_table_of_one_section_and_one_key() -> None:
    section = describe("model.lora")
    assert "model.lora.rank = 16" in section and "data" not in section
    assert describe("data.ties").splitlines() == [
        '  data.ties = "drop"',
        "      drop | soft | coin | zero_weight: what a label of 0.5 becomes",
    ]
    with pytest.raises(UserError, match="no configuration key"):
        describe("model.lara")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer, at least 1"),
        ({"type": "number", "exclusiveMinimum": 0.0, "exclusiveMaximum": 1.0}, "number, above 0 and below 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"enum": ["a", "b"], "type": "string"}, "a | b"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"type": "boolean"}, "true or false"),
    ],
)
def test_types_in_words(schema: dict, words: str) -> None:
    assert type_in_words(schema) == words


def test_nearest_key_of_nonsense_is_none() -> None:
    assert nearest_key("training.zzz") is None


def test_json_schema_accepts_a_resolved_run_and_refuses_a_typo(write: WriteConfig) -> None:
    values = yaml.safe_load(dump(load_config(write())))
    jsonschema.validate(values, json_schema())
    values["training"]["learning_rat"] = 1.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json_schema())
