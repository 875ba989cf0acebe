"""The training step of a personal run: `PairStep` while the denoiser attends to the users of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from t2i_align.data.batch import ListBatch, PairBatch
from t2i_align.objectives.types import ObjectiveOutput
from t2i_align.personal.adapter import UserAdapter
from t2i_align.personal.mixtures import drop_users
from t2i_align.personal.users import Users
from t2i_align.training.step import Draws, PairStep


class UserOff:
    """The reference of a personal run: the policy's own network at adapter scale 0, see `backbones.reference`.

    Args:
        unet: the policy.
        adapter: installed in it.
    """

    def __init__(self, unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
        self._unet, self._adapter = unet, adapter

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The network, which inside is the base."""
        with self._adapter.reference():
            yield self._unet


class UserStep(PairStep):
    """See `PairStep`; arguments beyond its own:

    Args:
        adapter: in the backbone's denoiser.
        users: what the encoder is told about a batch.
        dropout: share of training pairs that belong to the null user instead.
        shown: users for whom validation pictures are made.
    """

    def __init__(
        self, *args: Any, adapter: UserAdapter, users: Users, dropout: float, shown: list[str], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._adapter, self._users, self._dropout, self._shown = adapter, users, dropout, shown

    def loss(self, batch: PairBatch | ListBatch, draws: Draws, step: int) -> tuple[ObjectiveOutput, Tensor]:
        """See `PairStep`."""
        assert isinstance(batch, PairBatch)  # objectives on lists are refused with the configuration
        with self._for_users(batch, draws):
            return super().loss(batch, draws, step)

    def probe_errors(
        self, batch: PairBatch, draws: Draws, network: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> tuple[Tensor, Tensor]:
        """See `PairStep`; `network` is entered last, so that the reference stays at scale 0."""
        with self._for_users(batch, draws):
            return super().probe_errors(batch, draws, network)

    def validation_users(self, guided: bool) -> list[tuple[str, AbstractContextManager[None]]]:
        """A word for file names, and a context in which pictures are made for that user."""
        return [(f"-user-{user}", self._sampling(user, guided)) for user in self._shown]

    @contextmanager
    def _sampling(self, user: str, guided: bool) -> Iterator[None]:
        with torch.no_grad():
            tokens = self._adapter.encoder(self._users.of_user(user))
        with self._adapter.condition(tokens, guided=guided):
            yield

    def _for_users(self, batch: PairBatch, draws: Draws) -> AbstractContextManager[None]:
        inputs = self._users.of_batch(batch, draws.purpose)
        share = self._dropout if draws.purpose == "train" else 0.0

        def tokens() -> Tensor:  # at every call: a snapshot of the policy has an encoder of its own
            return drop_users(self._adapter.encoder(inputs), batch.ids, batch.epochs, share, self._seed)

        return self._adapter.condition(tokens, tiled=True)
