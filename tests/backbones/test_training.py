"""Adapters, full training, and the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from t2i_align.backbones import load_trainable, trainable_state
from t2i_align.errors import UserError
from tests.backbones.common import inputs, load, perturb, reference_prediction

SETTINGS = [
    {"train": "lora"},
    {"train": "lora", "lora": {"use_dora": True, "alpha": 4.0}},
    {"train": "lora", "lora": {"target_modules": ["to_q", "conv1", "ff.net.2"], "use_dora": True}},
    {"train": "lora", "reference": "frozen_copy"},
    {"train": "full"},
]


@pytest.mark.parametrize("layout", ["tiny_sdxl", "tiny_sd_v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", SETTINGS)
def test_policy_starts_exactly_at_the_reference(
    layout: str, dtype: torch.dtype, model: dict, request: pytest.FixtureRequest
) -> None:
    backbone = load(request.getfixturevalue(layout), dtype, **model)
    given = inputs(backbone)
    start = reference_prediction(backbone, given)
    difference = (backbone.predict(**given) - start).abs().max()
    assert difference == 0 if dtype == torch.float32 else difference < 1e-2
    perturb(backbone)
    assert (backbone.predict(**given) - start).abs().max() > 1e-3
    assert torch.equal(reference_prediction(backbone, given), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained(tiny_sdxl: Path, dtype: torch.dtype) -> None:
    lora = load(tiny_sdxl, dtype, lora={"rank": 4, "target_modules": ["to_q"]})
    names = trainable_state(lora)
    assert {name.split(".")[-3] for name in names} == {"lora_A", "lora_B"}
    assert all("to_q" in name for name in names)
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}
    assert lora.unet.conv_in.weight.dtype == dtype
    full = load(tiny_sdxl, dtype, train="full")
    assert len(full.trainable_parameters()) == len(list(full.unet.parameters()))
    assert {parameter.dtype for parameter in full.trainable_parameters()} == {torch.float32}
    assert not any(p.requires_grad for module in (full.vae, *full.text_encoders) for p in module.parameters())


def test_frozen_copy_stores_matrices_in_half_precision_only(tiny_sd: Path) -> None:
    backbone = load(tiny_sd, torch.bfloat16, train="full")
    with backbone._reference.network() as clone:
        assert clone.conv_in.weight.dtype == torch.bfloat16
        assert clone.conv_norm_out.weight.dtype == torch.float32
        assert not clone.training
        assert not backbone.predict(**inputs(backbone)).requires_grad
        assert not {id(one) for one in clone.parameters()} & {id(one) for one in backbone.trainable_parameters()}
    backbone.predict(**inputs(backbone)).sum().backward()
    assert all(parameter.grad is None for parameter in clone.parameters())


def test_alpha_scales_the_update(tiny_sd: Path) -> None:
    """With B and A fixed, the first-order effect of alpha / rank is linear."""
    effects = []
    for alpha in (None, 32.0):  # rank 16: scales 1 and 2
        backbone = load(tiny_sd, lora={"alpha": alpha})
        given = inputs(backbone)
        perturb(backbone, 1e-4)
        layer = backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        x = torch.ones(1, 32)
        effects.append(layer(x) - layer.base_layer(x))
        assert (backbone.predict(**given) - reference_prediction(backbone, given)).abs().max() > 0
    torch.testing.assert_close(effects[1], 2 * effects[0], rtol=1e-3, atol=1e-7)


def test_a_reference_pass_leaves_the_gradient_alone(tiny_sdxl: Path) -> None:
    def gradients(interleave: bool) -> list[torch.Tensor]:
        backbone = load(tiny_sdxl, gradient_checkpointing=True)
        perturb(backbone)
        given, modes = inputs(backbone), [module.training for module in backbone.unet.modules()]
        loss = backbone.predict(**given).square().mean()
        if interleave:
            reference_prediction(backbone, given)
        loss.backward()
        assert [module.training for module in backbone.unet.modules()] == modes
        return [parameter.grad for parameter in backbone.trainable_parameters()]

    plain, interleaved = gradients(False), gradients(True)
    assert all(grad.abs().max() > 0 for grad in plain)
    assert all(torch.equal(one, two) for one, two in zip(plain, interleaved, strict=True))


def test_gradient_checkpointing_changes_memory_not_gradients(tiny_sd: Path) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        backbone = load(tiny_sd, train="full", gradient_checkpointing=checkpointing)
        assert backbone.unet.is_gradient_checkpointing is checkpointing
        backbone.predict(**inputs(backbone)).square().mean().backward()
        return [parameter.grad for parameter in backbone.trainable_parameters()]

    for one, two in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, two)


def test_dropout_acts_on_the_policy_only(tiny_sd: Path) -> None:
    backbone = load(tiny_sd, lora={"dropout": 0.5})
    perturb(backbone)
    given = inputs(backbone)
    assert not torch.equal(backbone.predict(**given), backbone.predict(**given))
    assert torch.equal(reference_prediction(backbone, given), reference_prediction(backbone, given))


def test_accelerate_wraps_the_policy(tiny_sdxl: Path) -> None:
    backbone = load(tiny_sdxl, torch.bfloat16)
    given = inputs(backbone)
    before = backbone.predict(**given)
    backbone.policy = Accelerator(cpu=True, mixed_precision="bf16").prepare(backbone.unet)
    assert torch.equal(backbone.predict(**given), before)
    assert torch.equal(reference_prediction(backbone, given), before)


def test_reference_can_be_left_out(tiny_sd: Path) -> None:
    backbone = load(tiny_sd, train="full", needs_reference=False)
    with pytest.raises(RuntimeError, match="without a reference"), backbone.reference():
        pass


def test_adapter_off_needs_adapters(tiny_sd: Path) -> None:
    with pytest.raises(UserError, match="adapter_off needs adapters"):
        load(tiny_sd, train="full", reference="adapter_off")


def test_unknown_target_module_names_what_exists(tiny_sd: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tiny_sd, lora={"target_modules": ["to_q", "to_qq", "norm1"]})
    assert error.value.found == "to_qq, norm1"
    assert "did you mean to_q" in error.value.fix
    assert "to_out.0" in error.value.fix


@pytest.mark.parametrize("model", [{"train": "lora"}, {"train": "full"}])
def test_trained_weights_come_back(tiny_sd: Path, tmp_path: Path, model: dict) -> None:
    trained = load(tiny_sd, **model)
    perturb(trained)
    save_file({name: p.detach() for name, p in trainable_state(trained).items()}, tmp_path / "trainable.safetensors")
    restored = load(tiny_sd, **model)
    load_trainable(restored, tmp_path)
    given = inputs(trained)
    assert torch.equal(restored.predict(**given), trained.predict(**given))


def test_trained_weights_of_another_architecture_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    path = tmp_path / "trainable.safetensors"
    save_file({name: p.detach() for name, p in trainable_state(load(tiny_sd)).items()}, path)
    with pytest.raises(UserError, match=r"lora_A.default.weight is \[16, 16\], expected \[8, 16\]"):
        load_trainable(load(tiny_sd, lora={"rank": 8}), path)
    with pytest.raises(UserError, match="is unexpected"):
        load_trainable(load(tiny_sd, lora={"target_modules": ["to_q"]}), path)
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)
    with pytest.raises(UserError, match="is missing"):
        load_trainable(load(tiny_sd), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        load_trainable(load(tiny_sd), path)


def test_encoders_come_for_as_long_as_they_are_needed(tiny_sdxl: Path) -> None:
    backbone = load(tiny_sdxl)
    backbone.encoders_to("meta")  # as if the device were another than where they rest
    backbone.device = torch.device("meta")
    moves = []
    backbone.encoders_to = moves.append  # type: ignore[method-assign]
    with backbone.encoders_here():
        assert moves == []
    backbone.device = torch.device("cpu")
    with backbone.encoders_here():
        assert moves == [torch.device("cpu")]
    assert moves == [torch.device("cpu"), torch.device("meta")]
