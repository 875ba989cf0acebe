"""Sharded training (FSDP2): every process holds rows of weights, gradients and optimiser states.

A block's weights are gathered when its pass begins and freed when it ends; gradients are averaged in float32 and
divided as they come. The launch file asks for it (``configs/accelerate/fsdp2.yaml``), the run's YAML does not change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.objectives.references import Guarded, Moving

UNITS = "BasicTransformerBlock,ResnetBlock2D"
ELSE = "launch with configs/accelerate/ddp.yaml, which keeps whole weights on every device"


@dataclass(frozen=True)
class Request:
    """What a launch file asks for.

    Attributes:
        units: class names of the blocks whose weights are gathered together.
        reshard: free gathered weights between forward and backward pass (ZeRO-3), or keep them (nearer to ZeRO-2).
    """

    units: tuple[str, ...]
    reshard: bool


def requested(environment: Mapping[str, str] = os.environ) -> Request | None:
    """The sharding that the launcher's environment asks for; None where every device keeps whole weights.

    Raises:
        UserError: a kind of sharding that this project does not do.
    """

    def flag(name: str, default: str = "false") -> bool:
        return environment.get(name, default).lower() == "true"

    if flag("ACCELERATE_USE_DEEPSPEED"):
        _refuse(
            "DeepSpeed",
            "launch with configs/accelerate/fsdp2.yaml: fsdp_reshard_after_forward: false divides as ZeRO-2 and keeps "
            "gathered weights until the backward pass, true is ZeRO-3",
        )
    if not flag("ACCELERATE_USE_FSDP"):
        return None
    if environment.get("FSDP_VERSION", "1") != "2":
        _refuse("FSDP version 1", "set fsdp_version: 2, as configs/accelerate/fsdp2.yaml does")
    if flag("FSDP_OFFLOAD_PARAMS"):
        _refuse("fsdp_offload_params", "set it to false and use more devices, or train a LoRA (model.train=lora)")
    if flag("FSDP_ACTIVATION_CHECKPOINTING"):
        _refuse("fsdp_activation_checkpointing", "set it to false; model.gradient_checkpointing of the run decides")
    if flag("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        _refuse(
            "fsdp_cpu_ram_efficient_loading (accelerate's default), which leaves all but one process's encoders empty",
            "set it to false, as configs/accelerate/fsdp2.yaml does",
        )
    if environment.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP") != "TRANSFORMER_BASED_WRAP":
        _refuse(environment["FSDP_AUTO_WRAP_POLICY"], "set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP")
    names = environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP", UNITS).split(",")
    return Request(tuple(name.strip() for name in names), flag("FSDP_RESHARD_AFTER_FORWARD", "true"))


def refuse_early(config: RunConfig, objective: Objective) -> None:
    """Refuse what sharded weights cannot serve, before anything is loaded; nothing where sharding was not asked for.

    Raises:
        UserError: names the setting and the way out.
    """
    if requested() is None:
        return
    training, reference = config.training, objective.reference
    asked = {
        "rollout: pictures are sampled within the steps": config.rollout is not None,
        "online: pictures are sampled within the steps": config.online is not None,
        "model.train: user": config.model.train == "user",
        f"objective {objective.name}: its latents ask the policy": objective.latents.asks_policy,
        f"objective {objective.name}: its reference follows the policy": isinstance(reference, Guarded | Moving),
        "model.channels_last: true": config.model.channels_last,
        "model.compile: true": config.model.compile,
    }
    for found, is_so in asked.items():
        if is_so:
            raise UserError("This run cannot be sharded.", found, f"{ELSE}, or change the setting")
    if training.mixed_precision == "fp16":
        raise UserError("Sharded training has no gradient scaler.", "training.mixed_precision: fp16", "set it to bf16")
    if training.optimizer != "adamw":
        raise UserError(
            "This optimiser needs whole gradients; sharded training divides them.",
            f"training.optimizer: {training.optimizer}",
            "set training.optimizer=adamw, whose states are divided too",
        )


def gathered_dtype(backbone: Backbone) -> torch.dtype | None:
    """In what weights are gathered: all trained in float32, the compute precision; else (None) as they are stored."""
    trains_everything = all(parameter.requires_grad for parameter in backbone.unet.parameters())
    return backbone.dtype if trains_everything and backbone.dtype != torch.float32 else None


def gathered_bytes(backbone: Backbone, request: Request) -> int:
    """Most bytes of whole weights at a time: this block, the next one and what is in no block; or all of them."""
    dtype, blocks = gathered_dtype(backbone), []
    counted: set[nn.Parameter] = set()
    for network in (*_units(backbone.unet, request.units), backbone.unet):
        new = set(network.parameters()) - counted
        counted |= new
        blocks.append(sum(value.numel() * (dtype or value.dtype).itemsize for value in new))
    *blocks, rest = blocks
    return rest + sum(sorted(blocks)[-2:] if request.reshard else blocks)


def divide(config: RunConfig, backbone: Backbone, accelerator: Accelerator) -> Sharding | None:
    """Divide the backbone's networks where the launch file asks for that and there are processes to divide among."""
    request = requested()
    if request is None or accelerator.num_processes == 1:
        return None
    if config.model.reference == "precomputed":
        backbone.denoiser_fingerprint()  # of whole weights, and kept
    sharding = Sharding(request, accelerator)
    sharding.divide(backbone)
    return sharding


class Sharding:
    """The networks of a run, divided among its processes.

    Args:
        request: of the launch file.
        accelerator: the processes and this one's device.
    """

    def __init__(self, request: Request, accelerator: Accelerator) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._request = request
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._modules: list[tuple[nn.Module, bool]] = []  # with whether they free what they gathered

    def divide(self, backbone: Backbone) -> None:
        """Divide the denoiser and its frozen copy in place; from now on all processes make their passes together.

        What is trained in float32 is gathered in the compute precision: half the bytes, and what autocast would make of
        it layer by layer, but for normalisations, whose weights are rounded too. So the reference rounds them as well,
        and policy and reference still start from the same numbers.
        """
        half = gathered_dtype(backbone)
        self._divide(backbone.unet, half)
        clone = backbone.frozen_copy
        if clone is not None:
            for parameter in () if half is None else clone.parameters():
                parameter.data = parameter.data.to(half)
            self._divide(clone, None)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, weights are whole and passes without gradients exchange nothing: processes may make any number.

        Entered by all processes together, with the weights as they then are.
        """
        for module, _ in self._modules:
            module.unshard()  # type: ignore[operator]
            module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
        try:
            yield
        finally:
            for module, frees in self._modules:
                module.set_reshard_after_forward(frees, recurse=False)  # type: ignore[operator]
                module.reshard()  # type: ignore[operator]

    def _divide(self, network: nn.Module, gathered: torch.dtype | None) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
        units = _units(network, self._request.units)
        for module in (*units, network):  # the rest is small, and gathered for the whole pass
            frees = self._request.reshard and module is not network
            fully_shard(module, mesh=self._mesh, mp_policy=policy, reshard_after_forward=frees)
            self._modules.append((module, frees))


def _units(network: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """Blocks of these classes, inner ones first."""
    found = {type(module).__name__ for module in network.modules()}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            "fsdp_transformer_layer_cls_to_wrap names a class that the denoiser does not have.",
            ", ".join(missing),
            f"name classes of its blocks, such as {UNITS}",
        )
    return [module for module in reversed(list(network.modules())) if type(module).__name__ in names]


def _refuse(found: str, fix: str) -> None:
    raise UserError("This kind of sharding is not supported.", f"the launch file asks for {found}", fix)
