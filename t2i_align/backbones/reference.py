"""The policy that training is compared with: the base under disabled adapters, or a copy that never changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from diffusers import UNet2DConditionModel
from torch import nn

from t2i_align.backbones.modes import evaluating
from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError


class Reference(Protocol):
    """Lends the network that plays the reference."""

    def network(self) -> AbstractContextManager[nn.Module]:
        """The reference network, in evaluation mode."""


class AdapterOff:
    """The policy network itself with its adapters switched off: no second copy in memory."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The network without its adapters; adapters and modes come back on exit."""
        with evaluating(self._unet):
            self._unet.disable_adapters()
            try:
                yield self._unet
            finally:
                self._unet.enable_adapters()


class FrozenCopy:
    """A second network with the weights of the base; see ``precision.frozen_copy``."""

    def __init__(self, clone: nn.Module) -> None:
        self._clone = clone

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The copy."""
        yield self._clone


def reference_kind(config: ModelConfig) -> str:
    """``adapter_off`` or ``frozen_copy``, with ``auto`` resolved.

    Raises:
        UserError: adapter_off without adapters.
    """
    if config.reference == "auto":
        return "adapter_off" if config.train == "lora" else "frozen_copy"
    if config.reference == "adapter_off" and config.train == "full":
        raise UserError(
            "model.reference: adapter_off needs adapters.",
            "model.train: full",
            "set model.reference: frozen_copy (or auto), or model.train: lora",
        )
    return config.reference
