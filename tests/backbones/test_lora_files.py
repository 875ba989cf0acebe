"""LoRA files of other tools: every key is applied, to the right layer with the right scale, or named in an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i_align.backbones import load_for_sampling
from t2i_align.backbones.lora_keys import LayerNames
from t2i_align.errors import UserError
from t2i_align.personal.soups import merge_loras
from tests.backbones.test_loading import UNET

Update = tuple[Tensor, Tensor, float | None]  # A, B, alpha
# In diffusers' names: attention of the denoiser, its convolutions, and attention and feed-forward of a text encoder
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0"
CONV = "up_blocks.0.resnets.1.conv1"
SHORTCUT = "up_blocks.1.resnets.0.conv_shortcut"
DOWN = "down_blocks.0.downsamplers.0.conv"
UP = "up_blocks.0.upsamplers.0.conv"
TIME = "time_embedding.linear_2"
DOWN_1, DOWN_2, BLOCK = "down_blocks.1", "down_blocks.2", "transformer_blocks"
PEFT = (".lora_A.weight", ".lora_B.weight")
TEXT = "encoder.layers.0.self_attn.q_proj"
MLP = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def base(tiny_sdxl: Path) -> DiffusionPipeline:
    return load_for_sampling(str(tiny_sdxl), None, torch.float32, "cpu")


def module(pipe: DiffusionPipeline, component: str, layer: str) -> torch.nn.Module:
    network = getattr(pipe, component)
    names = dict(network.named_modules())
    return names.get(layer) or names[f"text_model.{layer}"]


def update(pipe: DiffusionPipeline, component: str, layer: str, rank: int, alpha: float | None) -> Update:
    """Random factors for a layer, a function of its name alone."""
    weight = module(pipe, component, layer).weight
    generator = torch.Generator().manual_seed(sum(map(ord, component + layer)))
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)
    return 0.1 * down, 0.1 * up, alpha


def delta(factors: Update) -> Tensor:
    """alpha / rank B A, alpha = rank where there is none."""
    down, up, alpha = factors
    rank = len(down)
    product = torch.einsum("or,r...->o...", up.flatten(1), down)
    return (rank if alpha is None else alpha) / rank * product


def fused(base_folder: Path, file: Path) -> DiffusionPipeline:
    pipe = load_for_sampling(str(file), str(base_folder), torch.float32, "cpu")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def assert_applied(base: DiffusionPipeline, pipe: DiffusionPipeline, wanted: Mapping[tuple[str, str], Tensor]) -> None:
    """These layers moved by these amounts, and no weight of any other."""
    expected = {id(module(pipe, *where).weight): change for where, change in wanted.items()}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        initial, changed = dict(getattr(base, name).named_parameters()), dict(getattr(pipe, name).named_parameters())
        assert initial.keys() == changed.keys()
        for key, parameter in changed.items():
            change = expected.pop(id(parameter), torch.zeros(()))
            torch.testing.assert_close(parameter, initial[key] + change, atol=1e-6, rtol=1e-6)
    assert not expected


def kohya(component: str, layer: str) -> str:
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1_text_model", "text_encoder_2": "lora_te2_text_model"}
    return f"{prefix[component]}_{layer.replace('.', '_')}"


def write_kohya(file: Path, updates: Mapping[tuple[str, str], Update], names: Mapping[str, str] | None = None) -> Path:
    state = {}
    for (component, layer), (down, up, alpha) in updates.items():
        key = (names or {}).get(layer) or kohya(component, layer)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state |= {} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)}
    save_file(state, file)
    return file


def write_dotted(
    file: Path, updates: Mapping[tuple[str, str], Update], down: str, up: str, prefix: str = "{}.", **metadata: str
) -> Path:
    state = {}
    for (component, layer), (a, b, _) in updates.items():
        start = prefix.format(component) + ("text_model." if component != "unet" else "")
        state |= {f"{start}{layer}{down}": a, f"{start}{layer}{up}": b}
    save_file(state, file, metadata={"format": "pt", **metadata})
    return file


def some(pipe: DiffusionPipeline, alphas: bool = True) -> dict[tuple[str, str], Update]:
    """Updates of all kinds of layers, of different ranks and alphas, one of them without an alpha."""
    ranks = {
        ("unet", Q): 2,
        ("unet", OUT): 2,
        ("unet", CONV): 3,
        ("unet", SHORTCUT): 1,
        ("unet", DOWN): 2,
        ("unet", UP): 2,
    }
    ranks |= {("unet", TIME): 2, ("text_encoder", TEXT): 2, ("text_encoder", MLP): 4, ("text_encoder_2", TEXT): 2}
    result = {}
    for number, (where, rank) in enumerate(ranks.items()):
        result[where] = update(pipe, *where, rank, 0.5 + number if alphas and where != ("unet", OUT) else None)
    return result


def test_kohya_keys_with_diffusers_names(base, tiny_sdxl, tmp_path, caplog) -> None:
    updates = some(base)
    file = write_kohya(tmp_path / "k.safetensors", updates)
    with caplog.at_level(logging.INFO, "t2i_align"):
        pipe = fused(tiny_sdxl, file)
    said = caplog.text
    assert_applied(base, pipe, {where: delta(factors) for where, factors in updates.items()})
    assert "7 layers adapted in unet, 2 layers adapted in text_encoder, 1 layers adapted in text_encoder_2" in said


def test_kohya_keys_with_the_original_names_of_sdxl(base, tiny_sdxl, tmp_path) -> None:
    """Worked out by hand for two levels of one block each: input 0 conv_in, 1 down 0, 2 its downsampler, 3 down 1."""
    original = {
        Q: "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        OUT: "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_out_0",
        CONV: "lora_unet_output_blocks_1_0_in_layers_2",
        SHORTCUT: "lora_unet_output_blocks_2_0_skip_connection",
        DOWN: "lora_unet_input_blocks_2_0_op",
        UP: "lora_unet_output_blocks_1_2_conv",
        TIME: "lora_unet_time_embed_2",
    }
    updates = {where: factors for where, factors in some(base).items() if where[0] == "unet"}
    pipe = fused(tiny_sdxl, write_kohya(tmp_path / "k.safetensors", updates, original))
    assert_applied(base, pipe, {where: delta(factors) for where, factors in updates.items()})


def test_the_original_names_of_sdxl_at_its_published_size() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    names = LayerNames(unet)
    for original, name in {  # keys of published SDXL LoRAs
        "input_blocks_4_1_transformer_blocks_0_attn1_to_k": f"{DOWN_1}.attentions.0.{BLOCK}.0.attn1.to_k",
        "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": f"{DOWN_2}.attentions.1.{BLOCK}.9.ff.net.0.proj",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "output_blocks_0_1_transformer_blocks_3_attn2_to_out_0": f"up_blocks.0.attentions.0.{BLOCK}.3.attn2.to_out.0",
        "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "output_blocks_8_0_emb_layers_1": "up_blocks.2.resnets.2.time_emb_proj",
        "label_emb_0_2": "add_embedding.linear_2",
        "out_2": "conv_out",
    }.items():
        assert names.find(original) == name


@pytest.mark.parametrize(
    ("down", "up"),
    [
        PEFT,
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_dotted_spellings(base, tiny_sdxl, tmp_path, down: str, up: str) -> None:
    updates = some(base, alphas=False)
    pipe = fused(tiny_sdxl, write_dotted(tmp_path / "d.safetensors", updates, down, up))
    assert_applied(base, pipe, {where: delta(factors) for where, factors in updates.items()})


def test_the_first_spelling_of_diffusers(base, tiny_sdxl, tmp_path) -> None:
    """Processors, to_out without its index, the denoiser's names in text encoders, and no prefix of the denoiser."""
    where = {("unet", Q): None, ("unet", OUT): None, ("text_encoder", TEXT): None}
    updates = {place: update(base, *place, 2, None) for place in where}
    spelled = {
        ("unet", Q): "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        ("unet", OUT): "unet.mid_block.attentions.0.transformer_blocks.1.attn2.processor.to_out_lora",
        ("text_encoder", TEXT): "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora",
    }
    state = {}
    for place, (down, up, _) in updates.items():
        state |= {f"{spelled[place]}.down.weight": down, f"{spelled[place]}.up.weight": up}
    save_file(state, tmp_path / "old.safetensors")
    pipe = fused(tiny_sdxl, tmp_path / "old.safetensors")
    assert_applied(base, pipe, {place: delta(factors) for place, factors in updates.items()})


