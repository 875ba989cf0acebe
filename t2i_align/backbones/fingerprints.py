"""Hashes that say whether two runs used the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Where and by what a file was written says nothing about what it computes.
IGNORED_CONFIG = (
    "_name_or_path",
    "_diffusers_version",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
)


class Fingerprint:
    """A blake2b hash fed with networks and configurations, tensor by tensor; independent of the device."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add_config(self, name: str, config: Mapping[str, Any]) -> None:
        """Count a configuration, without what only records its origin."""
        kept = {key: value for key, value in config.items() if key not in IGNORED_CONFIG}
        self._hash.update(f"{name} {json.dumps(kept, sort_keys=True, default=str)}\n".encode())

    def add_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Count tensors in the order of their names: name, dtype, shape, bytes."""
        for key in sorted(weights):
            tensor = weights[key].detach()
            self._hash.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
            self._hash.update(memoryview(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._hash.hexdigest()


def base_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network as it was before adapters were added."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" not in name
    }
