"""Attention kernels, their stated choice, and compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from t2i_align.backbones import attention
from t2i_align.backbones.attention import apply_attention, compile_blocks, head_widths
from t2i_align.errors import UserError
from tests.backbones.common import inputs, load

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def unet(tiny_sdxl: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")


@pytest.fixture
def switched_on(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record xformers being enabled, where no CUDA device is needed to say so."""
    calls: list[bool] = []
    monkeypatch.setattr(unet, "enable_xformers_memory_efficient_attention", lambda: calls.append(True))
    return calls


def test_xformers_without_cuda_is_refused(tiny_sdxl: Path) -> None:
    with pytest.raises(UserError, match="xformers cannot run") as error:
        load(tiny_sdxl, attention="xformers")
    assert "CUDA" in error.value.found
    assert "sdpa" in error.value.fix


def test_xformers_must_be_installed(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        apply_attention(unet, "xformers", CUDA, torch.float16, compiled=False)


def test_auto_says_why(tiny_sdxl: Path) -> None:
    assert load(tiny_sdxl).attention_choice.startswith("PyTorch sdpa, chosen by auto because xformers needs a CUDA")
    assert load(tiny_sdxl, attention="sdpa").attention_choice == "PyTorch sdpa, as configured"


@pytest.mark.parametrize(
    ("dtype", "compiled", "obstacle", "starts", "enabled"),
    [
        (torch.bfloat16, False, None, "xformers, chosen by auto because its kernels run here in bfloat16", True),
        (torch.bfloat16, True, None, "PyTorch sdpa, chosen by auto because torch.compile", False),
        (torch.float32, False, None, "PyTorch sdpa, chosen by auto because in float32", False),
        (torch.float16, False, "no kernel", "PyTorch sdpa, chosen by auto because no kernel", False),
    ],
)
def test_auto_on_cuda(
    unet: UNet2DConditionModel,
    switched_on: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    compiled: bool,
    obstacle: str | None,
    starts: str,
    enabled: bool,
) -> None:
    monkeypatch.setattr(attention, "xformers_obstacle", lambda *_: obstacle)
    assert apply_attention(unet, "auto", CUDA, dtype, compiled).startswith(starts)
    assert bool(switched_on) is enabled


def test_xformers_where_it_runs(
    unet: UNet2DConditionModel, switched_on: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "xformers_obstacle", lambda *_: None)
    assert apply_attention(unet, "xformers", CUDA, torch.float32, compiled=True) == "xformers, as configured"
    assert switched_on


def test_head_widths(unet: UNet2DConditionModel) -> None:
    assert head_widths(unet) == [8]


def test_compiled_blocks_give_the_same_predictions_and_names(tiny_sd: Path) -> None:
    backbone = load(tiny_sd)
    given, names = inputs(backbone), list(backbone.unet.state_dict())
    with torch.no_grad():
        plain = backbone.predict(**given)
        compile_blocks(backbone.unet, CPU, backend="aot_eager")
        torch.testing.assert_close(backbone.predict(**given), plain)
    assert list(backbone.unet.state_dict()) == names


def test_compile_option_compiles_policy_and_copy(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", lambda self, **_: compiled.append(True))
    load(tiny_sd, compile=True)
    assert len(compiled) == 1
    load(tiny_sd, compile=True, train="full")
    assert len(compiled) == 3


def test_compiling_on_a_cpu_needs_a_compiler(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        compile_blocks(unet, CPU)


@pytest.mark.parametrize("request_", ["sdpa_efficient", "sdpa_cudnn"])
def test_a_kernel_that_cannot_run_is_refused(unet: UNet2DConditionModel, request_: attention.Request) -> None:
    with pytest.raises(UserError, match=f"{request_} cannot run here") as caught:
        apply_attention(unet, request_, CPU, torch.float32, compiled=False)
    assert "in float32 on cpu" in caught.value.found


def test_kernels_agree(tiny_sdxl: Path) -> None:
    """Prediction and gradient of every kernel that runs on a CPU, against attention written out."""
    results = {}
    for request_ in ("sdpa", "sdpa_flash", "sdpa_math", None):
        backbone = load(tiny_sdxl, attention=request_ or "sdpa")
        if request_ is None:
            backbone.unet.set_attn_processor(AttnProcessor())
        else:
            assert backbone.attention_choice == f"PyTorch {request_}, as configured"
        arguments = inputs(backbone)
        arguments["noisy"].requires_grad_()
        prediction = backbone.predict(**arguments)
        prediction.square().sum().backward()
        results[request_] = prediction.detach(), arguments["noisy"].grad
    for found in results.values():
        for ours, written_out in zip(found, results[None], strict=True):
            torch.testing.assert_close(ours, written_out, rtol=1e-4, atol=1e-5)
    assert torch.equal(results["sdpa"][0], results["sdpa_flash"][0])  # what PyTorch picks on a CPU
