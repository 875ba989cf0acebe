"""A schedule that contradicts the weights is noticed before the first step."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_align.backbones import Backbone, load_backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.config.schema import ModelConfig
from t2i_align.shapes.assets import resolve
from t2i_align.training.items import Items
from t2i_align.training.prediction_check import warn_of_worse_than_zero
from t2i_align.training.run import train
from tests.training.runs import run_config, write_pairs

WORSE = "predicts worse than zero"


def backbone_of(folder: Path) -> Backbone:
    return load_backbone(ModelConfig(pretrained_model_name_or_path=str(folder)), "cpu", torch.float32)


def items_of(backbone: Backbone, latents: Tensor) -> Items:
    count = len(latents)
    ids = backbone.time_ids((64, 64), (0, 0), (64, 64))
    prompt = backbone.encode_prompt(["a red circle"] * count)
    return Items(
        ["a"] * count, [0] * count, latents, prompt, None if ids is None else ids.repeat(count, 1), torch.ones(count)
    )


@pytest.mark.parametrize("written", ["epsilon", "v_prediction", "sample"])
def test_the_built_in_base_under_the_right_and_a_wrong_name(
    written: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(resolve("shapes:base"), tmp_path / "base"))
    file = folder / "scheduler/scheduler_config.json"
    true = json.loads(file.read_text())["prediction_type"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": written}))
    backbone = backbone_of(folder)
    pictures = torch.zeros(4, 3, 64, 64)
    pictures[:, 0, 16:48, 16:48] = 1.0
    with caplog.at_level(logging.WARNING, "t2i_align"):
        error, zero = warn_of_worse_than_zero(backbone, items_of(backbone, backbone.encode_image(pictures)))
    assert (error > zero) is (written != true)
    assert (WORSE in caplog.text) is (written != true)


class Knows:
    """A backbone whose answers are worked out: it names the noise of latents of 0, whose target is n or sqrt(A) n."""

    num_train_timesteps, has_reference = 11, False

    def __init__(self, prediction_type: str) -> None:
        self.prediction_type = prediction_type
        self.inference = torch.no_grad
        self.asked: list[int] = []

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise if self.prediction_type == "epsilon" else 0.1 * noise

    def predict(self, noisy: Tensor, timesteps: Tensor, prompt: PromptEmbeddings, time_ids: Tensor | None) -> Tensor:
        self.asked = timesteps.tolist()
        return noisy


def test_the_two_numbers_by_hand() -> None:
    items = Items(
        ["a"] * 9, [0] * 9, torch.zeros(9, 4, 32, 32), PromptEmbeddings(torch.zeros(9, 2, 3)), None, torch.ones(9)
    )
    right, wrong = Knows("epsilon"), Knows("v_prediction")
    error, zero = warn_of_worse_than_zero(right, items)
    assert error == 0 and zero == pytest.approx(1.0, abs=0.1)  # the mean square of 16,384 standard normals
    scale = zero
    error, zero = warn_of_worse_than_zero(wrong, items)
    assert (error, zero) == (pytest.approx(0.81 * scale, rel=1e-5), pytest.approx(0.01 * scale, rel=1e-5))
    assert wrong.asked == [6, 7, 8, 9]


def test_a_run_says_it_and_an_untroubled_one_does_not(
    tiny_sd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights of the tiny model are random, so its prediction is independent of the noise whatever the name."""
    pairs = write_pairs(tmp_path / "pairs.parquet", count=4)
    with caplog.at_level(logging.WARNING, "t2i_align"):
        train(run_config(tiny_sd, pairs, tmp_path / "run", training={"max_train_steps": 1}))
    assert caplog.text.count(WORSE) == 1