def test_diffusers_metadata_patterns_and_rslora(base, tiny_sdxl, tmp_path) -> None:
    updates = {("unet", Q): update(base, "unet", Q, 4, None), ("unet", OUT): update(base, "unet", OUT, 4, None)}
    metadata = {"unet.r": 4, "unet.lora_alpha": 6, "unet.alpha_pattern": {OUT: 1}, "unet.lora_dropout": 0.5}
    for extra, scales in (({}, (6 / 4, 1 / 4)), ({"unet.use_rslora": True}, (6 / 2, 1 / 2))):
        text = json.dumps({**metadata, **extra})
        file = write_dotted(tmp_path / "m.safetensors", updates, *PEFT, lora_adapter_metadata=text)
        pipe = fused(tiny_sdxl, file)
        changes = {place: scale * delta(updates[place]) for place, scale in zip(updates, scales, strict=True)}
        assert_applied(base, pipe, changes)


def test_dropout_of_the_metadata_is_off(base, tiny_sdxl, tmp_path) -> None:
    updates = {("unet", Q): update(base, "unet", Q, 4, None)}
    text = json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.lora_dropout": 0.9})
    file = write_dotted(tmp_path / "d.safetensors", updates, *PEFT, lora_adapter_metadata=text)
    pipe = load_for_sampling(str(file), str(tiny_sdxl), torch.float32, "cpu")
    layer = pipe.unet.get_submodule(Q)
    x = torch.ones(1, layer.in_features)
    assert not any(part.training for part in pipe.unet.modules())
    torch.testing.assert_close(
        layer(x), x @ (layer.base_layer.weight + delta(updates["unet", Q])).T, atol=1e-6, rtol=1e-6
    )


