"""LoRA files as other tools write and read them: do they fit a denoiser, and putting them on."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from t2i_align.backbones.fit import summary
from t2i_align.backbones.loading import loading_errors, quiet_loading
from t2i_align.backbones.weight_files import read_header
from t2i_align.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "unet."
OTHER_BASE = "give the base model this LoRA was trained on"


def apply_lora(pipeline: DiffusionPipeline, file: Path) -> int:
    """Load a LoRA file (diffusers, peft or kohya keys) into a pipeline that has none.

    Returns:
        Number of layers that carry an adapter.

    Raises:
        UserError: a damaged file, no LoRA for the denoiser in it, or a LoRA of another architecture.
    """
    if not any("lora" in name for name in read_header(file).shapes):
        raise UserError(
            "The file holds no LoRA weights.", str(file), "give a LoRA file, or a UNet folder for full weights"
        )
    with quiet_loading(), loading_errors(str(file)):
        state = pipeline.lora_state_dict(file.parent, weight_name=file.name, unet_config=pipeline.unet.config)[0]
    layers = check_lora(pipeline.unet, unet_entries(state), file)
    with quiet_loading(), loading_errors(str(file)):
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return layers


def unet_entries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's part of a LoRA state in peft's spelling: ``<layer>.lora_A.weight`` and so on."""
    mine = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if mine and "lora_A" not in next(iter(mine)):
        mine = convert_unet_state_dict_to_peft(mine)
    return mine


def check_lora(unet: UNet2DConditionModel, entries: dict[str, Tensor], file: Path) -> int:
    """Compare every adapter with the layer it is for; returns how many layers there are.

    Raises:
        UserError: unknown layers or sizes that differ; names the key and both sizes.
    """
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    problems, adapted = [], set()
    for key, tensor in entries.items():
        name, _, part = key.partition(".lora_")
        adapted.add(name)
        if name not in layers:
            problems.append(f"{key} is for a layer the denoiser does not have")
            continue
        weight = layers[name].weight
        if part.startswith("A") and tensor.shape[1:] != weight.shape[1:]:
            problems.append(f"{key} takes {list(tensor.shape[1:])}, the layer takes {list(weight.shape[1:])}")
        if part.startswith("B") and tensor.shape[0] != weight.shape[0]:
            problems.append(f"{key} gives {tensor.shape[0]}, the layer gives {weight.shape[0]}")
    if problems:
        raise UserError("The LoRA belongs to another architecture.", f"{file}: {summary(problems)}", OTHER_BASE)
    if not adapted:
        raise UserError("The LoRA has no weights for the denoiser.", str(file), OTHER_BASE)
    return len(adapted)
