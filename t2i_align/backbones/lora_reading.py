"""What a LoRA file says, whoever wrote it: every key understood and every number finite, or refused by name.

    W + s B A,   s = alpha / rank, or alpha / sqrt(rank) where the metadata says rsLoRA
    m (W + s B A) / ||W + s B A||,   DoRA

Where no alpha is written s is 1, which is kohya's rule, diffusers' and peft's alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from t2i_align.backbones.fit import summary
from t2i_align.backbones.folders import read_json
from t2i_align.backbones.lora_keys import PEFT_PREFIX, Key, foreign_kind, take_apart
from t2i_align.backbones.weight_files import Header, read_header
from t2i_align.errors import UserError

METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration, inside the file
PEFT_CONFIG = "adapter_config.json"  # where peft keeps it, beside the file
WHOLE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
BARE = ("conv_in.weight", "unet.conv_in.weight", "decoder.conv_in.weight")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that leave another base under the adapter
MERGE_IT = "merge it into its base with the tool it comes from, and give the merged UNet folder"
Find = Callable[[str, str], str | None]  # component, layer as spelled in the file -> name of the layer


@dataclass(frozen=True)
class LowRank:
    """The update of one layer.

    Attributes:
        down: A ``[r, in]`` or ``[r, in, k, k]``.
        up: B ``[out, r]`` or ``[out, r, 1, 1]``.
        scale: s.
        magnitude: m ``[out]`` of DoRA, or None.
        spelled: key of A in the file, for messages.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None
    spelled: str

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


Lora = dict[str, dict[str, LowRank]]  # component -> layer -> update


def read_lora(file: Path, find: Find) -> Lora:
    """Read a LoRA file of any spelling, or of several.

    Args:
        file: safetensors.
        find: names the layer that a file's spelling means; None where the model has no such layer.

    Raises:
        UserError: damaged; no LoRA, or another kind of adapter; keys of layers that the model does not have, or of
            which nothing is known; two updates of a layer, or half of one; weights that are not finite; alphas of 0.
    """
    header = read_header(file)
    keys = _understood(file, header)
    layers, unknown = _by_layer(file, keys, find)
    if unknown:
        raise UserError(
            "The LoRA belongs to another architecture.",
            f"{file}: {summary(unknown)}",
            "give the base model this LoRA was trained on",
        )
    tensors = load_file(file)
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise UserError(
            "The LoRA holds numbers that are not finite.",
            f"{file}: {summary(broken)}",
            "its training failed; use another",
        )
    scales = _Scales(file, header, any(key.startswith(PEFT_PREFIX) for key in keys))
    result: Lora = {}
    for (component, layer), parts in layers.items():
        given = {part: tensors[key] for part, key in parts.items()}
        result.setdefault(component, {})[layer] = _low_rank(file, component, layer, parts, given, scales)
    return result


def _understood(file: Path, header: Header) -> dict[str, Key]:
    """Every key taken apart, or the reason why this is not a LoRA."""
    names = list(header.shapes)
    kinds = {kind: name for name in names if (kind := foreign_kind(name)) is not None}
    if kinds:
        raise UserError(
            f"The file holds {' and '.join(kinds)}, which cannot be applied as a LoRA.",
            f"{file}: {', '.join(kinds.values())}",
            MERGE_IT,
        )
    keys = {name: key for name in names if (key := take_apart(name)) is not None}
    if any(name.startswith(WHOLE) or name in BARE for name in names):
        raise UserError(
            "The file is a whole checkpoint, not a LoRA.",
            f"{file}: {len(names)} weights such as {names[0]}",
            "give its folder; a single file is converted once by from_single_file(FILE).save_pretrained(FOLDER)",
        )
    if not any(key.part in ("down", "up") for key in keys.values()):
        raise UserError(
            "The file holds no LoRA weights.", str(file), "give a LoRA file, or a UNet folder for full weights"
        )
    if odd := [name for name in names if name not in keys]:
        raise UserError(
            "The LoRA file has keys that nothing would read.",
            f"{file}: {summary(odd)}",
            "leave these weights out, if you know that they do nothing",
        )
    return keys


def _by_layer(
    file: Path, keys: Mapping[str, Key], find: Find
) -> tuple[dict[tuple[str, str], dict[str, str]], list[str]]:
    """(component, layer) -> part -> key in the file; and what the model has no place for, in words."""
    layers: dict[tuple[str, str], dict[str, str]] = {}
    unknown = []
    for name, key in keys.items():
        layer = find(key.component, key.layer)
        if layer is None:
            whose = "the denoiser" if key.component == "unet" else f"the model's {key.component}"
            unknown.append(f"{name} is for a layer {whose} does not have")
            continue
        parts = layers.setdefault((key.component, layer), {})
        if key.part in parts:
            raise UserError(
                "The LoRA file has two updates of one layer.",
                f"{file}: {parts[key.part]} and {name}",
                "give a file with one of the two spellings",
            )
        parts[key.part] = name
    return layers, unknown


