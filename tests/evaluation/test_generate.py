"""Pictures: the same noise for every model and batch size, no side effects, resumable."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from t2i_align.errors import UserError
from t2i_align.evaluation import generate
from t2i_align.evaluation.grids import grid
from t2i_align.evaluation.manifest import fingerprint, read_manifest
from t2i_align.evaluation.sampling import sample_images

PROMPTS = ["a red circle", "a blue square", "a ring", "two stars", "a green triangle"]
QUICK = {"num_inference_steps": 2, "guidance_scale": 3.0, "show_progress": False}


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl):
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)


def pixels(image):
    return np.asarray(image, dtype=int)


def test_pictures_equal_those_of_the_plain_pipeline(sdxl):
    ours = sample_images(sdxl, PROMPTS[:2], [5, 6], num_inference_steps=3, guidance_scale=4.0)
    for prompt, seed, image in zip(PROMPTS, [5, 6], ours, strict=False):
        plain = sdxl(
            prompt,
            generator=torch.Generator("cpu").manual_seed(seed),
            num_inference_steps=3,
            guidance_scale=4.0,
        ).images[0]
        assert np.abs(pixels(image) - pixels(plain)).max() <= 1


def test_pictures_do_not_depend_on_the_batch(sdxl):
    seeds = list(range(5))
    together = sample_images(sdxl, PROMPTS, seeds, num_inference_steps=2, batch_size=5)
    apart = sample_images(sdxl, PROMPTS, seeds, num_inference_steps=2, batch_size=2)
    for one, other in zip(together, apart, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 1


def test_v_prediction_sd_and_explicit_size(tiny_sd_v):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_v)
    image = sample_images(pipeline, ["a"], [0], num_inference_steps=2, height=32, width=48)[0]
    assert image.size == (48, 32) and image.mode == "RGB"


def test_sampling_leaves_a_training_pipeline_as_it_was(sdxl):
    sdxl.unet.train()
    sdxl.unet.mid_block.eval()
    scheduler, before = sdxl.scheduler, torch.get_rng_state()
    steps = scheduler.timesteps.clone()
    sdxl.set_progress_bar_config(leave=False)
    sample_images(sdxl, PROMPTS[:1], [0], num_inference_steps=2)
    assert sdxl.unet.training and not sdxl.unet.mid_block.training and not sdxl.vae.training
    assert sdxl.scheduler is scheduler and torch.equal(scheduler.timesteps, steps)
    assert torch.equal(torch.get_rng_state(), before)
    assert sdxl._progress_bar_config == {"leave": False}
    assert all(parameter.grad is None for parameter in sdxl.unet.parameters())
    sdxl.unet.eval()


def test_float32_policy_beside_half_precision_encoders(tiny_sdxl):
    """What a mixed-precision training run validates with; plain pipelines fail on it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.bfloat16)
    pipeline.unet.to(torch.float32)
    image = sample_images(pipeline, ["a"], [0], num_inference_steps=2)[0]
    assert pixels(image).std() > 0
    assert pipeline.vae.dtype == torch.bfloat16 and pipeline.unet.dtype == torch.float32


def test_seeds_and_prompts_must_match(sdxl):
    with pytest.raises(ValueError, match="one seed per prompt"):
        sample_images(sdxl, PROMPTS, [0])


def test_run_writes_pictures_and_manifest(tiny_sdxl, tmp_path):
    folders = generate.run(
        {"base": tiny_sdxl, "again": tiny_sdxl},
        PROMPTS[:2],
        tmp_path,
        seeds_per_prompt=2,
        batch_size=3,
        **QUICK,
    )
    assert folders == {"base": tmp_path / "base", "again": tmp_path / "again"}
    pictures = read_manifest(tmp_path / "base")
    assert [(p.index, p.prompt_index, p.draw) for p in pictures] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
    ]
    assert len({p.seed for p in pictures}) == 4
    assert pictures == read_manifest(tmp_path / "again")
    image = Image.open(tmp_path / "base" / pictures[2].file)
    assert image.text["prompt"] == "a blue square" and image.text["seed"] == str(pictures[2].seed)
    again = Image.open(tmp_path / "again" / pictures[2].file)
    assert np.array_equal(pixels(image), pixels(again))


def test_killed_run_goes_on_with_the_same_pictures(tiny_sdxl, tmp_path):
    models = {"base": tiny_sdxl}
    generate.run(models, PROMPTS, tmp_path / "whole", batch_size=2, **QUICK)
    generate.run(models, PROMPTS, tmp_path / "cut", batch_size=5, **QUICK)
    cut = tmp_path / "cut" / "base"
    lines = (cut / "manifest.jsonl").read_text().splitlines()
    (cut / "manifest.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed in mid-line
    (cut / "images" / "00001.png").unlink()
    kept = (cut / "images" / "00000.png").stat().st_mtime_ns
    generate.run(models, PROMPTS, tmp_path / "cut", batch_size=2, **QUICK)
    assert (cut / "images" / "00000.png").stat().st_mtime_ns == kept
    assert len(read_manifest(cut)) == 5
    for index in range(5):
        one = Image.open(cut / "images" / f"{index:05d}.png")
        other = Image.open(tmp_path / "whole" / "base" / "images" / f"{index:05d}.png")
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_finished_folder_needs_no_model(tiny_sdxl, tmp_path, monkeypatch):
    generate.run({"base": tiny_sdxl}, PROMPTS[:1], tmp_path, **QUICK)
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("the model was loaded"))
    generate.run({"base": tiny_sdxl}, PROMPTS[:1], tmp_path, **QUICK)


