"""Exponential moving average of the trained weights (diffusers' EMAModel), by name and swappable in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers.training_utils import EMAModel

from t2i_align.config.schema import EmaConfig
from t2i_align.training.rows import divided_like, own_parameters


class Ema:
    """Averages ``trainable`` and lends the average to validation and export.

    Args:
        config: decay in (0, 1) and the first step that counts.
        trainable: name -> live parameter; of one that is divided among processes each averages its own rows.
    """

    def __init__(self, config: EmaConfig, trainable: dict[str, torch.nn.Parameter]) -> None:
        self._trainable = trainable
        self._model = EMAModel(
            own_parameters(trainable), decay=config.decay, update_after_step=config.update_after_step, foreach=True
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
        pairs = zip(self._trainable.items(), self._model.shadow_params, strict=True)
        return {name: divided_like(average, parameter) for (name, parameter), average in pairs}

    def update(self) -> None:
        """Take in the current weights."""
        self._model.step(own_parameters(self._trainable))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        self._model.store(own_parameters(self._trainable))
        self._model.copy_to(own_parameters(self._trainable))
        try:
            yield
        finally:
            self._model.restore(own_parameters(self._trainable))
