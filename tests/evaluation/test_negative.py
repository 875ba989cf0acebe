"""A negative model answers the unconditional half of guidance, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file

from t2i_align.backbones import load_for_sampling
from t2i_align.errors import UserError
from t2i_align.evaluation.generate import load_model, run
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
    """Up to one level of 255: half of a batch may be rounded differently than all of it."""
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


LAYERS = {
    "positive": ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_out"),
    "negative": ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.proj_in"),
}


def lora(name: str, file: Path, base: Path, **extra: torch.Tensor) -> Path:
    """A LoRA of two layers, one of them in both files, at scale 1/2."""
    unet = load_for_sampling(str(base), None, torch.float32, "cpu").unet
    generator, state = torch.Generator().manual_seed(len(name) + (name == "negative")), {}
    for layer in LAYERS[name]:
        shape = unet.get_submodule(layer).weight.shape
        down = 0.2 * torch.randn(2, *shape[1:], generator=generator)
        up = 0.2 * torch.randn(shape[0], 2, *[1] * len(shape[2:]), generator=generator)
        state |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
        state[f"unet.{layer}.alpha"] = torch.tensor(1.0)
    save_file({**state, **extra}, file)
    return file


@pytest.mark.parametrize("kinds", [("positive", "negative"), ("positive", "other"), ("other", "negative")])
def test_merging_loras_in_half_precision_is_the_merge_in_float32(
    tiny_sdxl: Path, other: Path, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    """LoRAs stay beside their base in bfloat16; with both whole the weights are what they are in float32, rounded."""
    made = {name: lora(name, tmp_path / f"{name}.safetensors", tiny_sdxl) for name in LAYERS} | {"other": other}
    merged = {}
    for precision in ("fp32", "bf16"):
        positive, negative, base = (
            load_model(model, tiny_sdxl, precision, "cpu").unet
            for model in (*(made[kind] for kind in kinds), tiny_sdxl)
        )
        merge(negative, positive, base, 0.5)
        merged[precision] = negative
    wide, half = merged["fp32"], merged["bf16"]
    for name in {layer for layers in LAYERS.values() for layer in layers}:
        module, weight = half.get_submodule(name), wide.get_submodule(name).weight
        found = module.weight.float()
        if hasattr(module, "base_layer"):
            found = module.base_layer.weight.float() + sum(
                module.get_delta_weight(adapter).float() for adapter in module.active_adapters
            )
        # one rounding to 8 bits each of base, factors and their product, values below 1
        assert (found - weight).abs().max() < 4 * 2**-8 * weight.abs().max().clamp(min=0.2)
    given = {"encoder_hidden_states": torch.ones(1, 5, 40), "return_dict": False}
    added = {"text_embeds": torch.ones(1, 20), "time_ids": torch.full((1, 6), 64.0)}
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = wide(noisy, torch.tensor(500), added_cond_kwargs=added, **given)[0]
        added = {key: value.bfloat16() for key, value in added.items()}
        given["encoder_hidden_states"] = given["encoder_hidden_states"].bfloat16()
        found = half(noisy.bfloat16(), torch.tensor(500), added_cond_kwargs=added, **given)[0].float()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_generating_with_merged_loras_in_half_precision(tiny_sdxl: Path, tmp_path: Path) -> None:
    made = {name: lora(name, tmp_path / f"{name}.safetensors", tiny_sdxl) for name in LAYERS}
    options = {
        "guidance_scale": 3.0,
        "negative": {"m": made["negative"]},
        "base": tiny_sdxl,
        "dtype": "bf16",
        **SAMPLING,
    }
    folders = [
        run({"m": made["positive"]}, PROMPTS, tmp_path / f"{share}", negative_merge=share, **options)["m"]
        for share in (0.0, 1.0)
    ]
    assert not same(*map(pictures, folders))


def test_a_dora_is_not_merged_in_half_precision(tiny_sdxl: Path, tmp_path: Path) -> None:
    shapes = {
        layer: load_for_sampling(str(tiny_sdxl), None, torch.float32, "cpu").unet.get_submodule(layer).weight
        for layer in LAYERS["positive"]
    }
    magnitudes = {f"unet.{layer}.lora_magnitude_vector": torch.ones(len(weight)) for layer, weight in shapes.items()}
    file = lora("positive", tmp_path / "dora.safetensors", tiny_sdxl, **magnitudes)
    for precision in ("fp32", "bf16"):
        positive, negative, base = (
            load_model(m, tiny_sdxl, precision, "cpu").unet for m in (file, tiny_sdxl, tiny_sdxl)
        )
        if precision == "bf16":
            with pytest.raises(UserError, match="DoRA cannot be merged"):
                merge(negative, positive, base, 1.0)
        else:
            merge(negative, positive, base, 1.0)
            torch.testing.assert_close(negative.conv_out.weight, positive.conv_out.weight)


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
