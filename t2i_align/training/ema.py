"""Exponential moving average of the trained weights (diffusers' EMAModel), by name and swappable in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers.training_utils import EMAModel

from t2i_align.config.schema import EmaConfig


class Ema:
    """Averages ``trainable`` and lends the average to validation and export.

    Args:
        config: decay in (0, 1) and the first step that counts.
        trainable: name -> live parameter.
    """

    def __init__(self, config: EmaConfig, trainable: dict[str, torch.nn.Parameter]) -> None:
        self._trainable = trainable
        self._model = EMAModel(
            trainable.values(), decay=config.decay, update_after_step=config.update_after_step, foreach=True
        )

    @property
    def step(self) -> int:
        """Number of updates seen; the early decay depends on it."""
        return self._model.optimization_step

    @step.setter
    def step(self, value: int) -> None:
        self._model.optimization_step = value

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Name -> averaged weight, the live storage."""
        return dict(zip(self._trainable, self._model.shadow_params, strict=True))

    def update(self) -> None:
        """Take in the current weights."""
        self._model.step(self._trainable.values())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        self._model.store(self._trainable.values())
        self._model.copy_to(self._trainable.values())
        try:
            yield
        finally:
            self._model.restore(self._trainable.values())