def test_peft_files_need_their_configuration(base, tiny_sdxl, tmp_path) -> None:
    updates = {("unet", Q): update(base, "unet", Q, 4, None)}
    file = write_dotted(tmp_path / "adapter_model.safetensors", updates, *PEFT, "base_model.model.")
    with pytest.raises(UserError, match="scale of a LoRA in a file beside it"):
        fused(tiny_sdxl, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 10}))
    for model in (file, tmp_path):
        assert_applied(base, fused(tiny_sdxl, model), {("unet", Q): 10 / 4 * delta(updates["unet", Q])})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(UserError, match="initialised by pissa_niter_4, which changes the base"):
        fused(tiny_sdxl, file)


@pytest.mark.parametrize("layer", [Q, CONV])
@pytest.mark.parametrize("spelling", ["kohya", "peft"])
def test_dora_by_its_definition(base, tiny_sdxl, tmp_path, layer: str, spelling: str) -> None:
    down, up, alpha = factors = update(base, "unet", layer, 2, 3.0)
    weight = module(base, "unet", layer).weight.detach()
    magnitude = torch.linspace(0.5, 2.0, len(weight))
    key = kohya("unet", layer) if spelling == "kohya" else f"unet.{layer}"
    names = (".lora_down.weight", ".lora_up.weight", ".dora_scale")
    names = names if spelling == "kohya" else (*PEFT, ".lora_magnitude_vector")
    shape = (-1, *[1] * (weight.dim() - 1)) if spelling == "kohya" else (-1,)
    state = dict(zip([key + name for name in names], (down, up, magnitude.reshape(shape)), strict=True))
    save_file({**state, f"{key}.alpha": torch.tensor(alpha)}, tmp_path / "dora.safetensors")
    moved = weight + delta(factors)
    norm = moved.flatten(1).norm(dim=1)
    expected = moved * (magnitude / norm).reshape(-1, *[1] * (weight.dim() - 1))
    pipe = fused(tiny_sdxl, tmp_path / "dora.safetensors")
    assert_applied(base, pipe, {("unet", layer): expected - weight})


def test_linear_layers_and_convolutions_of_one_pixel_are_the_same(base, tiny_sdxl, tmp_path) -> None:
    layer = "mid_block.attentions.0.proj_in"
    down, up, _ = update(base, "unet", layer, 2, None)
    file = write_kohya(
        tmp_path / "k.safetensors", {("unet", layer): (down[..., None, None], up[..., None, None], None)}
    )
    assert_applied(base, fused(tiny_sdxl, file), {("unet", layer): delta((down, up, None))})


