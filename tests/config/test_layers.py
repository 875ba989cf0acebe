"""Files, ``extends`` and overrides become one mapping, and every value knows its place."""

from __future__ import annotations

import pytest

from t2i_align.config.layers import merge, override_layer
from t2i_align.errors import UserError
from tests.config.conftest import WriteConfig


def test_child_wins_key_by_key_and_lists_are_replaced(write: WriteConfig) -> None:
    write("a: {x: 1, y: 2}\nlist: [1, 2]\n", "base/common.yaml")
    child = write("extends: base/common.yaml\na: {y: 3}\nlist: [9]\n")
    assert merge(child).values == {"a": {"x": 1, "y": 3}, "list": [9]}


def test_several_parents_apply_in_order(write: WriteConfig) -> None:
    write("a: 1\nb: 1\n", "one.yaml")
    write("b: 2\nc: 2\n", "two.yaml")
    child = write("extends: [one.yaml, two.yaml]\nc: 3\n")
    assert merge(child).values == {"a": 1, "b": 2, "c": 3}


def test_another_source_drops_the_split_of_the_earlier_one(write: WriteConfig) -> None:
    file = write("data: {source: owner/pairs, split: train, heldout_source: owner/pairs, heldout_split: validation}\n")
    own = merge(file, ["data.source=pairs.jsonl", "data.heldout_source=null"])
    assert own.values["data"] == {"source": "pairs.jsonl", "heldout_source": None}
    assert "data.split" not in own.places
    assert merge(file, ["data.source=a/b", "data.split=test"]).values["data"]["split"] == "test"
    assert merge(file, ["data.source=owner/pairs"]).values["data"]["split"] == "train"


class TestHeldOutPairsOfAnotherSource:
    RECIPE = "data: {source: owner/pairs, heldout_source: owner/pairs, heldout_split: validation}\n"

    def test_are_dropped_and_a_share_is_held_out(self, write: WriteConfig, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        found = merge(write(self.RECIPE), ["data.source=mine.jsonl"])
        assert found.values["data"] == {"source": "mine.jsonl", "heldout_fraction": 0.05}
        assert set(found.places) & {"data.heldout_source", "data.heldout_split"} == set()
        assert "data.heldout_source owner/pairs" in caplog.text and "mine.jsonl" in caplog.text

    def test_also_in_a_file_that_extends_a_recipe(self, write: WriteConfig) -> None:
        write(self.RECIPE, "recipe.yaml")
        child = write("extends: recipe.yaml\ndata: {source: mine.jsonl}\n")
        assert merge(child).values["data"] == {"source": "mine.jsonl", "heldout_fraction": 0.05}
        assert merge(child, ["data.heldout_fraction=0.2"]).values["data"]["heldout_fraction"] == 0.2
        named = merge(child, ["data.heldout_source=held.jsonl"]).values["data"]
        assert named == {"source": "mine.jsonl", "heldout_source": "held.jsonl"}

    @pytest.mark.parametrize(
        ("words", "data"),
        [
            (["data.source=owner/pairs"], {"heldout_source": "owner/pairs", "heldout_split": "validation"}),
            (["data.heldout_source=null"], {"heldout_source": None}),
            (["data.heldout_source=held.jsonl"], {"heldout_source": "held.jsonl"}),
            (["data.heldout_fraction=0"], {"heldout_fraction": 0}),
            (["data.heldout_source=null", "data.heldout_fraction=0.1"],
             {"heldout_source": None, "heldout_fraction": 0.1}),
            (["personal.heldout_users=0.1"], {}),
        ],
    )  # fmt: skip
    def test_unless_something_else_is_said(self, write: WriteConfig, words: list[str], data: dict) -> None:
        source = [] if words[0].startswith("data.source") else ["data.source=mine.jsonl"]
        found = merge(write(self.RECIPE), [*source, *words]).values["data"]
        found.pop("source")
        assert found == data

    def test_runs_that_make_their_own_pairs_hold_out_nothing(self, write: WriteConfig) -> None:
        file = write(self.RECIPE + "rollout: {preset: spo}\nvalidation: {heldout_pairs: 8, validation_steps: 5}\n")
        found = merge(file, ["data.source=mine.jsonl"]).values
        assert found["data"] == {"source": "mine.jsonl"} and found["validation"] == {"validation_steps": 5}


def test_another_preset_starts_the_objective_afresh(write: WriteConfig) -> None:
    write("objective: {preset: dpo, beta: 2000, link: hinge}\n", "dpo.yaml")
    child = write("extends: dpo.yaml\nobjective: {preset: mapo}\n")
    assert merge(child).values["objective"] == {"preset": "mapo"}
    assert merge(child, ["objective.beta=8"]).values["objective"] == {"preset": "mapo", "beta": 8}
    same = merge(child.with_name("dpo.yaml"), ["objective.preset=dpo", "objective.beta=5"])
    assert same.values["objective"] == {"preset": "dpo", "beta": 5, "link": "hinge"}


def test_extends_is_relative_to_the_file_that_says_it(write: WriteConfig) -> None:
    write("a: 1\n", "base/root.yaml")
    write("extends: ../base/root.yaml\nb: 2\n", "models/big.yaml")
    child = write("extends: ../models/big.yaml\n", "recipes/run.yaml")
    assert merge(child).values == {"a": 1, "b": 2}


def test_places_name_file_and_line_or_command_line(write: WriteConfig) -> None:
    path = write("a:\n  x: 1\n  y: 2\n")
    places = merge(path, ["a.y=3"]).places
    assert places["a.x"] == f"{path}:2"
    assert places["a.y"] == "command line"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("k=1e-5", 1e-5),
        ("k=3", 3),
        ("k=true", True),
        ("k=null", None),
        ("k=", None),
        ("k=shapes:pairs", "shapes:pairs"),
        ("k=a=b", "a=b"),
        ("k=[a, 2]", ["a", 2]),
        ("k={a: 1}", {"a": 1}),
        ('k="3"', "3"),
    ],
)
def test_override_values_are_yaml(word: str, value: object) -> None:
    assert override_layer([word]).values == {"k": value}


