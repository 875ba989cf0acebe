"""How LoRA files spell their keys: diffusers (three generations), peft and kohya, resolved to layers that exist.

A key is <component><layer><part>. kohya writes layers with underscores for dots, ``lora_unet_mid_block_attentions_0``,
which no rule can undo; so names are looked up among those of the network itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

Part = Literal["down", "up", "alpha", "magnitude"]

# Endings of keys; lora_A may be followed by the name of the adapter that peft kept.
PARTS: dict[Part, re.Pattern[str]] = {
    "down": re.compile(r"(\.lora_A(\.[\w-]+)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.(down|lora_A))\.weight$"),
    "up": re.compile(r"(\.lora_B(\.[\w-]+)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.(up|lora_B))\.weight$"),
    "alpha": re.compile(r"([._]lora|\.lora_linear_layer)?\.alpha$"),
    "magnitude": re.compile(r"(\.dora_scale|[._]lora_magnitude_vector(\.[\w-]+)?)$"),
}
# What else calls itself LoRA, by what only its keys have; none of it is W + s B A.
FOREIGN: dict[str, re.Pattern[str]] = {
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "OFT or BOFT": re.compile(r"\.(oft_|boft_|oft_blocks|oft_diag)"),
    "IA3": re.compile(r"\.on_input$|\.ia3_l"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "VeRA": re.compile(r"\.vera_lambda"),
    "LoCon in Tucker form (lora_mid)": re.compile(r"\.lora_mid\.weight$"),
    "LoRA with a bias": re.compile(r"\.lora_(B|up)\b.*\.bias$"),
    "whole differences of weights (diff)": re.compile(r"\.(diff|diff_b|w_norm|b_norm|set_weight)$"),
    "Control-LoRA": re.compile(r"^lora_controlnet$"),
    "textual inversion": re.compile(r"^(emb_params|clip_l|clip_g|string_to_\w+|bundle_emb\..*)$"),
}
COMPONENTS = {  # prefix -> component; the first that fits
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
PEFT_PREFIX = "base_model.model."  # of peft's own files, of one network each
TEXT_MODEL = "text_model."  # transformers 5 dropped it from CLIPTextModel and kept it in CLIPTextModelWithProjection
OLD_ENDINGS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders


@dataclass(frozen=True)
class Key:
    """A key taken apart: the component it names, the layer as spelled in the file, and what it is of that layer."""

    component: str
    layer: str
    part: Part


def take_apart(key: str) -> Key | None:
    """The three parts of a key; None if it is not one of a LoRA."""
    for part, pattern in PARTS.items():
        if match := pattern.search(key):
            component, layer = _component(key[: match.start()])
            return Key(component, layer, part)
    return None


def dotted_name(spelled: str) -> str | None:
    """The name of a denoiser's layer where the spelling says it without a network at hand; None for kohya's."""
    name = spelled.replace(".processor.", ".")
    name += ".0" if name.endswith(".to_out") else ""
    return name if "." in name or name in ("conv_in", "conv_out") else None


def foreign_kind(key: str) -> str | None:
    """Name of the kind of adapter that only has such keys, or None."""
    return next((kind for kind, pattern in FOREIGN.items() if pattern.search(key)), None)


def _component(rest: str) -> tuple[str, str]:
    rest = rest.removeprefix(PEFT_PREFIX)
    for prefix, component in COMPONENTS.items():
        if rest.startswith(prefix):
            return component, rest.removeprefix(prefix).removeprefix(PEFT_PREFIX)
    return "unet", rest  # the first diffusers files, and peft's, hold the denoiser alone


class LayerNames:
    """The layers of one network that can carry an adapter, under every name that files give them."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = {
            name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
        }
        self._names: dict[str, str] = {}
        for name in self.layers:
            for spelled in {name, name.removeprefix(TEXT_MODEL), TEXT_MODEL + name.removeprefix(TEXT_MODEL)}:
                self._names.setdefault(spelled.replace(".", "_"), name)
        if hasattr(network, "down_blocks"):
            for original, name in original_names(network, self.layers):
                self._names.setdefault(original.replace(".", "_"), name)

    def find(self, spelled: str) -> str | None:
        """The layer's name in the network, or None if there is none of this name."""
        if spelled in self.layers:
            return spelled
        underscored = spelled.replace(".processor", "").replace(".", "_")
        for candidate in (underscored, f"{underscored}_0", _old_text_name(underscored)):  # to_out is to_out.0 since
            if candidate in self._names:
                return self._names[candidate]
        return None


def _old_text_name(underscored: str) -> str:
    """The first diffusers files call a text encoder's projections as those of the denoiser."""
    for old, new in OLD_ENDINGS.items():
        if underscored.endswith(f"self_attn_{old}"):
            return underscored.removesuffix(old) + new
    return underscored


def original_names(unet: nn.Module, layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name in the first Stable Diffusion code, name in diffusers) of a UNet's layers; kohya's SDXL has the former."""
    blocks = dict(_original_blocks(unet))
    inner = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    for name in layers:
        for block, original in blocks.items():
            if name == block:
                yield original, name
            elif name.startswith(f"{block}."):
                rest = name.removeprefix(f"{block}.")
                yield f"{original}.{inner.get(rest, rest)}", name


def _original_blocks(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """(diffusers name, original name) of the top layers, residual blocks, transformers and changes of resolution."""
    yield from {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }.items()
    count = 1
    for number, block in enumerate(unet.down_blocks):
        for index in range(len(block.resnets)):
            yield f"down_blocks.{number}.resnets.{index}", f"input_blocks.{count}.0"
            yield f"down_blocks.{number}.attentions.{index}", f"input_blocks.{count}.1"
            count += 1
        if getattr(block, "downsamplers", None):
            yield f"down_blocks.{number}.downsamplers.0.conv", f"input_blocks.{count}.0.op"
            count += 1
    count = 0
    for number, block in enumerate(unet.up_blocks):
        for index in range(len(block.resnets)):
            yield f"up_blocks.{number}.resnets.{index}", f"output_blocks.{count}.0"
            yield f"up_blocks.{number}.attentions.{index}", f"output_blocks.{count}.1"
            count += 1
        if getattr(block, "upsamplers", None):
            after = 2 if getattr(block, "attentions", None) else 1
            yield f"up_blocks.{number}.upsamplers.0.conv", f"output_blocks.{count - 1}.{after}.conv"
