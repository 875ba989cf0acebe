"""Pretraining end to end at toy size: the loop, resuming, the layout plain diffusers reads, and bad configs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from t2i_align.errors import UserError
from t2i_align.shapes.fitting import Ema, FitConfig, fit
from t2i_align.shapes.pretrain import load_config, publish_intermediate, run
from t2i_align.shapes.sampling import load_pipeline, sample
from t2i_align.shapes.unet_training import UnetConfig, UnetPhase, training_prompts
from t2i_align.shapes.vae_training import (
    VaeConfig,
    VaePhase,
    build_vae,
    crop_around_figures,
    encode,
    pixels,
    standardise_latents,
)
from t2i_align.shapes.world import Scene, parse_caption, sample_scene


def test_plain_diffusers_loads_and_samples_the_folder(tiny_run: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_run / "base")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["a red star", "a zebra 🙂"], num_inference_steps=2, output_type="np", height=64, width=64).images
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()
    assert pipeline.config.force_zeros_for_empty_prompt is False
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert DDIMScheduler.from_config(pipeline.scheduler.config).config.clip_sample is False
    assert pipeline.vae.config.scaling_factor != 0.18215


def test_weights_are_half_precision_safetensors(tiny_run: Path) -> None:
    from safetensors.torch import load_file

    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (tiny_run / "base" / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert (tiny_run / "samples.png").is_file() and (tiny_run / "pretrain.log").stat().st_size > 0


def test_files_are_readable_to_whom_any_new_file_is(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in tiny_run.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_conditioning_matches_what_the_pipeline_computes(tiny_run: Path, tiny_config: Path) -> None:
    from t2i_align.shapes.unet_training import TIME_IDS, Denoiser

    pipeline = load_pipeline(tiny_run / "base")
    parts = Denoiser(pipeline.tokenizer, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet)
    prompts = ["a red star", ""]
    with torch.no_grad():
        hidden, pooled = parts.encode_prompts(prompts)
        theirs, empty, their_pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=True)
    torch.testing.assert_close(hidden, theirs)
    torch.testing.assert_close(pooled, their_pooled)
    torch.testing.assert_close(empty[0], hidden[1])  # the unconditional is the encoded empty caption
    ids = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, pooled.shape[-1])
    assert ids.tolist() == [list(TIME_IDS)]


def test_pictures_do_not_depend_on_the_batch(tiny_run: Path) -> None:
    pipeline = load_pipeline(tiny_run / "base")
    prompts = ["a red star", "a blue ring", "a shape"]
    together = sample(pipeline, prompts, seeds=[4, 5, 6], num_inference_steps=2)
    split = sample(pipeline, prompts, seeds=[4, 5, 6], num_inference_steps=2, batch_size=1)
    for a, b in zip(together, split, strict=True):
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


def test_an_earlier_run_is_not_overwritten(tiny_run: Path, tiny_config: Path) -> None:
    with pytest.raises(UserError, match="earlier run"):
        run(tiny_config, tiny_run)


def test_resuming_a_finished_run_gives_the_same_weights(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "state", tmp_path / "state")
    run(tiny_config, tmp_path, resume=True)
    for file in (tiny_run / "base").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "base" / file.relative_to(tiny_run / "base")).read_bytes()


def test_the_last_checkpoint_can_be_published(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    assert publish_intermediate(load_config(tiny_config), tiny_run, tmp_path / "base") == 2
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "base" / name).read_bytes() == (tiny_run / "base" / name).read_bytes()


def _linear_losses(module: torch.nn.Linear):
    def losses(step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"loss": (module(x).sum(dim=1) - x.sum(dim=1)).pow(2).mean()}

    return losses


def test_an_interrupted_fit_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    config = FitConfig(steps=20, batch_size=8, learning_rate=0.05, bf16=False, checkpoint_every=5)

    class Killed(Exception):
        pass

    def start() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(3, 1)

    unbroken = start()
    fit(unbroken, _linear_losses(unbroken), config, tmp_path / "a.ckpt", resume=False)
    broken = start()

    def dies(step: int) -> dict[str, torch.Tensor]:
        if step == 13:
            raise Killed
        return _linear_losses(broken)(step)

    with pytest.raises(Killed):
        fit(broken, dies, config, tmp_path / "b.ckpt", resume=False)
    resumed = start()
    fit(resumed, _linear_losses(resumed), config, tmp_path / "b.ckpt", resume=True)
    assert torch.equal(resumed.weight, unbroken.weight) and torch.equal(resumed.bias, unbroken.bias)


def test_moving_average_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    ema = Ema(module, decay=0.9)
    module.weight.data.fill_(2.0)
    ema.update(module, step=0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert ema.shadow[0].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    module.weight.data.fill_(0.0)
    ema.update(module, step=10_000)  # decay 0.9
    assert ema.shadow[0].item() == pytest.approx(0.9 * 1.9)


def test_captions_are_dropped_as_configured() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(2000)]
    fit_config = FitConfig(steps=1, batch_size=1, learning_rate=1e-3)
    config = UnetConfig(phases=[UnetPhase(fit=fit_config)])
    prompts = training_prompts(scenes, rng, config)
    assert np.mean([prompt == "" for prompt in prompts]) == pytest.approx(0.1, abs=0.02)
    named = [len(parse_caption(prompt)) / 6 for prompt in prompts if prompt]
    assert np.mean(named) == pytest.approx(0.7, abs=0.02)  # the drop rate is uniform in [0, 0.6]
    for scene, prompt in zip(scenes[:50], prompts[:50], strict=True):
        assert parse_caption(prompt).items() <= scene.attributes().items()


def test_standardised_latents_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    phase = VaePhase(fit=FitConfig(steps=1, batch_size=1, learning_rate=1e-3))
    vae = build_vae(VaeConfig(block_out_channels=(8, 16, 16), phases=[phase])).eval()
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(4)]
    with torch.no_grad():
        before, std = vae(pixels(scenes)).sample, vae.encode(pixels(scenes)).latent_dist.std
        scale = encode(vae, scenes).std(dim=(0, 2, 3))
        standardise_latents(vae, encode(vae, scenes))
        latents = encode(vae, scenes)
        torch.testing.assert_close(vae(pixels(scenes)).sample, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(vae.encode(pixels(scenes)).latent_dist.std * scale[:, None, None], std)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_crops_hold_the_figure() -> None:
    scene = Scene("circle", "red", "large", "plain", "on the right", "white")
    (crop,) = crop_around_figures(pixels([scene]), [scene], 40, np.random.default_rng(0))
    assert crop.shape == (3, 40, 40)
    whole = pixels([scene])[0]
    assert (crop[1] < 0).sum() == (whole[1] < 0).sum()  # as many red pixels


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("vae: {}\nunet: {}", "phases"),
        ("seeed: 1", "seeed"),
        ("a: [", "not valid YAML"),
        ("num_scenes: x", "num_scenes"),
    ],
)
def test_bad_configs_are_explained(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=match):
        load_config(path)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "nothing.yaml")


def test_the_committed_config_is_valid() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "shapes" / "pretrain.yaml")
    assert config.unet.empty_caption_rate == 0.1