def test_malformed_overrides_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        override_layer(["seed", "=3", "a..b=1", "k=[1", "fine=1"])
    assert caught.value.found == "'seed', '=3', 'a..b=1', 'k=[1'"


def test_interpolation_is_resolved_across_files(write: WriteConfig) -> None:
    write("seed: 7\n", "base.yaml")
    child = write("extends: base.yaml\noutput_dir: runs/${seed}\n")
    assert merge(child, ["seed=8"]).values["output_dir"] == "runs/8"


def test_unknown_interpolation_says_where(write: WriteConfig) -> None:
    path = write("seed: 1\noutput_dir: runs/${sed}\n")
    with pytest.raises(UserError, match="output_dir: the interpolation") as caught:
        merge(path)
    assert f"{path}:2" in caught.value.found


def test_cycle_is_named(write: WriteConfig) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match="circle") as caught:
        merge(write("extends: a.yaml\n"))
    assert caught.value.found.count("a.yaml") == 2


def test_missing_file_lists_its_neighbours(write: WriteConfig) -> None:
    path = write()
    with pytest.raises(UserError, match="does not exist") as caught:
        merge(path.with_name("rum.yaml"))
    assert str(path) in caught.value.fix


def test_missing_parent_names_the_file_that_asked(write: WriteConfig) -> None:
    path = write("extends: nowhere.yaml\n")
    with pytest.raises(UserError, match="nowhere.yaml does not exist, named by extends in") as caught:
        merge(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1\nc: 2\n", 3), ("a: 1\na: 2\n", 2), ("a: 1\n b: 2\n", 2)],
)
def test_syntax_errors_have_a_line(write: WriteConfig, text: str, line: int) -> None:
    path = write(text)
    with pytest.raises(UserError, match="not valid YAML") as caught:
        merge(path)
    assert f"{path}:{line}:" in caught.value.what


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_must_be_a_mapping(write: WriteConfig, text: str) -> None:
    with pytest.raises(UserError, match="mapping of sections"):
        merge(write(text))


@pytest.mark.parametrize("text", ["extends: 3\n", "extends: {a: b}\n", "extends: [[a]]\n"])
def test_extends_must_name_files(write: WriteConfig, text: str) -> None:
    with pytest.raises(UserError, match="extends must be"):
        merge(write(text))
