"""The policy that training is compared with: the base under disabled adapters, or a copy that never changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError


class Reference(Protocol):
    """Lends the network that plays the reference."""

    def network(self) -> AbstractContextManager[nn.Module]:
        """The reference network, in evaluation mode."""


class AdapterOff:
    """The policy network itself with its adapters switched off: no second copy in memory.

    The layers are listed once: walking a thousand modules four times a step costs as much as a small network's pass.
    They are switched by peft's flag alone. Its ``enable_adapters`` also clears ``requires_grad``, and sharded weights
    keep for good what that was when they were first gathered.

    Args:
        unet: after its adapters were added.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet
        self._all_modules = list(unet.modules())
        self._adapted = [module for module in self._all_modules if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The network without its adapters; adapters and modes come back on exit."""
        in_training = [module for module in self._all_modules if module.training]
        self._switch(False, in_training)
        try:
            yield self._unet
        finally:
            self._switch(True, in_training)

    def _switch(self, on: bool, in_training: list[nn.Module]) -> None:
        for layer in self._adapted:
            layer._disable_adapters = not on
        for module in in_training:
            module.training = on


class FrozenCopy:
    """A second network with the weights of the base; see ``precision.frozen_copy``."""

    def __init__(self, clone: nn.Module) -> None:
        self.clone = clone

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The copy, without gradients: it never trains, whatever its weights are marked as."""
        with torch.no_grad():
            yield self.clone


def reference_kind(config: ModelConfig) -> str:
    """``adapter_off``, ``frozen_copy``, ``user_off`` (whoever adds the user adapter lends it) or ``none``.

    ``auto`` is resolved. A precomputed reference is measured with the adapters off, or before full training, which
    keeps no copy.

    Raises:
        UserError: adapter_off without adapters.
    """
    if config.reference == "precomputed":
        return "adapter_off" if config.train == "lora" else "none"
    if config.reference == "auto":
        return {"lora": "adapter_off", "full": "frozen_copy"}.get(config.train, "user_off")
    if config.reference == "adapter_off" and config.train == "full":
        raise UserError(
            "model.reference: adapter_off needs adapters.",
            "model.train: full",
            "set model.reference: frozen_copy (or auto), or model.train: lora",
        )
    return config.reference
