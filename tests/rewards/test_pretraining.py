"""The start of the small heads: targets are the oracle's score as a dot product, and the towers learn them."""

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from reward_models import load
from t2i_align import cli
from t2i_align.rewards import pretraining
from t2i_align.rewards.pretraining import PICTURE_NORM, PROMPT_NORM, WIDTH, asked, render, samples, seen
from t2i_align.rewards.training import PretrainingConfig
from t2i_align.shapes.assets import DATA
from t2i_align.shapes.oracle import Oracle
from tests.reward_models.golden import TOKENIZER

from .conftest import COUNT, tiny_clip_config


def test_targets_multiply_to_the_oracle():
    pictures, captions = render(12, seed=3)
    pictures, captions = pictures + pictures, captions + captions[::-1]  # right and wrong captions
    v, t = seen(pictures, 48), asked(captions, 48)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(t.norm(dim=1), torch.ones(24))
    scores = Oracle().score(captions, pictures)["overall"]
    np.testing.assert_allclose((v * t).sum(1) * PICTURE_NORM * PROMPT_NORM, scores, atol=1e-5)


def test_norms_hold_for_a_caption_of_one_word():
    values = asked(["a red shape", "a shape"], WIDTH + 2)
    assert values[:, WIDTH].eq(0).all() and values[:, WIDTH + 1].gt(0).all()


def test_samples_are_changed_copies(shapes_pairs):
    pictures = samples([str(shapes_pairs)], 3, seed=0)
    assert len(pictures) == 2 * 3 * COUNT and {picture.size for picture in pictures} == {(64, 64)}
    again = samples([str(shapes_pairs)], 3, seed=0)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(pictures, again, strict=True))
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()


def test_pretrain_writes_a_start_that_sees(tmp_path, shapes_pairs):
    config = tiny_clip_config()
    config["projection_dim"] = config["text_config"]["projection_dim"] = config["vision_config"]["projection_dim"] = 40
    settings = {
        "scorer": "pickscore",
        "checkpoint": str(tmp_path / "start"),
        "model_config": config,
        "tokenizer": str(TOKENIZER),
        "output_dir": str(tmp_path / "run"),
        "data": {"source": "shapes:pairs"},
        "pretraining": {"pictures": 48, "steps": 60, "batch_size": 16, "samples": [str(shapes_pairs)], "copies": 2},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(*words):
        return CliRunner().invoke(cli.app, ["rewards", "pretrain", str(path), "pretraining.sample_steps=20", *words])

    assert run().exit_code == 0
    again = run()
    assert again.exit_code == 2 and "exists already" in again.stderr
    pictures, _ = render(64, seed=42)
    inputs = torch.stack([load("pickscore", tmp_path / "start", "cpu").preprocessor(picture) for picture in pictures])
    features = load("pickscore", tmp_path / "start", "cpu").model.encode_image(inputs)
    cosine = torch.nn.functional.cosine_similarity(features, seen(pictures, 40)).mean()
    assert cosine > 0.4  # about 0 without training
    small = run("checkpoint=" + str(tmp_path / "other"), "model_config.projection_dim=32")
    assert small.exit_code == 2 and "too small" in small.stderr
    taken = run(
        "checkpoint=" + str(tmp_path / "third"),
        f"pretraining.towers={tmp_path / 'start'}",
        "pretraining.logit_scale=100",
    )
    assert taken.exit_code == 0
    third = load("pickscore", tmp_path / "third", "cpu").model
    assert torch.equal(third.encode_image(inputs), features)
    assert third.logit_scale.exp().item() == pytest.approx(100.0)
    wrong = run(
        "checkpoint=" + str(tmp_path / "x"),
        f"pretraining.towers={tmp_path / 'start'}",
        "model_config.vision_config.hidden_size=16",
    )
    assert wrong.exit_code == 2 and "other sizes" in wrong.stderr
    none = run("pretraining=null")
    assert none.exit_code == 2 and "without pretraining" in none.stderr


def test_a_second_round_goes_on_with_less(monkeypatch):
    config = PretrainingConfig(samples=["x"], sample_steps=5, sample_rounds=2, pictures=2, steps=3, learning_rate=0.4)
    rounds = []
    monkeypatch.setattr(pretraining, "fit", lambda *given: rounds.append(given[4:7]))
    monkeypatch.setattr(pretraining, "samples", lambda *_: pretraining.render(2, seed=1)[0])
    scorer = load("pickscore", DATA / "rewards" / "pickscore", "cpu")
    pretraining._teach(scorer.model, scorer, 64, config, 7, None)
    assert rounds == [(3, 0.4, 7), (5, 0.2, 8), (5, 0.1, 9)]
