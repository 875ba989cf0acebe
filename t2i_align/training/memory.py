"""How much memory a step will take, worked out before anything is computed, and which blocks to recompute for it.

The step's forward and backward pass run once on fake tensors, which have shapes and no data, under a `Meter`. So the
figure follows the network, the batch, the adapters and the precision as they are; it is exact for tensors, and leaves
out kernels' workspaces and the allocator's gaps (`ALLOWANCE`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from t2i_align.backbones import Backbone
from t2i_align.backbones.shared_prompts import SharedPrompt
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.training.meter import Meter
from t2i_align.training.sharding import Request, gathered_bytes, gathered_dtype

ALLOWANCE = 1.1  # what is planned for beyond the tensors themselves
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0, "adafactor": 0.05}  # state per trained parameter
GB = 1e9
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Estimate:
    """Bytes of one training process; of what is divided among processes, its share.

    Attributes:
        weights: of the denoiser, with a frozen copy of it where there is one.
        encoders: of VAE and text encoders on the device.
        optimizer: its state, and averaged weights.
        step: at the worst moment of a step: activations, gradients and what backward needs in passing.
        flops: of the policy's forward and backward pass.
    """

    weights: int
    encoders: int
    optimizer: int
    step: int
    flops: int

    @property
    def total(self) -> float:
        """What to have free, `ALLOWANCE` included."""
        return (self.weights + self.encoders + self.optimizer + self.step) * ALLOWANCE

    def __str__(self) -> str:
        parts = f"weights {_gb(self.weights)}, encoders {_gb(self.encoders)}, optimiser {_gb(self.optimizer)}"
        return f"{_gb(self.total)} ({parts}, step {_gb(self.step)}, and {ALLOWANCE - 1:.0%})"


class Rows(NamedTuple):
    """Pictures that go through the denoiser at once, and how many of them share a prompt."""

    pictures: int
    per_prompt: int = 1


@dataclass(frozen=True)
class Shares:
    """Among how many processes weights, gradients and optimiser states are divided, and how they are gathered."""

    count: int = 1
    request: Request | None = None


WHOLE = Shares()


@dataclass(frozen=True)
class Block:
    """A part of the denoiser that can be recomputed: what it then no longer keeps, and what that costs."""

    module: nn.Module
    saved: int
    flops: int


def estimate(config: RunConfig, backbone: Backbone, rows: Rows, shares: Shares = WHOLE) -> Estimate:
    """Memory of a step with `rows` in the denoiser, with the recomputation that is switched on now."""
    return _estimate(config, backbone, rows, shares)[0]


def plan_memory(config: RunConfig, backbone: Backbone, rows: Rows, shares: Shares = WHOLE) -> str:
    """Estimate the memory of training passes, and choose the blocks to recompute.

    They are chosen where ``model.gradient_checkpointing`` is ``auto``. Sampling is not part of the estimate. The
    denoiser must still be whole, also where it is about to be divided.

    Returns:
        One sentence for the log.

    Raises:
        UserError: auto, and not even recomputing everything fits.
    """
    expected, blocks = _estimate(config, backbone, rows, shares)
    if config.model.gradient_checkpointing != "auto":
        return f"memory of a step: {expected}, estimated"
    limit = memory_limit(config, backbone.device)
    expected, chosen = _choose(config, backbone, (rows, shares), limit, expected, blocks)
    return f"memory of a step: {expected}, estimated, of {_gb(limit)}; recomputes {chosen} of {len(blocks)} blocks"


def rest_encoders(config: RunConfig, backbone: Backbone, objective: Objective) -> None:
    """Put VAE and text encoders on the CPU where steps read a cache and never ask them; 1.8 GB of SDXL's GPU memory.

    Drawing pictures brings them back for that long, see `Backbone.encoders_here`.
    """
    makes_pairs = config.rollout is not None or config.online is not None or config.personal is not None
    if config.data.cache_dir is not None and not makes_pairs and not objective.latents.asks_policy:
        backbone.encoders_to("cpu")


def rows_of(config: RunConfig, objective: Objective, provider: Any) -> Rows:
    """What a batch of the run becomes in the denoiser."""
    per_item = {"single": 1, "pair": 2, "labelled": 2}.get(objective.layout)
    shared = 2 if per_item == 2 and "captions" not in objective.data_needs else 1
    return Rows(config.training.train_batch_size * (per_item or provider.list_size), shared)


def memory_limit(config: RunConfig, device: torch.device) -> float:
    """Bytes that a step may take: ``model.memory_limit_gb``, or what the device has free beside this process."""
    if config.model.memory_limit_gb is not None:
        return config.model.memory_limit_gb * GB
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available


def measured_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a GPU; elsewhere of the whole process, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _choose(
    config: RunConfig,
    backbone: Backbone,
    work: tuple[Rows, Shares],
    limit: float,
    expected: Estimate,
    blocks: list[Block],
) -> tuple[Estimate, int]:
    """Switch on recomputation, most bytes per operation first, until the step fits; the new estimate and how many."""
    backbone.unet.enable_gradient_checkpointing()
    switched: list[Block] = []
    left = sorted(blocks, key=lambda block: block.saved / max(block.flops, 1))
    _switch(blocks, False)
    while expected.total > limit:
        if not left:
            raise UserError(
                "The step does not fit into memory, even with every block recomputed.",
                f"estimated {expected}, allowed {_gb(limit)}",
                "lower training.train_batch_size (and raise gradient_accumulation_steps), use bf16, a LoRA, "
                "adamw_8bit, or raise model.memory_limit_gb",
            )
        missing = expected.total - limit
        while left and missing > 0:
            switched.append(left.pop())
            missing -= switched[-1].saved * ALLOWANCE
        _switch(switched, True)
        expected = _estimate(config, backbone, *work)[0]
    return expected, len(switched)


def _switch(blocks: list[Block], on: bool) -> None:
    for block in blocks:
        block.module.gradient_checkpointing = on  # type: ignore[assignment]


def _estimate(config: RunConfig, backbone: Backbone, rows: Rows, shares: Shares) -> tuple[Estimate, list[Block]]:
    unet = backbone.unet
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    copy = backbone.frozen_copy
    averaged = 4 * trained if config.training.ema.enabled else 0
    encoders = (backbone.vae, *backbone.text_encoders)
    divided = shares.request is not None
    meter, blocks = _rehearse(backbone, config.data.resolution, rows, divided)
    if shares.request is None:
        kept = 4 * trained if config.training.gradient_accumulation_steps > 1 else 0
    else:
        kept = 4 * trained // shares.count + gathered_bytes(backbone, shares.request)
    return Estimate(
        weights=(_bytes(unet) + (0 if copy is None else _bytes(copy))) // shares.count,
        encoders=sum(_bytes(part) for part in encoders if part.device.type == backbone.device.type),
        optimizer=(int(OPTIMIZER_BYTES[config.training.optimizer] * trained) + averaged) // shares.count,
        step=meter.peak + kept,
        flops=meter.flops,
    ), blocks


def _rehearse(backbone: Backbone, resolution: int, rows: Rows, divided: bool) -> tuple[Meter, list[Block]]:
    """One policy pass and its backward on fake tensors of the device.

    Divided weights come in the precision they are gathered in, and their gradients leave as soon as they are there.
    """
    unet, side, count = backbone.unet, resolution // backbone.vae_scale_factor, rows.pictures
    prompt, size = backbone.empty_prompt(count), [(resolution, resolution)] * count
    time_ids = backbone.time_ids(size, [(0, 0)] * count, size)
    noisy = torch.zeros(count, backbone.latent_channels, side, side, device=backbone.device)
    timesteps = torch.zeros(count, dtype=torch.long, device=backbone.device)
    mode = FakeTensorMode()
    given = {name: mode.from_tensor(tensor) for name, tensor in _named_tensors(unet)}
    if divided:
        given = {name: _gathered(tensor, gathered_dtype(backbone)) for name, tensor in given.items()}
    hidden = prompt.hidden[: count // rows.per_prompt]
    condition = {"encoder_hidden_states": hidden.to(noisy.device, backbone.dtype), "return_dict": False}
    added = backbone.conditioning(prompt, time_ids, noisy.device)
    inputs = [mode.from_tensor(tensor) for tensor in (noisy, timesteps)]
    condition["encoder_hidden_states"] = mode.from_tensor(condition["encoder_hidden_states"])
    if added is not None:
        condition["added_cond_kwargs"] = {name: mode.from_tensor(tensor) for name, tensor in added.items()}
    meter = Meter([*given.values(), *inputs])
    with _plain_kernels(unet), _watched(unet, meter) as blocks, mode, meter:
        forward_and_backward(unet, given, inputs, condition)
    return meter, list(blocks.values())


def _gathered(fake: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A stand-in for a weight that is gathered for the pass and whose gradient is divided at once."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    if not fake.is_floating_point():
        return fake
    weight = fake.detach().to(dtype or fake.dtype).requires_grad_(fake.requires_grad)
    if weight.requires_grad:
        weight.register_post_accumulate_grad_hook(drop)
    return weight


def _plain(processor: Any) -> Any:
    if isinstance(processor, SharedPrompt):
        return SharedPrompt(_plain(processor.inner))
    return AttnProcessor2_0() if "XFormers" in type(processor).__name__ else processor


def forward_and_backward(unet: nn.Module, given: Tensors, inputs: list[Tensor], condition: dict[str, Any]) -> None:
    """One pass with its backward, with the tensors `given` in the place of the network's own, by name.

    Backward is inside the exchange: what is recomputed there must find the same tensors.
    """
    exchanged = {f"unet.{name}": tensor for name, tensor in given.items()}
    functional_call(_Pass(unet), exchanged, (inputs, condition))


class _Pass(nn.Module):
    """A forward and backward pass as one call."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, inputs: list[Tensor], condition: dict[str, Any]) -> None:
        self.unet(*inputs, **condition)[0].float().square().mean().backward()


