"""Runs whose pairs are the policy's own pictures, judged by a scorer and made again every few steps."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer
from t2i_align.data.sources import open_table
from t2i_align.online import provider
from t2i_align.online.config import OnlineConfig
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

from .runs import run_config, write_pairs

ONLINE = {
    "method": "online_dpo",
    "scorer": "oracle",
    "refresh_steps": 2,
    "prompts_per_refresh": 3,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "pictures_per_pass": 4,
}


class Brightness(BaseScorer):
    """Likes bright pictures; a mean of 0.1 more is a logit of 10."""

    name, version, preference_scale = "brightness", "1", 100.0
    device = torch.device("cpu")

    @property
    def preprocessors(self):
        return (Preprocessor("clip_pil", 8),)

    def score_prepared(self, prompts, prepared):
        return prepared[self.preprocessing].mean((1, 2, 3))

    def score_tensor(self, prompts, pixels):
        return pixels.mean((1, 2, 3))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setattr(provider, "load_scorer", lambda word, device: Brightness())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train.parquet")


def rows_of(folder):
    return [row for row in read_metrics(folder / "metrics.jsonl") if "rollout/train_seconds" in row]


def test_online_dpo_writes_ordinary_pairs_and_trains_on_them(tiny_sdxl, pairs, tmp_path):
    train(run_config(tiny_sdxl, pairs, tmp_path / "run", online=ONLINE))
    folders = sorted((tmp_path / "run/pairs").iterdir())
    assert [folder.name for folder in folders] == ["step-0", "step-2"]
    table = open_table(str(folders[0]), "pickapic")
    assert len(table) == json.loads((folders[0] / "done.json").read_text())["pairs"] == 3
    assert (table.columns.labels == 1.0).all() and (table.columns.gaps["brightness"] > 0).all()
    found = rows_of(tmp_path / "run")
    assert found[0]["rollout/acceptance"] == 1.0 and found[0]["rollout/score_gap"] > 0
    assert found[-1]["passes/sampling_forward"] == 2 * 3 * 2 * 2 * 2  # refreshes, prompts, candidates, steps, guidance


def test_sopo_prefers_the_given_winner_to_the_worst_of_its_own(tiny_sd, pairs, tmp_path):
    online = {**ONLINE, "method": "sopo", "candidates": 1, "refresh_steps": 4}
    train(run_config(tiny_sd, pairs, tmp_path / "run", online=online, training={"max_train_steps": 1}))
    rows = pq.read_table(tmp_path / "run/pairs/step-0/part-0.parquet").to_pylist()
    given = {row["caption"]: row for row in pq.read_table(pairs).to_pylist()}
    for row in rows:
        source = given[row["caption"]]
        assert row["jpg_0"] == source["jpg_0" if source["label_0"] == 1.0 else "jpg_1"]
    low = {**online, "loser_below": -1e9}
    train(run_config(tiny_sd, pairs, tmp_path / "none", online=low, training={"max_train_steps": 2}))
    assert rows_of(tmp_path / "none")[0]["rollout/pairs"] == 0.0  # no pair is accepted, and nothing is updated


def test_a_resumed_run_is_the_unbroken_one(tiny_sd, pairs, tmp_path):
    training = {"max_train_steps": 5, "checkpointing_steps": 1}
    train(run_config(tiny_sd, pairs, tmp_path / "whole", online=ONLINE, training=training))
    train(run_config(tiny_sd, pairs, tmp_path / "cut", online=ONLINE, training={**training, "max_train_steps": 3}))
    again = {**training, "resume_from_checkpoint": "latest"}
    train(run_config(tiny_sd, pairs, tmp_path / "cut", online=ONLINE, training=again))
    ours, theirs = (load_file(tmp_path / run / "checkpoint-5/trainable.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 1}, "at least 2"),
        ({"loser_below": 0.5}, "sopo only"),
        ({"method": "sopo", "prompts": "x.txt"}, "remove prompts"),
    ],
)
def test_mistakes_are_explained(change, message):
    with pytest.raises(ValidationError, match=message):
        OnlineConfig.model_validate({**ONLINE, **change})
