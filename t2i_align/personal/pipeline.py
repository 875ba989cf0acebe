"""Personal pictures from a plain diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from reward_models.errors import nearest_of_many
from t2i_align.errors import UserError
from t2i_align.personal.adapter import UserAdapter
from t2i_align.personal.config import NULL_USER
from t2i_align.personal.encoders import ExternalEncoder, PairSetEncoder, RewardVectorEncoder, null_tokens
from t2i_align.personal.external import read_external
from t2i_align.personal.files import read_personal
from t2i_align.personal.mixtures import mix
from t2i_align.personal.pair_set import PairSet

Who: TypeAlias = str | Tensor | Mapping[str, float]
Encoder = TypeVar("Encoder", bound=torch.nn.Module)


class Personal:
    """A pipeline's user adapter and the users it knows; `load_personal` makes one.

    Args:
        pipeline: whose UNet holds the adapter; None to ask for tokens only.
        adapter: installed.
        users: tokens ``[M, W]`` by name.
    """

    def __init__(self, pipeline: DiffusionPipeline | None, adapter: UserAdapter, users: Mapping[str, Tensor]) -> None:
        self.pipeline, self.adapter = pipeline, adapter
        self._users = dict(users)

    @property
    def names(self) -> list[str]:
        """Everyone who can be named, the null user first."""
        table = self.adapter.config.names if self.adapter.config.encoder == "table" else ()
        return [NULL_USER, *dict.fromkeys([*table, *self._users])]

    def tokens(self, who: Who) -> Tensor:
        """Tokens ``[M, W]`` of a name, of a mixture ``{name: weight}``, or the tokens given.

        Raises:
            UserError: an unknown name, or tokens of a wrong shape.
        """
        width = self.adapter.config.token_width
        if isinstance(who, Tensor):
            if who.ndim != 2 or who.shape[1] != width:
                raise UserError("A user's tokens have the shape [M, W].", str(list(who.shape)), f"W is {width}")
            return who
        if isinstance(who, Mapping):
            return mix([self.tokens(name) for name in who], list(who.values()))
        if who == NULL_USER:
            return null_tokens(self.adapter.config)
        if who in self._users:
            return self._users[who]
        if who not in self.names:
            advice = f"{nearest_of_many(who, self.names)}; or add one with personal.add, add_pairs or add_rewards"
            raise UserError("Unknown user.", who, advice)
        return self._encode([who])

    def add(self, name: str, tokens: Tensor) -> Tensor:
        """Remember tokens ``[M, W]`` under a name; returns them."""
        if name == NULL_USER:
            raise UserError(f"'{NULL_USER}' is the user of whom nothing is known.", fix="choose another name")
        self._users[name] = self.tokens(tokens)
        return self._users[name]

    def add_pairs(self, name: str, winner: Tensor, loser: Tensor, caption: Tensor) -> Tensor:
        """A new user from comparisons ``[S, F]``, ``[S, F]``, ``[S, C]`` in the features of training; no gradient step.

        Raises:
            UserError: the adapter does not encode pairs, or the pairs hold no taste.
        """
        self._needs(PairSetEncoder, "comparisons")
        users = PairSet.of_users([(winner, loser, caption)]).to(self._device)
        return self.add(name, self._encode(users))

    def add_rewards(self, name: str, weights: Mapping[str, float]) -> Tensor:
        """A new user from weights over the adapter's named rewards."""
        encoder = self._needs(RewardVectorEncoder, "reward weights")
        return self.add(name, self._encode(encoder.vector(weights).to(self._device)))

    def add_external(self, path: str | Path) -> list[str]:
        """All users of a file of arrays, see ``external``; returns their names."""
        self._needs(ExternalEncoder, "arrays")
        arrays = read_external(path)
        for name, array in arrays.items():
            self.add(name, self._encode(array[None].to(self._device)))
        return list(arrays)

    @contextmanager
    def user(
        self, who: Who, scale: float = 1.0, guidance_scale: float | None = None, negative: Who = NULL_USER
    ) -> Iterator[None]:
        """Inside, the pipeline makes pictures for `who`.

        Args:
            who: a name, a mixture ``{name: weight}``, or tokens.
            scale: strength of the user's attention; 0 is the base model exactly.
            guidance_scale: s_u of ``e(0,0) + s_c [e(c,0) - e(0,0)] + s_u [e(c,u) - e(c,0)]``; None is the pipeline's
                own s_c, which needs no third pass.
            negative: the user of the unconditional half.
        """
        tokens = self.tokens(who).to(self._device)[None]
        away = None if isinstance(negative, str) and negative == NULL_USER else self.tokens(negative).to(self._device)
        if away is not None and not tokens.any():
            tokens = torch.zeros_like(away)[None]
        if away is not None and away.shape != tokens.shape[1:]:
            raise UserError(
                "User and negative user need tokens of one shape.", f"{list(tokens.shape[1:])}, {list(away.shape)}"
            )

        pipeline = self.pipeline
        if pipeline is None:
            raise UserError("There is no pipeline to make pictures with.", fix="use load_personal(pipeline, folder)")

        def guided() -> bool:
            return bool(pipeline.do_classifier_free_guidance)

        def ratio() -> float:
            if guidance_scale is None:
                return 1.0
            return guidance_scale / (pipeline.guidance_scale if guided() else 1.0)

        with self.adapter.condition(tokens, scale, guided, away, ratio):
            yield

    def remove(self) -> None:
        """Give the pipeline back as it was."""
        self.adapter.remove()

    @property
    def _device(self) -> torch.device:
        return next(self.adapter.parameters()).device

    def _needs(self, kind: type[Encoder], what: str) -> Encoder:
        if not isinstance(self.adapter.encoder, kind):
            encoder = self.adapter.config.encoder
            raise UserError(f"This adapter does not encode {what}.", f"encoder {encoder}", "train one that does")
        return self.adapter.encoder

    @torch.no_grad()
    def _encode(self, users: object) -> Tensor:
        return self.adapter.encoder(users)[0]


def load_personal(pipeline: DiffusionPipeline, folder: str | Path) -> Personal:
    """Put a saved user adapter into a plain diffusers pipeline (SD1.x, SD2.x, SDXL).

    Outside ``personal.user(...)`` the pipeline makes the pictures it made before. The adapter stays in float32 beside
    a UNet of any precision.

    Raises:
        UserError: no adapter in the folder, or one for another architecture.
    """
    saved = read_personal(folder)
    adapter = saved.adapter.to(pipeline.unet.device).requires_grad_(False).eval()
    adapter.install(pipeline.unet)
    return Personal(pipeline, adapter, saved.users)