Change = Callable[[dict[str, Tensor]], object]
KEY = kohya("unet", Q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({f"{KEY}.hada_w1_a": torch.ones(1)}), rf"holds LoHa, which cannot[\s\S]*{KEY}.hada_w1_a"),
        (lambda s: s.update({f"{KEY}.lokr_w1": torch.ones(1)}), "holds LoKr"),
        (lambda s: s.update({f"{KEY}.lora_mid.weight": torch.ones(1)}), "Tucker form"),
        (lambda s: s.update({f"{KEY}.diff": torch.ones(1)}), "whole differences"),
        (lambda s: s.update({"bundle_emb.word.clip_l": torch.ones(1)}), "textual inversion"),
        (
            lambda s: s.update({"unet.conv_in.extra": torch.ones(1)}),
            r"keys that nothing would read[\s\S]*conv_in.extra",
        ),
        (lambda s: s.update({"model.diffusion_model.out.2.bias": torch.ones(1)}), "whole checkpoint, not a LoRA"),
        (lambda s: s.update({f"{KEY}.alpha": torch.tensor(0.0)}), "alpha of 0"),
        (lambda s: s[f"{KEY}.lora_up.weight"].fill_(float("nan")), rf"not finite[\s\S]*{KEY}.lora_up.weight"),
        (lambda s: s.pop(f"{KEY}.lora_up.weight"), "half of an update"),
        (lambda s: s.update({f"{KEY}.lora_up.weight": torch.ones(16, 3)}), "do not fit each other"),
        (
            lambda s: s.update({f"unet.{Q}.lora_A.weight": torch.ones(2, 32)}),
            r"two updates of one layer[\s\S]*and unet",
        ),
        (lambda s: s.update({f"{KEY}.dora_scale": torch.ones(1, 32)}), "magnitudes over inputs"),
        (lambda s: s.update({"lora_te2_text_model_gone.alpha": torch.ones(())}), "text_encoder_2 does not have"),
        (lambda s: s.update({"lora_unet_gone.lora_down.weight": torch.ones(1)}), "a layer the denoiser does not have"),
    ],
)
def test_what_cannot_be_applied_is_named(base, tiny_sdxl, tmp_path, change: Change, message: str) -> None:
    file = write_kohya(tmp_path / "k.safetensors", {("unet", Q): update(base, "unet", Q, 2, 1.0)})
    fused(tiny_sdxl, file)  # as it is it is good
    down, up, alpha = update(base, "unet", Q, 2, 1.0)
    state = {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up, f"{KEY}.alpha": torch.tensor(alpha)}
    change(state)
    save_file(state, file)
    with pytest.raises(UserError, match=message):
        load_for_sampling(str(file), str(tiny_sdxl), torch.float32, "cpu")


def test_dora_for_some_layers_only(base, tiny_sdxl, tmp_path) -> None:
    updates = {("unet", layer): update(base, "unet", layer, 2, None) for layer in (Q, OUT)}
    file = write_dotted(tmp_path / "d.safetensors", updates, *PEFT)
    save_file({**load_file(file), f"unet.{Q}.lora_magnitude_vector": torch.ones(32)}, file)
    with pytest.raises(UserError, match="for some layers of a network and not for others"):
        fused(tiny_sdxl, file)


def test_two_alphas_that_differ(base, tiny_sdxl, tmp_path) -> None:
    updates = {("unet", Q): update(base, "unet", Q, 4, None)}
    text = json.dumps({"unet.r": 4, "unet.lora_alpha": 4})
    file = write_dotted(tmp_path / "d.safetensors", updates, *PEFT, lora_adapter_metadata=text)
    save_file({**load_file(file), f"unet.{Q}.alpha": torch.tensor(2.0)}, file, {"lora_adapter_metadata": text})
    with pytest.raises(UserError, match="two alphas for one layer"):
        fused(tiny_sdxl, file)


@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
def test_weights_of_whole_networks(tiny_sdxl: Path, file: str) -> None:
    with pytest.raises(UserError, match=r"whole checkpoint, not a LoRA|holds no LoRA weights"):
        load_for_sampling(str(tiny_sdxl / file), str(tiny_sdxl), torch.float32, "cpu")


def test_soups_of_other_peoples_loras(base, tiny_sdxl, tmp_path) -> None:
    """The scale of every layer is its own, whatever the spelling; kohya's names need the network and are refused."""
    a, b = ({("unet", Q): update(base, "unet", Q, rank, None)} for rank in (2, 3))
    text = json.dumps({"unet.r": 2, "unet.lora_alpha": 7, "unet.alpha_pattern": {Q: 5}})
    for name in "abk":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            json.dumps({"model": {"pretrained_model_name_or_path": str(tiny_sdxl)}})
        )
    first = write_dotted(tmp_path / "a/a.safetensors", a, *PEFT, lora_adapter_metadata=text)
    second = write_dotted(tmp_path / "b/b.safetensors", b, ".lora.down.weight", ".lora.up.weight")
    merged = merge_loras({str(first): 0.5, str(second): 2.0}, tmp_path / "soup")
    change = 0.5 * 5 / 2 * delta(a["unet", Q]) + 2.0 * delta(b["unet", Q])
    assert_applied(base, fused(tiny_sdxl, merged), {("unet", Q): change})
    with pytest.raises(UserError, match="cannot be merged by its factors"):
        merge_loras({str(first): 1.0, str(write_kohya(tmp_path / "k/k.safetensors", a)): 1.0}, tmp_path / "other")