def test_other_settings_prompts_or_weights_are_refused(tiny_sdxl, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_sdxl, model)
    generate.run({"base": model}, PROMPTS[:1], tmp_path / "out", **QUICK)
    with pytest.raises(UserError, match="other settings") as caught:
        generate.run({"base": model}, PROMPTS[:1], tmp_path / "out", **{**QUICK, "guidance_scale": 7.5})
    assert "guidance_scale 3.0, now 7.5" in caught.value.found
    with pytest.raises(UserError, match="other prompts"):
        generate.run({"base": model}, ["a cat"], tmp_path / "out", **QUICK)
    config = model / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": 1}))
    with pytest.raises(UserError, match="fingerprint"):
        generate.run({"base": model}, PROMPTS[:1], tmp_path / "out", **QUICK)
    generate.run({"base": model}, ["a cat"], tmp_path / "out", overwrite=True, **QUICK)
    assert [p.prompt for p in read_manifest(tmp_path / "out" / "base")] == ["a cat"]


def test_more_prompts_extend_a_folder(tiny_sdxl, tmp_path):
    generate.run({"base": tiny_sdxl}, PROMPTS[:1], tmp_path, **QUICK)
    generate.run({"base": tiny_sdxl}, PROMPTS[:3], tmp_path, **QUICK)
    assert [p.prompt for p in read_manifest(tmp_path / "base")] == PROMPTS[:3]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "No model"),
        ({"../up": "x"}, {}, "becomes a folder"),
        ({"base": "x"}, {"batch_size": 0}, "batch_size"),
        ({"base": "x"}, {"dtype": "fp8"}, "precision"),
    ],
)
def test_bad_arguments_are_explained(tmp_path, models, options, message):
    with pytest.raises(UserError, match=message):
        generate.run(models, PROMPTS, tmp_path, **{**QUICK, **options})


def test_picture_seeds_are_addressed():
    assert generate.picture_seed(0, 3, 1) == generate.picture_seed(0, 3, 1)
    seeds = {generate.picture_seed(s, i, d) for s in range(3) for i in range(10) for d in range(2)}
    assert len(seeds) == 60 and max(seeds) < 2**32


def test_fingerprint_sees_contents_not_times(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w.bin").write_bytes(b"1234")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "w.bin").write_bytes(b"1235")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_grid_has_the_expected_size_and_keeps_pixels():
    images = [Image.new("RGB", (80, 80), color) for color in ("red", "blue", "green")]
    sheet = grid(images, columns=2)
    assert sheet.size == (8 + 2 * 168, 8 + 2 * 168)  # enlarged twice to 160
    assert sheet.getpixel((8, 8)) == (255, 0, 0) and sheet.getpixel((8 + 168, 8 + 159)) == (0, 0, 255)
    captioned = grid(images, columns=3, captions=["a long caption " * 4, "", "c"])
    assert captioned.height > 8 + 168 and captioned.width == 8 + 3 * 168


def test_grid_refuses_nonsense():
    with pytest.raises(ValueError, match="captions"):
        grid([Image.new("RGB", (8, 8))], 1, captions=[])
    with pytest.raises(ValueError, match="needs a picture"):
        grid([], 1)


def test_run_folder_is_known_by_its_export_alone(tiny_sdxl, tmp_path, monkeypatch):
    """Logs and checkpoints of a run change, and folders are moved; neither makes the pictures stale."""
    run = tmp_path / "run"
    shutil.copytree(tiny_sdxl / "unet", run / "export" / "unet")
    (run / "config.yaml").write_text(f"model:\n  pretrained_model_name_or_path: {tiny_sdxl}\n")
    generate.run({"tuned": run}, PROMPTS[:1], tmp_path / "out", **QUICK)
    (run / "metrics.jsonl").write_text("{}\n")
    run.rename(tmp_path / "moved")
    loaded = []
    monkeypatch.setattr(generate, "load_model", lambda *given: loaded.append(given))
    generate.run({"tuned": tmp_path / "moved"}, PROMPTS[:1], tmp_path / "out", **QUICK)
    assert not loaded


def test_missing_model_is_explained_before_any_picture(tiny_sdxl, tmp_path):
    with pytest.raises(UserError, match="does not exist|no model"):
        generate.run({"base": tiny_sdxl, "tuned": tmp_path}, PROMPTS[:1], tmp_path / "out", **QUICK)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_merged_adapter_draws_what_the_adapter_draws(tiny_sdxl, tmp_path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    plain = sample_images(pipeline, PROMPTS[:1], [0], num_inference_steps=2)[0]
    adapter = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(adapter)
    adapted = sample_images(pipeline, PROMPTS[:1], [0], num_inference_steps=2)[0]
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    StableDiffusionXLPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=state)
    merged = generate.load_model(tmp_path / "lora", tiny_sdxl, "fp32", "cpu")
    assert not any("lora" in name for name, _ in merged.unet.named_parameters())
    image = sample_images(merged, PROMPTS[:1], [0], num_inference_steps=2)[0]
    assert np.abs(pixels(image) - pixels(adapted)).max() <= 1
    assert np.abs(pixels(image) - pixels(plain)).max() > 1
