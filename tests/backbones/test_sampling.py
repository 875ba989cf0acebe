"""Anything that names a model becomes a plain pipeline, and what it is gets said."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i_align.backbones import Backbone, identify_model, load_for_sampling
from t2i_align.errors import UserError
from t2i_align.export import export_run
from tests.backbones.common import inputs, load, perturb
from tests.export.common import run_config
from tests.tiny import make_sd

LORA, KOHYA = "pytorch_lora_weights.safetensors", "kohya_lora_weights.safetensors"


def export(base: Path, folder: Path, **model: object) -> Backbone:
    """Train a little and export; returns the policy."""
    backbone = load(base, **model)
    perturb(backbone)
    kohya = {"kohya": model.get("train") != "full"}
    export_run(backbone, folder, run_config(base, folder.parent, model=model, export=kohya), {})
    return backbone


def predict(pipe: DiffusionPipeline, backbone: Backbone) -> Tensor:
    given = inputs(backbone)
    added = {"text_embeds": given["prompt"].pooled, "time_ids": given["time_ids"]}
    with torch.no_grad():
        return pipe.unet(given["noisy"], given["timesteps"], given["prompt"].hidden, added_cond_kwargs=added).sample


def sample(model: object, base: object = None) -> DiffusionPipeline:
    return load_for_sampling(str(model), None if base is None else str(base), torch.float32, "cpu")


@pytest.fixture(scope="module")
def lora_run(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    """A run folder with a LoRA export, and its policy."""
    run = tmp_path_factory.mktemp("run")
    return run, export(tiny_sdxl, run / "export", lora={"rank": 4, "alpha": 2.0})


def test_a_pipeline_folder(tiny_sdxl: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "t2i_align"):
        pipe = sample(tiny_sdxl)
    assert type(pipe) is StableDiffusionXLPipeline
    assert f"loaded StableDiffusionXLPipeline: pipeline {tiny_sdxl}" in caplog.text


@pytest.mark.parametrize("where", ["", "export", f"export/{LORA}", f"export/{KOHYA}"])
def test_a_lora_by_run_folder_export_folder_or_file(
    lora_run: tuple[Path, Backbone], tiny_sdxl: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, policy = lora_run
    with caplog.at_level(logging.INFO, "t2i_align"):
        pipe = sample(run / where)
    with torch.no_grad():
        torch.testing.assert_close(predict(pipe, policy), policy.predict(**inputs(policy)), atol=1e-5, rtol=1e-5)
    assert f"safetensors on {tiny_sdxl}" in caplog.text
    assert "layers adapted" in caplog.text


def test_a_lora_in_half_precision(lora_run: tuple[Path, Backbone]) -> None:
    pipe = load_for_sampling(str(lora_run[0]), None, torch.bfloat16, "cpu")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a star", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_a_full_unet(tiny_sd: Path, tmp_path: Path) -> None:
    policy = export(tiny_sd, tmp_path / "export", train="full")
    for model, base in ((tmp_path, None), (tmp_path / "export", tiny_sd), (tmp_path / "export/unet", tiny_sd)):
        pipe = sample(model, base)
        with torch.no_grad():
            torch.testing.assert_close(predict(pipe, policy), policy.predict(**inputs(policy)))


def test_the_recorded_base_keeps_its_variant_and_vae(tiny_sd: Path, tmp_path: Path) -> None:
    base = make_sd(tmp_path / "base")
    for path in base.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    export(base, tmp_path / "run/export", variant="fp16", pretrained_vae_model_name_or_path=str(tiny_sd))
    source = identify_model(str(tmp_path / "run"))
    assert "(variant fp16) with the VAE" in source.description
    assert sample(tmp_path / "run").vae.config._name_or_path == str(tiny_sd / "vae")


def test_a_variant_asked_for_goes_before_the_recorded_one(
    lora_run: tuple[Path, Backbone], tiny_sdxl: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_sdxl, tmp_path / "base"))
    for path in base.rglob("*.safetensors"):  # zeros under the plain name, the weights under the variant's
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    for model, under in ((str(base), None), (str(lora_run[0]), str(base))):
        plain, asked = (load_for_sampling(model, under, torch.float32, "cpu", variant) for variant in (None, "fp16"))
        assert not plain.unet.conv_in.weight.any()
        assert asked.unet.conv_in.weight.any() and asked.text_encoder_2.text_projection.weight.any()
        assert "(variant fp16)" in identify_model(model, under, "fp16").description


def test_identify_does_not_touch_weights() -> None:
    assert identify_model("owner/model").description == "pipeline owner/model"
    assert identify_model("shapes:base").kind == "pipeline"


def test_unknown_base(lora_run: tuple[Path, Backbone], tiny_sdxl: Path, tmp_path: Path) -> None:
    file = shutil.copy(lora_run[0] / "export" / LORA, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match="base model of these weights is unknown"):
        sample(file)
    assert sample(file, tiny_sdxl).unet.peft_config


def test_lora_of_another_architecture(lora_run: tuple[Path, Backbone], tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LoRA belongs to another architecture"):
        sample(lora_run[0], tiny_sd)
    wide = make_sd(tmp_path / "wide", text_width=32)
    export(wide, tmp_path / "run/export")
    with pytest.raises(UserError, match=r"attn2.to_k.lora_A.weight takes \[32\], the layer takes \[24\]"):
        sample(tmp_path / "run", tiny_sd)


def test_unet_of_another_architecture(tiny_sd: Path, tmp_path: Path) -> None:
    export(make_sd(tmp_path / "wide", text_width=32), tmp_path / "run/export", train="full")
    with pytest.raises(UserError, match=r"to_k.weight is \[16, 32\], expected \[16, 24\]"):
        sample(tmp_path / "run", tiny_sd)


def test_damaged_and_foreign_files(lora_run: tuple[Path, Backbone], tiny_sdxl: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    weights = load_file(lora_run[0] / "export" / LORA)
    save_file(weights, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated"):
        sample(file, tiny_sdxl)
    save_file({"conv.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="holds no LoRA weights"):
        sample(file, tiny_sdxl)
    query = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{query}.lora_A.weight": torch.ones(2, 16), f"{query}.lora_B.weight": torch.ones(16, 2)}, file)
    with pytest.raises(UserError, match="no weights for the denoiser"):
        sample(file, tiny_sdxl)
    (tmp_path / "lora.bin").touch()
    with pytest.raises(UserError, match="must be a LoRA in safetensors"):
        sample(tmp_path / "lora.bin", tiny_sdxl)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in this folder"):
        sample(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="has no export yet"):
        sample(tmp_path)
    (tmp_path / "trainable.safetensors").touch()
    with pytest.raises(UserError, match="t2i-align export"):
        sample(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        sample(tmp_path / "gone")


def test_unreadable_run_configuration(lora_run: tuple[Path, Backbone], tmp_path: Path) -> None:
    shutil.copy(lora_run[0] / "export" / LORA, tmp_path)
    (tmp_path / "config.yaml").write_text("model: {rank: 4}")
    with pytest.raises(UserError, match="configuration cannot be read"):
        sample(tmp_path)
