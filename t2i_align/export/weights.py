"""Weights in the formats other tools read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from reward_models.files import complete_file
from t2i_align.backbones.adapters import ADAPTER, lora_alpha
from t2i_align.backbones.base import Backbone
from t2i_align.backbones.loading import quiet_loading
from t2i_align.config.schema import LoraConfig
from t2i_align.errors import UserError

KOHYA_FILE = "kohya_lora_weights.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def lora_entries(backbone: Backbone, weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Trained adapter weights in peft's spelling, ``<layer>.lora_A.weight``, on the CPU in `dtype`."""
    entries = get_peft_model_state_dict(backbone.unet, state_dict=dict(weights), adapter_name=ADAPTER)
    return {name: _portable(tensor, dtype) for name, tensor in entries.items()}


def save_lora(backbone: Backbone, entries: Mapping[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors``.

    The file's metadata carries rank, alpha and DoRA, without which a reader would take alpha for the rank. Only what
    every peft version knows is written.
    """
    alpha = lora_alpha(config)
    metadata: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": list(config.target_modules),
        "use_dora": config.use_dora,
    }
    backbone.pipeline_class.save_lora_weights(
        folder, unet_lora_layers=dict(entries), unet_lora_adapter_metadata=metadata, safe_serialization=True
    )


def save_kohya(backbone: Backbone, entries: Mapping[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """Write the same LoRA under kohya's keys, ``lora_unet_<layer>.lora_down.weight``, for other user interfaces.

    Raises:
        UserError: DoRA, whose magnitudes diffusers drops from such files; or layers whose names do not survive the
            spelling with underscores.
    """
    if config.use_dora:
        raise UserError(
            "export.kohya cannot carry DoRA: diffusers drops its magnitudes from kohya files.",
            "model.lora.use_dora: true",
            "set export.kohya: false; pytorch_lora_weights.safetensors was written and is complete",
        )
    names = {"A": "lora_down", "B": "lora_up"}
    state: dict[str, Tensor] = {}
    for name, tensor in entries.items():
        layer, _, part = name.partition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{key}.{names[part[0]]}.weight"] = tensor
        state[f"{key}.alpha"] = torch.tensor(float(lora_alpha(config)))
    with quiet_loading():
        read_back = backbone.pipeline_class.lora_state_dict(dict(state), unet_config=backbone.unet.config)[0]
    lost = sorted(set(entries) - set(_peft_keys(read_back)))
    if lost:
        raise UserError(
            "Some layers have no name that kohya's spelling can carry.",
            ", ".join(lost[:3]),
            "set export.kohya: false, or leave these layers out of model.lora.target_modules",
        )
    with complete_file(folder / KOHYA_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _peft_keys(state: Mapping[str, Tensor]) -> list[str]:
    """The denoiser's keys as diffusers reads them, in peft's spelling: ``<layer>.lora_A.weight``."""
    return list(convert_unet_state_dict_to_peft({name.removeprefix("unet."): state[name] for name in state}))


def save_unet(backbone: Backbone, weights: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write ``unet/`` as `UNet2DConditionModel.save_pretrained` does, without a second copy on the device."""
    state = {name: _portable(tensor, dtype) for name, tensor in {**backbone.unet.state_dict(), **weights}.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(backbone.unet.config)
    unet.load_state_dict(state, assign=True)
    with quiet_loading():
        unet.save_pretrained(folder / "unet", safe_serialization=True)


def save_user_adapter(backbone: Backbone, weights: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write the user adapter of the denoiser, ``personal_config.json`` and ``personal_weights.safetensors``."""
    from t2i_align.personal.adapter import SUBMODULE
    from t2i_align.personal.files import save_personal

    own = {name.removeprefix(f"{SUBMODULE}."): tensor for name, tensor in weights.items()}
    save_personal(getattr(backbone.unet, SUBMODULE), folder, dtype=dtype, weights=own)


def _portable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
