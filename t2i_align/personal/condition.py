"""Which user the rows of a batch belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t2i_align.errors import UserError


@dataclass(frozen=True)
class Condition:
    """What a UNet call is conditioned on besides its text.

    Attributes:
        tokens: ``[R, M, W]``, one row per prompt, or one for all; or what makes them, asked at each call.
        scale: of the user's half of attention; 0 is the base.
        guided: whether a call holds the unconditional half first, as diffusers pipelines with guidance do.
        negative: ``[M, W]`` tokens of the unconditional half; None is the null user.
        ratio: user guidance; 1 is the plain conditional prediction, see `UserAdapter.condition`.
        tiled: a call with a multiple of R rows holds all R prompts, then all of them again, as training does; else each
            prompt's rows stand together.
    """

    tokens: Tensor | Callable[[], Tensor]
    scale: float = 1.0
    guided: Callable[[], bool] = lambda: False
    negative: Tensor | None = None
    ratio: Callable[[], float] = lambda: 1.0
    tiled: bool = False

    def rows(self, count: int) -> Tensor:
        """``[count, M, W]`` for a call with `count` rows.

        Raises:
            UserError: a number of rows that the users cannot be spread over.
        """
        tokens = self.tokens() if callable(self.tokens) else self.tokens
        if not self.guided():
            return _spread(tokens, count, self.tiled)
        if count % 2:
            raise UserError("A guided call has an even number of rows.", str(count), "say guided=False")
        positive = _spread(tokens, count // 2, self.tiled)
        negative = (
            torch.zeros_like(positive) if self.negative is None else self.negative.to(positive).expand_as(positive)
        )
        return torch.cat([negative, positive])


def _spread(tokens: Tensor, count: int, tiled: bool) -> Tensor:
    if count % len(tokens):
        raise UserError(
            "The users do not fit the batch.", f"{len(tokens)} users, {count} rows", "give one user, or one per prompt"
        )
    times = count // len(tokens)
    return tokens.repeat(times, 1, 1) if tiled else tokens.repeat_interleave(times, dim=0)


def last_rows(value: Any, rows: int, keep: int) -> Any:
    """The last `keep` rows of every tensor with `rows` rows inside `value` (tensors, tuples, lists, dictionaries)."""
    if isinstance(value, Tensor):
        return value[-keep:] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: last_rows(entry, rows, keep) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(last_rows(entry, rows, keep) for entry in value)
    return value
