"""The user adapter: an encoder of users, and attention to their tokens in every cross-attention layer of a UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from t2i_align.errors import UserError
from t2i_align.personal.attention import UserAttention, UserProcessor
from t2i_align.personal.condition import Condition, last_rows
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.encoders import make_encoder

T = TypeVar("T")
SUBMODULE = "personal"  # where the adapter lives in a UNet: its parameters are ``personal.*``


class UserAdapter(nn.Module):
    """Trainable weights around a frozen UNet; `add_user_adapter` makes one.

    It becomes the UNet's submodule ``personal``, so devices, optimisers and distributed wrappers find its parameters; a
    UNet that is to be saved as a base must be saved after `remove`. Outside `condition` the UNet is the base.

    Attributes:
        config: sizes and choices.
        encoder: users to tokens ``[B, M, W]``.
        attention: `UserAttention` per layer, keyed by the layer's name with ``/`` for the dots.
    """

    def __init__(self, config: PersonalConfig, channels: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        layers = {key: UserAttention(config.token_width, size, config.start) for key, size in channels.items()}
        self.attention = nn.ModuleDict(layers)
        self._condition: Condition | None = None
        self._undo: list[Callable[[], None]] = []

    def install(self, unet: UNet2DConditionModel) -> None:
        """Put the attention into `unet`.

        Raises:
            UserError: another adapter is there already, or the layers differ.
        """
        if hasattr(unet, SUBMODULE):
            raise UserError("The UNet has a user adapter already.", fix="remove it first: adapter.remove()")
        found = cross_attention(unet)
        layers, own = self.layers(), self.channels()
        if own != {key: module.inner_dim for key, module in found.items()}:
            raise UserError(
                "The user adapter belongs to another architecture.",
                f"{len(own)} layers of {sum(own.values())} channels; the UNet has {len(found)} of "
                f"{sum(module.inner_dim for module in found.values())}",
                "load it into the model it was trained on",
            )
        for key, module in found.items():
            self._undo.append(partial(module.set_processor, module.processor))
            module.set_processor(UserProcessor(module.processor, layers[key]))
        setattr(unet, SUBMODULE, self)
        self._undo.append(partial(delattr, unet, SUBMODULE))
        self._undo.append(unet.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        self._undo.append(unet.register_forward_hook(self._after, with_kwargs=True).remove)

    def remove(self) -> None:
        """Give the UNet back as it was."""
        while self._undo:
            self._undo.pop()()

    def layers(self) -> dict[str, UserAttention]:
        """The attention of each layer by its key."""
        return cast(dict[str, UserAttention], dict(self.attention.items()))

    def channels(self) -> dict[str, int]:
        """Channels of each layer by its key; an adapter fits UNets with the same."""
        return {key: layer.key.out_features for key, layer in self.layers().items()}

    def parameter_counts(self) -> dict[str, int]:
        """Weights of the encoder and of the attention."""
        parts = {"encoder": self.encoder, "attention": self.attention}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    @contextmanager
    def condition(
        self,
        tokens: Tensor | Callable[[], Tensor],
        scale: float = 1.0,
        guided: bool | Callable[[], bool] = False,
        negative: Tensor | None = None,
        ratio: float | Callable[[], float] = 1.0,
        tiled: bool = False,
    ) -> Iterator[None]:
        """Inside, the UNet attends to these users.

        With user guidance of ratio r, the conditional rows hold ``e(c, 0) + r [e(c, u) - e(c, 0)]``. For r = s_u / s_c
        a pipeline with guidance scale s_c makes ``e(0, 0) + s_c [e(c, 0) - e(0, 0)] + s_u [e(c, u) - e(c, 0)]`` of
        that. The price is a third pass, of the conditional rows; r = 1 needs none. For the null user e(c, u) is
        e(c, 0), so those rows are left as they are: the base exactly, where a second pass of other rows would round
        differently.

        Args:
            tokens: ``[R, M, W]`` for R prompts, or one for all; or what makes them, asked at each call. A call with a
                multiple of R rows repeats each in place.
            scale: of the user's attention; 0 is the reference.
            guided: whether calls hold the unconditional half first, fixed or asked at each call.
            negative: ``[M, W]`` for the unconditional half (a user to move away from); None is the null user.
            ratio: r, fixed or asked at each call.
            tiled: a call with a multiple of R rows repeats all R as a block instead (winners, then losers).
        """
        outer = self._condition
        ask_guided = guided if callable(guided) else _constant(guided)
        ask_ratio = ratio if callable(ratio) else _constant(ratio)
        self._condition = Condition(tokens, scale, ask_guided, negative, ask_ratio, tiled)
        try:
            yield
        finally:
            self._condition = outer

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the UNet is the base: nothing is added, nothing is computed."""
        outer, self._condition = self._condition, None
        try:
            yield
        finally:
            self._condition = outer

    def _before(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        condition = self._condition
        if condition is None or condition.scale == 0:
            return None
        sample = args[0] if args else kwargs["sample"]
        tokens = condition.rows(sample.shape[0]).to(sample.device)
        given = kwargs.get("cross_attention_kwargs") or {}
        return args, {**kwargs, "cross_attention_kwargs": {**given, "ip_hidden_states": (tokens, condition.scale)}}

    def _after(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        condition = self._condition
        if condition is None or condition.scale == 0 or condition.ratio() == 1:
            return None
        rows = (args[0] if args else kwargs["sample"]).shape[0]
        keep = rows // 2 if condition.guided() else rows
        known = kwargs["cross_attention_kwargs"]["ip_hidden_states"][0][-keep:].ne(0).any(dim=(1, 2))
        if not known.any():
            return None
        plain = {name: value for name, value in kwargs.items() if name != "cross_attention_kwargs"}
        given = {name: v for name, v in kwargs["cross_attention_kwargs"].items() if name != "ip_hidden_states"}
        plain["cross_attention_kwargs"] = given or None
        with self.reference():
            base = unet(*last_rows(args, rows, keep), **last_rows(plain, rows, keep))[0]
        sample = output[0].clone()
        own = sample[-keep:]
        guided = base + condition.ratio() * (own - base)
        sample[-keep:] = torch.where(known.to(own.device).view(-1, 1, 1, 1), guided, own)
        return (sample, *output[1:]) if isinstance(output, tuple) else type(output)(sample=sample)


def _constant(value: T) -> Callable[[], T]:
    return lambda: value


def add_user_adapter(unet: UNet2DConditionModel, config: PersonalConfig) -> UserAdapter:
    """Freeze `unet` and give it a new adapter in float32 on its device; only the adapter's weights need gradients."""
    unet.requires_grad_(False)
    channels = {key: module.inner_dim for key, module in cross_attention(unet).items()}
    adapter = UserAdapter(config, channels).to(unet.device)
    adapter.install(unet)
    return adapter


def cross_attention(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """Key and module of every cross-attention layer, in the order of the network.

    Raises:
        UserError: a UNet without any in transformer blocks.
    """
    found = {
        f"{name}.attn2".replace(".", "/"): module.attn2
        for name, module in unet.named_modules()
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None
    }
    if not found:
        raise UserError("The UNet has no cross-attention in transformer blocks.", fix="use SD1.x, SD2.x or SDXL")
    return found
