"""Negative prompt, sampler, variant and prompts in words: each acts, is recorded, and is not mixed with others."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from typer.testing import CliRunner

from t2i_align import cli
from t2i_align.backbones.samplers import SAMPLERS, make_sampler
from t2i_align.commands.common import chosen_prompts
from t2i_align.errors import UserError
from t2i_align.evaluation import evaluate, generate
from t2i_align.evaluation.best_of import BestOf
from t2i_align.evaluation.manifest import read_manifest, read_settings
from t2i_align.evaluation.report.document import _commands
from t2i_align.evaluation.sampling import sample_images
from tests.evaluation.synthetic import BrightnessScorer
from tests.tiny import make_sdxl

PROMPTS = ["a red circle", "two stars"]
QUICK = {"num_inference_steps": 3, "guidance_scale": 3.0, "show_progress": False}


def pixels(folder: Path, index: int = 0) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / f"{index:05d}.png"), dtype=int)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """Levels of 255; another batch may round a picture by one."""
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("family", ["tiny_sdxl", "tiny_sd_v"])
def test_negative_prompt_is_that_of_the_plain_pipeline(family, request, tmp_path):
    model = request.getfixturevalue(family)
    plain = generate.run({"m": model}, PROMPTS, tmp_path / "plain", **QUICK)["m"]
    away = generate.run({"m": model}, PROMPTS, tmp_path / "away", negative_prompt="a blue square", **QUICK)["m"]
    kind = StableDiffusionXLPipeline if family == "tiny_sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(model)
    for index, picture in enumerate(read_manifest(away)):
        generator = torch.Generator("cpu").manual_seed(picture.seed)
        expected = pipeline(
            picture.prompt,
            negative_prompt="a blue square",
            generator=generator,
            num_inference_steps=3,
            guidance_scale=3.0,
        ).images[0]
        assert apart(pixels(away, index), np.asarray(expected, dtype=int)) <= 1
        assert apart(pixels(away, index), pixels(plain, index)) > 1
    assert read_settings(away)["negative_prompt"] == "a blue square"
    assert Image.open(away / "images" / "00000.png").text["negative_prompt"] == "a blue square"


def test_negative_prompt_needs_guidance(tiny_sdxl, tmp_path):
    options = {**QUICK, "guidance_scale": 1.0}
    with pytest.raises(UserError, match="negative prompt acts through guidance") as caught:
        generate.run({"m": tiny_sdxl}, PROMPTS, tmp_path, negative_prompt="a ring", **options)
    assert caught.value.found == "guidance_scale 1" and not list(tmp_path.iterdir())


def test_a_model_that_is_told_its_guidance_takes_no_negative_prompt(tiny_sdxl):
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipeline.unet.register_to_config(time_cond_proj_dim=8)  # as in latent consistency models
    with pytest.raises(UserError, match="guided without a negative prompt"):
        sample_images(pipeline, PROMPTS, [0, 1], negative_prompt="a ring")


def test_a_negative_model_is_asked_about_the_negative_prompt(tiny_sdxl, tmp_path):
    negative = {"m": make_sdxl(tmp_path / "other", seed=1)}
    options = {**QUICK, "negative": negative}
    plain = generate.run({"m": tiny_sdxl}, PROMPTS[:1], tmp_path / "plain", **options)["m"]
    away = generate.run({"m": tiny_sdxl}, PROMPTS[:1], tmp_path / "away", negative_prompt="a ring", **options)["m"]
    assert apart(pixels(plain), pixels(away)) > 1


def test_refinement_is_guided_away_too(tiny_sdxl, tmp_path, monkeypatch):
    given = []
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    own = kind.__call__

    def spy(self, *args, **options):
        given.append(options["negative_prompt"])
        return own(self, *args, **options)

    monkeypatch.setattr(kind, "__call__", spy)
    choice = BestOf(2, [BrightnessScorer()], [0.7])
    generate.run({"m": tiny_sdxl}, PROMPTS, tmp_path, best_of=choice, negative_prompt="a ring", **QUICK)
    assert given == [["a ring", "a ring"]] * 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_is_that_of_the_plain_pipeline_with_the_same_scheduler(name, tiny_sdxl, tmp_path):
    """Drawn beside another, and by itself: also where noise is added at every step."""
    folder = generate.run({"m": tiny_sdxl}, PROMPTS, tmp_path, sampler=name, **QUICK)["m"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    kind = getattr(diffusers, SAMPLERS[name].kind)
    known = inspect.signature(kind.__init__).parameters
    unclipped = {"clip_sample": False} if "clip_sample" in known else {}
    spacing = {"set_alpha_to_one": make_sampler(name, pipeline.scheduler).config.get("set_alpha_to_one")}
    spacing = spacing if "set_alpha_to_one" in known else {}
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **SAMPLERS[name].options, **unclipped, **spacing)
    for index, picture in enumerate(read_manifest(folder)):
        generator = torch.Generator("cpu").manual_seed(picture.seed)
        expected = pipeline(picture.prompt, generator=generator, num_inference_steps=3, guidance_scale=3.0).images[0]
        assert apart(pixels(folder, index), np.asarray(expected, dtype=int)) <= 1
    assert read_settings(folder)["sampler"] == name
    assert Image.open(folder / "images" / "00000.png").text["sampler"] == name


def test_the_sampler_is_the_pipelines_scheduler(tiny_sdxl):
    loaded = generate.load_model(tiny_sdxl, None, "fp32", "cpu", sampler="dpmpp_2m_karras").scheduler
    assert isinstance(loaded, diffusers.DPMSolverMultistepScheduler) and loaded.config.use_karras_sigmas
    own = generate.load_model(tiny_sdxl, None, "fp32", "cpu").scheduler
    assert isinstance(own, diffusers.EulerDiscreteScheduler)


def test_a_sampler_that_does_not_fit_one_model_is_refused_before_any_picture(tiny_sdxl, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_sdxl, other)
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "sample"}))
    with pytest.raises(UserError, match="euler_a cannot take this checkpoint's schedule"):
        generate.run({"m": tiny_sdxl, "other": other}, PROMPTS, tmp_path / "out", sampler="euler_a", **QUICK)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("negative_prompt", "a ring", "negative_prompt None, now 'a ring'"),
        ("negative_prompt", "", "negative_prompt None, now ''"),
        ("sampler", "Euler a", "sampler None, now 'euler_a'"),
        ("variant", "fp16", "variant None, now 'fp16'"),
    ],
)
def test_pictures_of_other_options_are_not_mixed(tiny_sdxl, tmp_path, option, value, found):
    generate.run({"m": tiny_sdxl}, PROMPTS[:1], tmp_path, **QUICK)
    with pytest.raises(UserError, match="other settings") as caught:
        generate.run({"m": tiny_sdxl}, PROMPTS[:1], tmp_path, **{option: value}, **QUICK)
    assert found in caught.value.found


def test_folders_of_earlier_versions_go_on(tiny_sdxl, tmp_path):
    folder = generate.run({"m": tiny_sdxl}, PROMPTS[:1], tmp_path, **QUICK)["m"]
    settings = read_settings(folder)
    for name in ("negative_prompt", "sampler", "variant"):
        del settings[name]
    (folder / "settings.json").write_text(json.dumps(settings))
    generate.run({"m": tiny_sdxl}, PROMPTS, tmp_path, **QUICK)
    assert len(read_manifest(folder)) == 2


def test_variant_names_the_weights(tmp_path):
    """Plain weights beside those of a variant, of other numbers."""
    model = make_sdxl(tmp_path / "model")
    other = StableDiffusionXLPipeline.from_pretrained(make_sdxl(tmp_path / "other", seed=1))
    other.save_pretrained(model, variant="fp16")
    plain = generate.run({"m": model}, PROMPTS[:1], tmp_path / "plain", **QUICK)["m"]
    of_variant = generate.run({"m": model}, PROMPTS[:1], tmp_path / "variant", variant="fp16", **QUICK)["m"]
    expected = generate.run({"m": tmp_path / "other"}, PROMPTS[:1], tmp_path / "expected", **QUICK)["m"]
    assert apart(pixels(of_variant), pixels(expected)) <= 1 < apart(pixels(of_variant), pixels(plain))
    assert read_settings(of_variant)["variant"] == "fp16"
    assert "variant fp16" in read_settings(of_variant)["model"]
    with pytest.raises(UserError, match="variant bf16"):
        generate.run({"m": model}, PROMPTS[:1], tmp_path / "no", variant="bf16", **QUICK)


def test_prompts_in_words_or_from_a_source() -> None:
    assert chosen_prompts(None, None) is None and chosen_prompts(None, []) is None
    assert chosen_prompts("a.txt", None) == "a.txt"
    assert chosen_prompts(None, [" a, b.txt ", "shapes"]) == [" a, b.txt ", "shapes"]
    with pytest.raises(UserError, match="cannot both be given"):
        chosen_prompts("shapes", ["a"])


def test_everything_from_the_command_line(tiny_sdxl, tmp_path):
    words = ["generate", f"m={tiny_sdxl}", "--prompt", "shapes", "--prompt", "a ring, 2 stars", "--seed", "7"]
    words += ["--negative-prompt", "blue", "--sampler", "DPM++ 2M Karras", "--num-inference-steps", "2"]
    ran = CliRunner().invoke(cli.app, [*words, "--output-dir", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    pictures = read_manifest(tmp_path / "m")
    assert [picture.prompt for picture in pictures] == ["shapes", "a ring, 2 stars"]
    assert [picture.seed for picture in pictures] == [generate.picture_seed(7, index, 0) for index in (0, 1)]
    found = read_settings(tmp_path / "m")
    assert (found["negative_prompt"], found["sampler"], found["seed"]) == ("blue", "dpmpp_2m_karras", 7)


def test_evaluation_records_all_and_says_how_to_repeat_it(tiny_sdxl, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    StableDiffusionXLPipeline.from_pretrained(tiny_sdxl).save_pretrained(model, variant="fp16")
    options = {"negative_prompt": "-blue, 'dull'", "sampler": "unipc", "variant": "fp16", "seed": 5}
    models = {"base": model, "tuned": model}
    found = evaluate.run(models, PROMPTS, [BrightnessScorer()], tmp_path / "out", **options, **QUICK, replicates=500)
    assert {name: found.settings[name] for name in options} == options
    command = shlex.split(_commands(found, {})[-1])
    given = dict(zip(command, command[1:], strict=False))
    assert given["--negative-prompt"] == "-blue, 'dull'" and given["--sampler"] == "unipc"
    assert given["--variant"] == "fp16" and given["--seed"] == "5" and "--prompts" not in command
    assert [word for option, word in zip(command, command[1:], strict=False) if option == "--prompt"] == PROMPTS
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">sampler</th><td>unipc</td>' in page and "--sampler unipc" in page