def _low_rank(
    file: Path, component: str, layer: str, parts: Mapping[str, str], given: Mapping[str, Tensor], scales: _Scales
) -> LowRank:
    missing = [part for part in ("down", "up") if part not in given]
    if missing:
        raise UserError(
            "The LoRA file has half of an update.",
            f"{file}: {', '.join(parts.values())} without its {' and '.join(missing)} weight",
            "download or copy the file again",
        )
    down, up = given["down"], given["up"]
    if down.dim() < 2 or up.dim() < 2 or down.shape[0] != up.shape[1]:
        raise UserError(
            "The two halves of a LoRA's update do not fit each other.",
            f"{file}: {parts['down']} is {list(down.shape)}, {parts['up']} is {list(up.shape)}",
            "download or copy the file again",
        )
    alpha = float(given["alpha"]) if "alpha" in given else None
    scale = scales.of(component, layer, down.shape[0], alpha)
    if "magnitude" not in given and scales.says_dora(component):
        raise UserError(
            "The LoRA says it is a DoRA, but has no magnitudes.",
            f"{file}: none for {parts['down']}",
            "give the file as it was written",
        )
    magnitude = _magnitude(file, parts["magnitude"], given["magnitude"], up.shape[0]) if "magnitude" in given else None
    return LowRank(down, up, scale, magnitude, parts["down"])


def _magnitude(file: Path, key: str, magnitude: Tensor, outputs: int) -> Tensor:
    """``[out]``. LyCORIS writes rows as ``[out, 1, ...]``; peft ``[out]``, for convolutions ``[1, out, 1, 1]``."""
    columns = key.endswith("dora_scale") and magnitude.shape[:1] == (1,) and magnitude.numel() > 1
    if columns or magnitude.numel() != outputs:
        raise UserError(
            "DoRA magnitudes over inputs are not supported; they must be one per output of the layer.",
            f"{file}: {key} is {list(magnitude.shape)}, the layer has {outputs} outputs",
            MERGE_IT,
        )
    return magnitude.flatten()


class _Scales:
    """s of every layer, from alphas in the file and from peft's configuration in or beside it."""

    def __init__(self, file: Path, header: Header, of_peft: bool) -> None:
        self._file = file
        self._config: Mapping[str, Any] = {}
        if METADATA in header.metadata:
            self._config = _metadata(file, header.metadata[METADATA])
        elif of_peft:
            config = file.parent / PEFT_CONFIG
            if not config.is_file():
                raise UserError(
                    "peft keeps the scale of a LoRA in a file beside it, which is missing.",
                    f"{file} has peft's keys; no {config}",
                    f"copy {PEFT_CONFIG} too",
                )
            self._config = {f"unet.{name}": value for name, value in read_json(config).items()}
        self._check_initialisation()

    def says_dora(self, component: str) -> bool:
        """Whether the configuration promises magnitudes."""
        return bool(self._config.get(f"{component}.use_dora"))

    def of(self, component: str, layer: str, rank: int, alpha: float | None) -> float:
        """s of a layer, whose own alpha in the file is `alpha`."""
        stated = self._stated(component, layer)
        if alpha is not None and stated is not None and not math.isclose(alpha, stated, rel_tol=1e-3):
            raise UserError(
                "The LoRA has two alphas for one layer.",
                f"{self._file}: {layer} has {alpha:g} in a weight and {stated:g} in the metadata",
                "remove the one that is not meant",
            )
        alpha = stated if alpha is None else alpha
        alpha = float(rank) if alpha is None else alpha
        if alpha == 0.0:
            raise UserError(
                "The LoRA has an alpha of 0: some tools read it as no update, others as alpha = rank.",
                f"{self._file}: {layer}",
                "write the alpha that is meant into the file",
            )
        return alpha / math.sqrt(rank) if self._config.get(f"{component}.use_rslora") else alpha / rank

    def _stated(self, component: str, layer: str) -> float | None:
        pattern = self._config.get(f"{component}.alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern.keys(), layer), self._config.get(f"{component}.lora_alpha"))
        return None if alpha is None else float(alpha)

    def _check_initialisation(self) -> None:
        for name, value in self._config.items():
            if name.endswith("init_lora_weights") and isinstance(value, str) and value.startswith(CHANGES_BASE):
                raise UserError(
                    f"The LoRA was initialised by {value}, which changes the base it belongs to.",
                    f"{self._file}: {name}",
                    "convert it to a plain LoRA with peft (path_initial_model_for_weight_conversion)",
                )


def _metadata(file: Path, text: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError("A LoRA's metadata cannot be read.", f"{file}: {error}", "copy the file again") from error
    if not isinstance(config, dict):
        raise UserError("A LoRA's metadata cannot be read.", f"{file}: not a JSON object", "copy the file again")
    return config
