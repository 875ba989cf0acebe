"""Objectives on lists, groups and per-pair columns: whole runs from plain settings, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2i_align.config.loading import load_config
from t2i_align.errors import UserError
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .runs import picture, run_config, write_pairs, write_scored

LOG2 = 0.6931472


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


@pytest.fixture(scope="module")
def scored(pairs: Path) -> Path:
    return write_scored(pairs)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts with four pictures each; the last with five."""
    folder = tmp_path_factory.mktemp("lists")
    rows = []
    for index in range(6):
        names = [f"{index}-{place}.png" for place in range(5 if index == 5 else 4)]
        for place, name in enumerate(names):
            (folder / name).write_bytes(picture(10 * index + place))
        rows.append({"prompt": f"prompt {index}", "images": names, "ranks": [2, 1, 3, 3, 5][: len(names)]})
    path = folder / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def start(model: Path, source: Path, folder: Path, objective: dict, **data: Any) -> list[float]:
    """Losses of a run of two steps."""
    sections = {"data": data, "training": {"max_train_steps": 2, "train_batch_size": 3}}
    config = run_config(model, source, folder / "run", **sections)
    train(config.model_copy(update={"objective": type(config.objective).model_validate(objective)}))
    return losses(folder / "run")


def test_rankdpo_on_ranked_lists(tiny_sd: Path, lists: Path, tmp_path: Path) -> None:
    objective = {"preset": "rankdpo", "timestep": {"weighting": "min_snr"}}
    first, second = start(tiny_sd, lists, tmp_path, objective, list_size=4)
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first > 0 and second != first and row["rewards/margins"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("preset", "value"), [("mdpo", LOG2), ("mipo", 0.25)])
def test_groups_of_a_ranked_list(tiny_sdxl: Path, lists: Path, tmp_path: Path, preset: str, value: float) -> None:
    first, second = start(tiny_sdxl, lists, tmp_path, {"preset": preset}, list_size=4, heldout_fraction=0.3)
    assert first == pytest.approx(value, abs=1e-5) and second != first
    assert any("heldout/implicit_accuracy" in row for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("objective", "data", "says"),
    [
        ({"preset": "gapo"}, {}, "reads the score of every picture"),
        ({"preset": "curriculum"}, {}, "neither margins nor scores"),
        ({"preset": "madpo"}, {}, "neither margins nor scores"),
        ({"preset": "mdpo"}, {}, "set data.list_size"),
        ({"preset": "mdpo"}, {"list_size": 4}, "no list of 4 pictures"),
        ({"preset": "mdpo"}, {"list_size": 3}, "as many winners as losers"),
        ({"preset": "rankdpo"}, {"list_size": 3}, "lists of two"),
    ],
)
def test_data_without_what_is_read_fail_before_training(
    tiny_sd: Path, pairs: Path, tmp_path: Path, objective: dict, data: dict, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        start(tiny_sd, pairs, tmp_path, objective, cache_dir=str(tmp_path / "cache"), **data)
    assert says in str(caught.value) and caught.value.fix
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "cache").exists()  # nothing was encoded in vain


def test_weights_of_rewards_that_are_not_there_are_refused(tiny_sd: Path, scored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weighs rewards that the pairs do not have"):
        start(tiny_sd, scored, tmp_path, {"preset": "modpo", "margin_weights": {"clip": 0.1}})


@pytest.mark.parametrize("objective", [{"preset": "aot"}, {"preset": "madpo", "normalize": True}])
def test_a_batch_of_one_has_nothing_to_compare(scored: Path, tmp_path: Path, objective: dict) -> None:
    """Said before a model is loaded: here there is none."""
    config = run_config(tmp_path / "no-model", scored, tmp_path / "run", training={"train_batch_size": 1})
    with pytest.raises(UserError, match="compares the items of a batch"):
        train(config.model_copy(update={"objective": type(config.objective).model_validate(objective)}))


def test_lists_of_several_lengths_need_a_size(tiny_sd: Path, lists: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one length"):
        start(tiny_sd, lists, tmp_path, {"preset": "rankdpo"})


def test_a_list_size_that_nothing_reads_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "output_dir: out\nmodel: {pretrained_model_name_or_path: m}\nobjective: {preset: dpo}\n"
        "data: {source: pairs.parquet, resolution: 64, list_size: 4}\n"
        "training: {max_train_steps: 1, learning_rate: 1.0e-5}\n"
    )
    with pytest.raises(UserError, match="compares single pictures"):
        load_config(file, [])
