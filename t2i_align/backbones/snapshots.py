"""Earlier weights of the policy, kept beside it: a moving reference, or the lagging model that rollouts sample with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from t2i_align.backbones.modes import evaluating

Weights = dict[str, Tensor]


class Snapshots:
    """Copies of the trained parameters, by name; the frozen ones are shared.

    Args:
        network: the policy, after it was adapted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._kept: dict[str, Weights] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    @torch.no_grad()
    def take(self, name: str, keep: float = 0.0) -> None:
        """Copy the policy; with ``keep`` > 0 only move there, ``keep * old + (1 - keep) * policy``."""
        if name not in self._kept or keep == 0.0:
            self._kept[name] = {key: parameter.detach().clone() for key, parameter in self._trained.items()}
            return
        for key, parameter in self._trained.items():
            self._kept[name][key].lerp_(parameter, 1.0 - keep)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Inside, the network has the weights of a snapshot and drops nothing out; for passes without gradients.

        Storages are exchanged, not copied into: what autograd saved of the policy stays valid.
        """
        kept = self._kept[name]
        policy = {key: parameter.data for key, parameter in self._trained.items()}
        with evaluating(self._network):
            try:
                for key, parameter in self._trained.items():
                    parameter.data = kept[key]
                yield
            finally:
                for key, parameter in self._trained.items():
                    parameter.data = policy[key]

    def state(self) -> dict[str, Tensor]:
        """``<snapshot>/<parameter>`` -> copy, for a checkpoint."""
        return {f"{name}/{key}": value for name, kept in self._kept.items() for key, value in kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self._kept = {}
        for path, value in state.items():
            name, _, key = path.partition("/")
            self._kept.setdefault(name, {})[key] = value.to(self._trained[key].device)