@contextmanager
def _plain_kernels(unet: nn.Module) -> Iterator[None]:
    """Without compilation, and with PyTorch's own attention: it keeps as much as xformers and knows fake tensors."""
    processors = unet.attn_processors
    unet.set_attn_processor({name: _plain(processor) for name, processor in processors.items()})
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        unet.set_attn_processor(dict(processors))


@contextmanager
def _watched(unet: nn.Module, meter: Meter) -> Iterator[dict[nn.Module, Block]]:
    """Fill in, for every module that can recompute its parts, what the parts keep and compute."""
    blocks: dict[nn.Module, Block] = {}
    started: list[tuple[int, int]] = []
    handles = []
    for owner in unet.modules():
        if not hasattr(owner, "gradient_checkpointing"):
            continue
        parts = [*getattr(owner, "resnets", []), *getattr(owner, "transformer_blocks", [])]
        blocks[owner] = Block(owner, 0, 0)

        def leave(part: nn.Module, args: tuple, output: Tensor, owner: nn.Module = owner) -> None:
            live, flops = started.pop()
            kept = meter.live - live - output.untyped_storage().nbytes()
            block = blocks[owner]
            blocks[owner] = Block(owner, block.saved + max(kept, 0), block.flops + meter.flops - flops)

        for part in parts:
            handles.append(part.register_forward_pre_hook(lambda *_: started.append((meter.live, meter.flops))))
            handles.append(part.register_forward_hook(leave))
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _named_tensors(network))


def _gb(count: float) -> str:
    return f"{count / GB:.2f} GB"
