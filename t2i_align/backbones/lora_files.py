"""LoRA files as other tools write them, put on a pipeline.

Not by ``load_lora_weights``: it drops ``dora_scale`` and keys without its prefixes, gives layers without an alpha the
most frequent one, and takes dropout from the metadata, which then acts while pictures are made. Here every key of the
file is applied or named in an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from t2i_align.backbones.fit import summary
from t2i_align.backbones.lora_keys import LayerNames
from t2i_align.backbones.lora_reading import MERGE_IT, Lora, LowRank, read_lora
from t2i_align.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"  # what peft's save_pretrained writes
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
ADAPTER = "default_0"  # as diffusers names the first
OTHER_BASE = "give the base model this LoRA was trained on"


def apply_lora(pipeline: DiffusionPipeline, file: Path) -> dict[str, int]:
    """Load a LoRA file (diffusers, peft or kohya keys) into a pipeline that has none.

    Returns:
        Component -> number of layers that carry an adapter.

    Raises:
        UserError: see `read_lora`; no weights for the denoiser; other sizes than the layers'; DoRA on some layers only.
    """
    networks = {name: network for name in COMPONENTS if (network := getattr(pipeline, name, None)) is not None}
    names = {component: LayerNames(network) for component, network in networks.items()}
    lora = read_lora(file, lambda component, layer: names[component].find(layer) if component in names else None)
    check_lora({component: names[component].layers for component in lora}, lora, file)
    adapted = [component for component in COMPONENTS if component in lora]
    for component in adapted:
        put_on(networks[component], lora[component], ADAPTER)
    return {component: len(lora[component]) for component in adapted}


def check_lora(modules: Mapping[str, Mapping[str, nn.Module]], lora: Lora, file: Path) -> None:
    """Compare every update with the layer it is for.

    Raises:
        UserError: sizes that differ; names the key and both sizes. Nothing for the denoiser. DoRA beside plain LoRA.
    """
    problems = []
    for component, layers in lora.items():
        for name, layer in layers.items():
            weight = modules[component][name].weight
            if not _same_size(layer.down.shape[1:], weight.shape[1:]):
                takes, own = list(layer.down.shape[1:]), list(weight.shape[1:])
                problems.append(f"{layer.spelled} takes {takes}, the layer takes {own}")
            elif layer.up.shape[0] != weight.shape[0] or any(side != 1 for side in layer.up.shape[2:]):
                given, own = list(layer.up.shape), weight.shape[0]
                problems.append(f"the up weight of {layer.spelled} is {given}, the layer gives {own}")
        if len({layer.magnitude is None for layer in layers.values()}) > 1:
            plain = next(layer.spelled for layer in layers.values() if layer.magnitude is None)
            raise UserError(
                "The LoRA has DoRA magnitudes for some layers of a network and not for others.",
                f"{file}: none for {plain}",
                MERGE_IT,
            )
    if problems:
        raise UserError("The LoRA belongs to another architecture.", f"{file}: {summary(problems)}", OTHER_BASE)
    if "unet" not in lora:
        raise UserError("The LoRA has no weights for the denoiser.", str(file), OTHER_BASE)


@torch.no_grad()
def put_on(network: nn.Module, layers: Mapping[str, LowRank], adapter: str) -> None:
    """Add updates to layers as a peft adapter without dropout, in the dtype and on the device of each layer.

    Adapters that are there already stay active beside it.
    """
    config = LoraConfig(
        r=max(layer.rank for layer in layers.values()),
        target_modules=sorted(layers),
        lora_dropout=0.0,
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
        inference_mode=True,
    )
    keys = {f"{name}.lora_A.weight": layer.down for name, layer in layers.items()}  # exact; targets match endings too
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
        inject_adapter_in_model(config, network, adapter_name=adapter, state_dict=keys)
    for name, layer in layers.items():
        module = network.get_submodule(name)
        if not isinstance(module, LoraLayer):
            raise RuntimeError(f"peft made no adapter for {name}")
        _fill(module, layer, adapter)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(list(module.lora_A), inference_mode=True)
    network.eval()
    network._hf_peft_config_loaded = True  # so that the pipeline's fuse_lora and unload_lora_weights know of it


def updates_of(network: nn.Module) -> dict[str, LowRank]:
    """Layer -> the update that `apply_lora` put on it; empty where there is none, or where it was merged."""
    worn = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            magnitude = (
                module.lora_magnitude_vector[ADAPTER].weight if ADAPTER in module.lora_magnitude_vector else None
            )
            down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            worn[name] = LowRank(down, up, module.scaling[ADAPTER], magnitude, f"{name}.lora_A.weight")
    return worn


def _fill(module: LoraLayer, layer: LowRank, adapter: str) -> None:
    """Rank and scale are of the layer: peft's patterns for them are searched for every layer, which takes minutes."""
    base = module.get_base_layer().weight
    down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    down.data = layer.down.reshape(layer.rank, *down.shape[1:]).to(base.device, base.dtype).contiguous()
    up.data = layer.up.reshape(up.shape[0], layer.rank, *up.shape[2:]).to(base.device, base.dtype).contiguous()
    module.r[adapter], module.scaling[adapter] = layer.rank, layer.scale
    module.lora_alpha[adapter] = layer.scale * layer.rank
    if layer.magnitude is not None:
        magnitude = module.lora_magnitude_vector[adapter].weight
        magnitude.data = layer.magnitude.reshape(magnitude.shape).to(base.device, base.dtype)


def _same_size(given: torch.Size, wanted: torch.Size) -> bool:
    """Sizes alike but for kernels of one pixel: a linear layer in one model is such a convolution in another."""
    return _without_ones(given) == _without_ones(wanted)


def _without_ones(size: torch.Size) -> tuple[int, ...]:
    return tuple(size[:1]) + tuple(side for side in size[1:] if side != 1)
