"""Which attention kernels the denoiser uses, and why; and regional compilation."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from t2i_align.errors import UserError

Request = Literal["auto", "xformers", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"]
KERNELS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}


class PinnedAttention(AttnProcessor2_0):
    """PyTorch's attention by one kernel and no other; also in a recomputed forward pass.

    Args:
        kernel: the only one allowed; without one for its inputs a call is an error.
    """

    def __init__(self, kernel: SDPBackend) -> None:
        super().__init__()
        self.kernel = kernel

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `AttnProcessor2_0`."""
        with sdpa_kernel(self.kernel):
            return super().__call__(*args, **kwargs)


def apply_attention(
    unet: UNet2DConditionModel, request: Request, device: torch.device, dtype: torch.dtype, compiled: bool
) -> str:
    """Set the attention kernels of `unet` and say in one sentence which were chosen and why.

    PyTorch's scaled_dot_product_attention (sdpa) is what diffusers uses by itself. ``auto`` measures nothing: it takes
    xformers where its kernels run in half precision on CUDA and nothing is compiled, and sdpa otherwise.

    ``sdpa`` leaves the kernel to PyTorch, call by call; ``sdpa_flash`` and the like allow one kernel only.

    Raises:
        UserError: xformers or a kernel was asked for and cannot run here.
    """
    if request in KERNELS:
        return _pin(unet, request, device, dtype)
    obstacle = xformers_obstacle(unet, device, dtype) if request != "sdpa" else None
    if request == "xformers":
        if obstacle is not None:
            raise UserError(
                "model.attention: xformers cannot run here.",
                obstacle,
                "set model.attention: sdpa (or auto, which explains its choice)",
            )
        unet.enable_xformers_memory_efficient_attention()
        return "xformers, as configured"
    if request == "sdpa":
        return "PyTorch sdpa, as configured"
    if obstacle is None and dtype == torch.float32:
        obstacle = "in float32 xformers has no advantage"
    if obstacle is None and compiled:
        obstacle = "torch.compile fuses around sdpa but not around xformers kernels"
    if obstacle is not None:
        return f"PyTorch sdpa, chosen by auto because {obstacle}"
    unet.enable_xformers_memory_efficient_attention()
    return f"xformers, chosen by auto because its kernels run here in {_short(dtype)}"


def _pin(unet: UNet2DConditionModel, request: str, device: torch.device, dtype: torch.dtype) -> str:
    """Allow one kernel of PyTorch's attention, once it has shown that it serves this network here."""
    obstacle = kernel_obstacle(unet, request, device, dtype)
    if obstacle is not None:
        raise UserError(
            f"model.attention: {request} cannot run here.", obstacle, "set model.attention: sdpa, which picks by itself"
        )
    unet.set_attn_processor(PinnedAttention(KERNELS[request]))
    return f"PyTorch {request}, as configured"


def kernel_obstacle(unet: UNet2DConditionModel, request: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel of PyTorch's attention cannot serve this network on this device in this dtype, or None if it can."""
    for width in head_widths(unet):
        query = torch.zeros(1, 1, 16, width, device=device, dtype=dtype, requires_grad=True)
        try:
            with warnings.catch_warnings(), sdpa_kernel(KERNELS[request]):
                warnings.simplefilter("ignore")  # one for every kernel that does not fit; the error says enough
                scaled_dot_product_attention(query, query, query).sum().backward()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            return f"heads of {width} channels in {_short(dtype)} on {device.type}: {reason}"
    return None


def xformers_obstacle(unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why xformers cannot serve this network on this device in this dtype, or None if it can."""
    if device.type != "cuda":
        return f"xformers needs a CUDA device and the device is {device.type}"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install t2i_align[xformers])"
    try:
        from xformers.ops import memory_efficient_attention

        for width in head_widths(unet):
            query = torch.zeros(1, 16, 1, width, device=device, dtype=dtype, requires_grad=True)
            memory_efficient_attention(query, query, query).sum().backward()
    except (NotImplementedError, RuntimeError, ValueError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()
        return f"xformers has no kernel for {_short(dtype)} here ({reason[0] if reason else type(error).__name__})"
    return None


def head_widths(unet: UNet2DConditionModel) -> list[int]:
    """Channels per attention head that occur in the network."""
    return sorted({module.inner_dim // module.heads for module in unet.modules() if isinstance(module, Attention)})


def compile_blocks(unet: UNet2DConditionModel, device: torch.device, backend: str = "inductor") -> None:
    """Compile the repeated transformer blocks in place (regional compilation: minutes less than the whole network).

    Parameter names do not change. The first step of each shape, and the first reference pass, compile.

    Raises:
        UserError: on a CPU without a C++ compiler, which the inductor backend calls.
    """
    candidates = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if backend == "inductor" and device.type == "cpu" and not any(map(shutil.which, candidates)):
        raise UserError(
            "model.compile needs a C++ compiler on the CPU.",
            "neither g++ nor clang++ on the PATH",
            "install one, or set model.compile: false",
        )
    unet.compile_repeated_blocks(backend=backend)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
