"""A negative model answers the unconditional half of guidance, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from t2i_align.backbones import load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.generate import run
from t2i_align.evaluation.negative import attach, merge
from tests.tiny import make_sdxl

PROMPTS = ["a red circle", "a blue square"]
SAMPLING = {"num_inference_steps": 2, "height": 64, "width": 64, "show_progress": False}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other denoiser weights."""
    return make_sdxl(tmp_path_factory.mktemp("other") / "sdxl", seed=1)


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / "images" / f"{index:05d}.png").convert("RGB") for index in range(len(PROMPTS))]


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    """Up to one level of 255: a network asked about half of a batch rounds differently from one asked about all of it."""
    differences = [ImageChops.difference(a, b) for a, b in zip(first, second, strict=True)]
    return all(highest <= 1 for difference in differences for _, highest in difference.getextrema())


def test_a_model_as_its_own_negative_is_ordinary_guidance(tiny_sdxl: Path, other: Path, tmp_path: Path) -> None:
    plain = run({"m": tiny_sdxl}, PROMPTS, tmp_path / "plain", guidance_scale=3.0, **SAMPLING)["m"]
    itself = run(
        {"m": tiny_sdxl}, PROMPTS, tmp_path / "itself", guidance_scale=3.0, negative={"m": tiny_sdxl}, **SAMPLING
    )
    away = run({"m": tiny_sdxl}, PROMPTS, tmp_path / "away", guidance_scale=3.0, negative={"m": other}, **SAMPLING)
    assert same(pictures(plain), pictures(itself["m"]))
    assert not same(pictures(plain), pictures(away["m"]))


def test_the_first_half_goes_to_the_negative_model(tiny_sdxl: Path, other: Path) -> None:
    positive, negative = (load_for_sampling(str(path), None, torch.float32, "cpu") for path in (tiny_sdxl, other))
    sample, hidden = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 40)
    added = {"text_embeds": torch.randn(2, 20), "time_ids": torch.full((2, 6), 64.0)}
    given = {"encoder_hidden_states": hidden, "added_cond_kwargs": added, "return_dict": False}
    with torch.no_grad():
        expected = [pipe.unet(sample, torch.tensor(500), **given)[0] for pipe in (negative, positive)]
        attach(positive, negative.unet)
        found = positive.unet(sample, torch.tensor(500), **given)[0]
    assert torch.allclose(found[0], expected[0][0], atol=1e-5) and torch.allclose(found[1], expected[1][1], atol=1e-5)


def test_merging_adds_what_the_positive_model_learnt(tiny_sdxl: Path, other: Path) -> None:
    base, positive, negative = (torch.nn.Linear(2, 2) for _ in range(3))
    before = negative.weight.detach().clone()
    merge(negative, positive, base, 0.5)
    assert torch.allclose(negative.weight, before + 0.5 * (positive.weight - base.weight))


def test_other_settings_are_another_folder(tiny_sdxl: Path, other: Path, tmp_path: Path) -> None:
    run({"m": tiny_sdxl}, PROMPTS, tmp_path, guidance_scale=3.0, **SAMPLING)
    with pytest.raises(UserError):
        run({"m": tiny_sdxl}, PROMPTS, tmp_path, guidance_scale=3.0, negative={"m": other}, **SAMPLING)
    shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize(
    ("negative", "scale", "says"), [({"x": "shapes:base"}, 3.0, "belongs to no model"), ({"m": "x"}, 1.0, "guidance")]
)
def test_mistakes(tiny_sdxl: Path, tmp_path: Path, negative: dict, scale: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run({"m": tiny_sdxl}, PROMPTS, tmp_path, guidance_scale=scale, negative=negative, **SAMPLING)


def test_another_family_is_refused(tiny_sdxl: Path, tiny_sd: Path) -> None:
    positive, negative = (load_for_sampling(str(path), None, torch.float32, "cpu") for path in (tiny_sdxl, tiny_sd))
    with pytest.raises(UserError, match="other inputs"):
        attach(positive, negative.unet)
