"""Every way a checkpoint can be wrong ends in one clear message, before anything heavy."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from t2i_align.backbones import BACKBONES, load_backbone, load_for_sampling
from t2i_align.backbones.weight_files import component_files, read_header
from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError
from tests.backbones.common import PROMPTS, inputs, load
from tests.tiny import edit_json, make_sd

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A tiny SDXL folder to spoil."""
    return Path(shutil.copytree(tiny_sdxl, tmp_path / "sdxl"))


def test_supported_classes() -> None:
    assert list(BACKBONES) == ["StableDiffusionPipeline", "StableDiffusionXLPipeline"]
    assert all(name == backbone.pipeline_class.__name__ for name, backbone in BACKBONES.items())


def test_missing_folder() -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(Path("./no-such-folder"))


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(UserError, match=r"no model_index.json[\s\S]*weights.txt"):
        load(tmp_path)


def test_single_file_checkpoint(copy: Path) -> None:
    with pytest.raises(UserError, match="from_single_file"):
        load(copy / UNET)


def test_unsupported_class_names_the_supported(copy: Path) -> None:
    edit_json(copy / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(UserError, match="FluxPipeline is not supported") as error:
        load(copy)
    assert "StableDiffusionPipeline, StableDiffusionXLPipeline" in error.value.fix


def test_unreadable_model_index(copy: Path) -> None:
    (copy / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load(copy)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_truncated_weights(copy: Path, component: str) -> None:
    path = next((copy / component).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"truncated[\s\S]*its header promises"):
        load(copy)


def test_weights_cut_in_the_header_and_lfs_pointers(copy: Path) -> None:
    (copy / UNET).write_bytes((copy / UNET).read_bytes()[:100])
    with pytest.raises(UserError, match="truncated or not safetensors"):
        load(copy)
    (copy / UNET).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        load(copy)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_missing_component(copy: Path, component: str) -> None:
    shutil.rmtree(copy / component)
    with pytest.raises(UserError):
        load(copy)


def test_weights_of_another_architecture(copy: Path, tiny_sd: Path) -> None:
    shutil.copy(tiny_sd / UNET, copy / UNET)
    with pytest.raises(UserError, match="unet belong to another architecture") as error:
        load(copy)
    assert "expected [" in error.value.found
    assert "more" in error.value.found


def test_text_encoder_of_another_size(copy: Path, tiny_sd: Path) -> None:
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(tiny_sd / "text_encoder", copy / "text_encoder")
    with pytest.raises(UserError, match=r"hidden sizes \[24, 24\], cross_attention_dim 40"):
        load(copy)


def test_refiner_like_conditioning(copy: Path) -> None:
    edit_json(copy / "text_encoder_2/config.json", projection_dim=12)
    path = copy / "text_encoder_2/model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"] = weights["text_projection.weight"][:12].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="six size and crop ids"):
        load(copy)


def test_other_noise_processes(copy: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(copy / "scheduler")
    index = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    edit_json(copy / "model_index.json", **index)
    with pytest.raises(UserError, match="no beta schedule"):
        load(copy)


def test_harmless_pickles_load_and_others_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "sd"))
    weights = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(weights, folder / "unet/diffusion_pytorch_model.bin")
    expected, found = load(tiny_sd), load(folder)
    assert torch.equal(found.predict(**inputs(found)), expected.predict(**inputs(expected)))

    class Exploit:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Exploit()}))
    with pytest.raises(UserError, match="pickle was refused"):
        load(folder)
    assert not (tmp_path / "executed").exists()


def test_variants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_sd(tmp_path / "sd", dtype=torch.float16)
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    expected = load(folder, variant="fp16")
    assert expected.encode_prompt(PROMPTS).hidden.isfinite().all()
    with caplog.at_level(logging.WARNING, "t2i_align"):
        found = load(folder)
    assert "holds no weights but those of variant fp16" in caplog.text
    assert found.variant == expected.variant == "fp16"
    assert torch.equal(found.predict(**inputs(found)), expected.predict(**inputs(expected)))
    with pytest.raises(UserError, match="variant bf16"):
        load(folder, variant="bf16")


def test_a_variant_is_not_guessed(tmp_path: Path) -> None:
    folder = make_sd(tmp_path / "sd")
    for path in folder.rglob("*.safetensors"):
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        path.rename(path.with_suffix(".ema.safetensors"))
    with pytest.raises(UserError, match="without a variant") as error:
        load(folder)
    assert error.value.found.endswith("has: ema, fp16")
    for path in folder.rglob("*.ema.safetensors"):  # one variant now; but the VAE has plain weights beside it
        path.unlink()
    vae = folder / "vae/diffusion_pytorch_model"
    shutil.copy(vae.with_suffix(".fp16.safetensors"), vae.with_suffix(".safetensors"))
    with pytest.raises(UserError, match="without a variant"):
        load(folder)
    assert load(folder, variant="fp16").variant == "fp16"


