"""What is trained: LoRA on a frozen denoiser, or the whole of it in float32."""

from __future__ import annotations

import difflib

import peft
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn

from t2i_align.config.schema import LoraConfig
from t2i_align.errors import UserError

ADAPTER = "default"


def add_lora(unet: UNet2DConditionModel, config: LoraConfig, dtype: torch.dtype) -> None:
    """Freeze `unet` and add trainable adapters: ``W x + alpha / rank * B A x``, with B = 0 at the start.

    Adapter weights are float32 whatever the base is stored in: half-precision master weights lose small updates.
    `dtype` is the compute precision.

    Raises:
        UserError: a target module that matches no linear or convolution layer.
    """
    check_targets(unet, config.target_modules)
    unet.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=lora_alpha(config),
            target_modules=list(config.target_modules),
            lora_dropout=config.dropout,
            use_dora=config.use_dora,
            init_lora_weights=True,
        ),
        ADAPTER,
    )
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if config.use_dora:
        _measure_magnitudes(unet, dtype)


def lora_alpha(config: LoraConfig) -> float:
    """The scale numerator; null in the configuration means the rank, hence scale 1."""
    return config.rank if config.alpha is None else config.alpha


def train_everything(unet: UNet2DConditionModel) -> None:
    """Make every weight trainable, as a float32 master copy."""
    for parameter in unet.parameters():
        parameter.data = parameter.data.float()
    unet.requires_grad_(True)


def check_targets(unet: nn.Module, targets: list[str]) -> None:
    """Every target must be the ending of at least one layer that can carry an adapter.

    Raises:
        UserError: names the unmatched targets and the endings that exist.
    """
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unmatched = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in layers)]
    if not unmatched:
        return
    endings = sorted({_ending(name) for name in layers})
    close = [match for target in unmatched for match in difflib.get_close_matches(target, endings, n=1)]
    raise UserError(
        "model.lora.target_modules names a module that the denoiser does not have.",
        ", ".join(unmatched),
        (f"did you mean {', '.join(close)}? " if close else "") + f"layers end in: {', '.join(endings)}",
    )


@torch.no_grad()
def _measure_magnitudes(unet: nn.Module, dtype: torch.dtype) -> None:
    """Set DoRA's magnitudes m to the norms ||W|| that its forward pass divides by, so that m / ||W|| is exactly 1.

    peft measures them in the precision of the base; its forward pass measures in another (float32 for linear layers,
    the base's under autocast for convolutions), and the policy would start beside its own reference.
    """
    for layer in unet.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[ADAPTER]
            weight = layer.get_base_layer().weight
            weight = weight.float() if isinstance(layer.get_base_layer(), nn.Linear) else weight
            with torch.autocast(weight.device.type, dtype=dtype, enabled=dtype != torch.float32):
                norm = magnitude.get_weight_norm(weight, torch.zeros_like(weight), 1.0)
            magnitude.weight.data = norm.float()


def _ending(name: str) -> str:
    """The shortest telling ending: ``to_q``, ``to_out.0``, ``net.0.proj`` -> ``proj``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]
