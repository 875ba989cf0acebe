"""Reward soups: one LoRA per reward, merged with weights when pictures are wanted (arXiv 2310.11564, 2306.04488).

    W = W_0 + sum_i w_i (alpha_i / r_i) B_i A_i

Merging is exact: the factors are stacked, [A_1; A_2; ...] and [w_1 s_1 B_1, w_2 s_2 B_2, ...], so the merged rank is
the sum of the ranks. Averaging A and B apart would multiply every B with every A.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from reward_models.files import complete_file
from t2i_align.backbones import identify_model
from t2i_align.backbones.lora_files import LORA_FILE
from t2i_align.backbones.lora_keys import dotted_name
from t2i_align.backbones.lora_reading import read_lora
from t2i_align.errors import UserError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
UNET = "unet."
Factors = dict[str, tuple[Tensor, Tensor]]  # layer -> A [r, ...] and B [out, r, ...] with the scale inside


def merge_loras(models: Mapping[str, float], folder: str | Path) -> Path:
    """Write the weighted sum of LoRAs as one LoRA folder; returns it.

    Args:
        models: run folder, export folder or LoRA file -> weight; weights need not sum to 1.
        folder: new, or empty.

    Raises:
        UserError: fewer than two models, something that is no LoRA of a denoiser, or different bases.
    """
    if len(models) < 2:
        raise UserError("A soup needs two LoRAs.", f"{len(models)} given", "name them: RUN=WEIGHT RUN=WEIGHT")
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise UserError("The output folder is not empty.", str(target), "choose another")
    bases, parts = [], []
    for model, weight in models.items():
        source = identify_model(model)
        if source.kind != "lora" or source.weights is None:
            raise UserError("Only LoRAs can be merged with weights.", f"{model}: {source.description}", "train: lora")
        bases.append(source.base)
        parts.append((_factors(source.weights), weight))
    if len({base.pretrained_model_name_or_path for base in bases}) > 1:
        names = ", ".join(dict.fromkeys(base.pretrained_model_name_or_path for base in bases))
        raise UserError("The LoRAs were trained on different models.", names, "merge LoRAs of one base")
    target.mkdir(parents=True, exist_ok=True)
    merged = {f"{UNET}{name}": tensor.contiguous() for name, tensor in stack(parts).items()}
    with complete_file(target / LORA_FILE) as temporary:
        save_file(merged, temporary, metadata={"format": "pt"})
    written = {
        "model": bases[0].model_dump(mode="json"),
        "soup": {str(name): weight for name, weight in models.items()},
    }
    (target / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return target


def stack(parts: list[tuple[Factors, float]]) -> dict[str, Tensor]:
    """``<layer>.lora_A.weight`` and ``.lora_B.weight`` of the weighted sum.

    A layer that one of the LoRAs leaves alone gets zeros for its share.
    """
    shapes = {name: factors for part, _ in parts for name, factors in part.items()}
    merged = {}
    for name, (like_down, like_up) in shapes.items():
        downs, ups = [], []
        for part, weight in parts:
            rank = max(down.shape[0] for down, _ in part.values())
            empty = like_down.new_zeros(rank, *like_down.shape[1:]), _zeros(like_up, rank)
            down, up = part.get(name, empty)
            downs.append(down)
            ups.append(weight * up)
        merged[f"{name}{DOWN}"], merged[f"{name}{UP}"] = torch.cat(downs), torch.cat(ups, dim=1)
    return merged


def _zeros(like: Tensor, rank: int) -> Tensor:
    return like.new_zeros(like.shape[0], rank, *like.shape[2:])


def _factors(file: Path) -> Factors:
    """A and scaled B per layer of a LoRA file.

    Raises:
        UserError: see `read_lora`; or layers of a text encoder, kohya's names, whose dots only the network knows, or
            magnitudes (DoRA), which are not linear in their weights.
    """
    lora = read_lora(file, lambda component, layer: dotted_name(layer) or layer)
    odd = [
        layer.spelled
        for component, layers in lora.items()
        for name, layer in layers.items()
        if component != "unet" or dotted_name(name) is None or layer.magnitude is not None
    ]
    if odd:
        raise UserError(
            "This LoRA cannot be merged by its factors.",
            f"{file}: {odd[0]}",
            "give LoRAs of the denoiser with diffusers' or peft's keys, such as exports of t2i-align, without DoRA",
        )
    return {name: (layer.down.float(), layer.up.float() * layer.scale) for name, layer in sorted(lora["unet"].items())}