def test_hub_repositories_of_one_variant(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variant diffusers downloads everything but the weights, and no error."""
    whole = Path(shutil.copytree(tiny_sd, tmp_path / "whole"))
    for path in whole.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    bare = shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    original = DiffusionPipeline.load_config
    given = {"_class_name": "StableDiffusionPipeline"}
    monkeypatch.setattr(
        DiffusionPipeline, "load_config", lambda name, **o: original(name, **o) if Path(name).is_dir() else given
    )
    monkeypatch.setattr(DiffusionPipeline, "download", lambda _, variant, **__: str(whole if variant else bare))
    assert load(Path("owner/model")).variant == "fp16"


def test_tokenizers_that_state_no_length(copy: Path, tiny_sdxl: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        config = copy / name / "tokenizer_config.json"
        stated = json.loads(config.read_text())
        assert stated.pop("model_max_length") == 77
        config.write_text(json.dumps(stated))
    long = ["a fox " * 100, "short"]
    with caplog.at_level(logging.WARNING, "t2i_align"):
        backbone = load(copy)
    assert caplog.text.count("prompts are cut at 77 tokens") == 2
    expected, found = load(tiny_sdxl).encode_prompt(long), backbone.encode_prompt(long)
    assert torch.equal(found.hidden, expected.hidden) and torch.equal(found.pooled, expected.pooled)
    assert backbone.encoder_fingerprint() == load(tiny_sdxl).encoder_fingerprint()
    pipe = load_for_sampling(str(copy), None, torch.float32, "cpu")
    assert pipe.tokenizer.model_max_length == pipe.tokenizer_2.model_max_length == 77


def test_components_without_the_variant_fall_back_to_plain_files(tmp_path: Path) -> None:
    folder = make_sd(tmp_path / "sd")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    backbone = load(folder, variant="fp16")
    assert backbone.predict(**inputs(backbone)).isfinite().all()


def test_shards_and_variants_are_told_apart(tmp_path: Path) -> None:
    names = (
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
        "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "diffusion_pytorch_model-00001-of-00001.ema.safetensors",
        "diffusion_pytorch_model.bin",
    )
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in component_files(tmp_path, None, True)] == sorted(names[:2])
    assert [path.name for path in component_files(tmp_path, "fp16", True)] == [names[2]]
    assert [path.name for path in component_files(tmp_path, "ema", True)] == [names[3]]
    assert [path.name for path in component_files(tmp_path, "other", False)] == sorted(names[:2])


def test_header_agrees_with_the_file(tiny_sd: Path) -> None:
    shapes = read_header(tiny_sd / UNET).shapes
    assert shapes == {name: tuple(tensor.shape) for name, tensor in load_file(tiny_sd / UNET).items()}


def test_what_the_network_keeps_away_is_said_to_be_that(tiny_sd: Path, tmp_path: Path) -> None:
    """The tests are offline; diffusers then says that a file is missing in the repository."""
    with pytest.raises(
        UserError, match=r"base model is not on this machine[\s\S]*nobody/no-such at v1: HF_HUB"
    ) as error:
        load(Path("nobody/no-such"), revision="v1")
    assert error.value.fix.endswith("set model.pretrained_model_name_or_path=FOLDER")
    vae = {"pretrained_vae_model_name_or_path": "nobody/vae"}
    with pytest.raises(
        UserError, match=r"The VAE is not on this machine[\s\S]*nobody/vae: HF_HUB_OFFLINE is set"
    ) as error:
        load(tiny_sd, **vae)
    assert "set model.pretrained_vae_model_name_or_path=FOLDER (null: the base's own)" in error.value.fix
    with pytest.raises(UserError, match="folder of the VAE does not exist"):
        load(tiny_sd, pretrained_vae_model_name_or_path=str(tmp_path / "gone"))


@pytest.mark.parametrize("network", [True, False])
def test_other_hub_failures_are_not(network: bool, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(type("TransportError", (Exception,), {})):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise OSError("owner/m is gated") from (ConnectError() if network else PermissionError())

    monkeypatch.setattr(DiffusionPipeline, "load_config", refuse)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", refuse)
    for folder, vae in ((Path("owner/m"), None), (tiny_sd, "owner/m")):
        message = "network is needed" if network else "nor available from the hub"
        with pytest.raises(UserError, match=message) as error:
            load(folder, pretrained_vae_model_name_or_path=vae)
        assert ("owner/m is gated" in error.value.found) is not network


def test_hub_id_revision_and_variant_are_passed_on(tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = SimpleNamespace(config=None, download=None)

    original = DiffusionPipeline.load_config

    def load_config(name: str | Path, **options: str) -> dict:
        if Path(name).is_dir():
            return original(name, **options)
        asked.config = (name, options)
        return {"_class_name": "StableDiffusionXLPipeline"}

    def download(name: str, **options: str) -> str:
        asked.download = (name, options)
        return str(tiny_sdxl)

    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    load(Path("owner/model"), revision="main")
    assert asked.config == ("owner/model", {"revision": "main"})
    assert asked.download == ("owner/model", {"revision": "main", "variant": None})


def test_unsupported_hub_models_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *_, **__: {"_class_name": "FluxPipeline"})
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(UserError, match="FluxPipeline is not supported"):
        load(Path("owner/flux"))


def test_encoders_only(tiny_sdxl: Path) -> None:
    config = ModelConfig(pretrained_model_name_or_path=str(tiny_sdxl))
    backbone = load_backbone(config, "cpu", torch.float32, encoders_only=True)
    assert backbone.unet is None
    assert backbone.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 8, 8)
    assert backbone.encoder_fingerprint() == load(tiny_sdxl).encoder_fingerprint()
    with pytest.raises(RuntimeError, match="encoders_only"):
        backbone.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), backbone.encode_prompt(["x"]))
