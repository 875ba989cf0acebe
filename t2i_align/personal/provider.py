"""Batches of a personal run: every user has the same say, held-out users stay out, rewards may be weighed anew."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from t2i_align.config.schema import RunConfig
from t2i_align.data.batch import PairBatch
from t2i_align.data.pair_source import PairSource
from t2i_align.data.provider import HELDOUT_ORDER_SEED, PairProvider, Work
from t2i_align.data.sampler import permutation
from t2i_align.data.transform import Geometry
from t2i_align.errors import UserError
from t2i_align.personal.crowd import BalancedOrder, Pairs, pairs_by_user, split_users, with_other_prompts
from t2i_align.personal.external import Origin, read_origin
from t2i_align.personal.section import PersonalSection
from t2i_align.personal.users import RewardUsers

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

logger = logging.getLogger(__name__)


class UserPairs(PairProvider):
    """Pairs whose users are known, by optimiser step; see `PairProvider`, whose other arguments these are.

    Args:
        config: the run.
        section: its personal section.
        backbone: encodes.

    Attributes:
        training_pairs: rows of the training source by user, without held-out users and those that cannot be shown.
        heldout_pairs: rows of `heldout_source` by user.

    Raises:
        UserError: pairs without users, too few users, or margins that the data lack.
    """

    def __init__(self, config: RunConfig, section: PersonalSection, backbone: Backbone, **options: Any) -> None:
        super().__init__(config, backbone, **options)
        self._section = section
        self.reward_users: RewardUsers | None = None
        self._held_reader = self._heldout
        self.training_pairs, self.heldout_pairs = self._crowds()
        self._order = BalancedOrder(self.training_pairs, config.seed)
        self._count = sum(map(len, self.training_pairs.values()))
        self._rewards = self._reward_scales() if section.rewards is not None else None

    @property
    def items(self) -> str:  # type: ignore[override]
        """What `num_pairs` counts."""
        return f"pairs of {len(self.training_pairs)} users"

    @property
    def num_pairs(self) -> int:
        """Pairs of the training users."""
        return self._count

    @property
    def num_heldout(self) -> int:
        """Pairs of the held-out users, or of the held-out source."""
        return sum(map(len, self.heldout_pairs.values()))

    @property
    def heldout_source(self) -> Any:
        """Where the held-out pairs are; None without any."""
        return None if self._held_reader is None else self._held_reader.source

    def sides(self) -> dict[str, tuple[PairSource, Pairs]]:
        """Source and rows by user of the training pairs, and of the held-out ones where there are any."""
        found = {"train": (self.source, self.training_pairs)}
        if self.heldout_source is not None:
            found["heldout"] = (self.heldout_source, self.heldout_pairs)
        return found

    def keep(self, pairs: Mapping[str, Pairs]) -> None:
        """Use only some of the pairs, once their pictures are known: those that can be shown with others.

        Args:
            pairs: by `sides`' names.

        Raises:
            UserError: none are left.
        """
        for what, (_, before) in self.sides().items():
            gone = sum(map(len, before.values())) - sum(map(len, pairs[what].values()))
            name = "training" if what == "train" else "held-out"
            if not pairs[what]:
                raise self._nobody(before, name)
            if gone:
                logger.info("%d %s pairs have no other pair of other pictures and another prompt: left out", gone, name)
        self.training_pairs, self.heldout_pairs = pairs["train"], pairs.get("heldout", self.heldout_pairs)
        self._order = BalancedOrder(self.training_pairs, self._seed)
        self._count = sum(map(len, self.training_pairs.values()))

    def batch(self, step: int, micro_step: int) -> PairBatch:
        """See `PairProvider`; with rewards, winner and loser are as the drawn weights have it."""
        return self._judged(super().batch(step, micro_step), "train")

    def heldout_batches(self, limit: int, batch_size: int) -> Iterator[PairBatch]:
        """See `PairProvider`."""
        reader = self._held_reader
        if reader is None:
            return
        rows = [row for of_user in self.heldout_pairs.values() for row in of_user]
        order = permutation(0, len(rows), HELDOUT_ORDER_SEED)[self._rank :: self._world_size][:limit]
        for start in range(0, len(order), batch_size):
            indices = [rows[place] for place in order[start : start + batch_size].tolist()]
            pictures = [reader.read(index, Geometry()) for index in indices]
            batch = self._assemble(reader, (indices, [0] * len(indices)), pictures, training=False)
            yield self._judged(batch, "heldout")

    def _work(self, step: int, micro_step: int) -> Work:
        group = self._batch_size * self._world_size
        first = (step * self._accumulation + micro_step) * group + self._rank * self._batch_size
        drawn = [self._order.at(position) for position in range(first, first + self._batch_size)]
        return [row for row, _ in drawn], [epoch for _, epoch in drawn]

    def _crowds(self) -> tuple[Pairs, Pairs]:
        if self._section.encoder == "reward_vector":  # weights are the user, whoever answered
            everything: list[Pairs] = [{"everybody": list(range(len(self.source)))}, {}]
            if self._heldout is not None:
                everything[1] = {"everybody": list(range(len(self._heldout.source)))}
            return everything[0], everything[1]
        training, heldout = split_users(pairs_by_user(self.source), self._section.heldout_users)
        if heldout:
            self._held_reader = self._training
        elif self._heldout is not None:
            heldout = pairs_by_user(self._heldout.source)
        if self._section.encoder == "pair_set":
            training = self._showable(training, self.source, "training")
            if self._held_reader is not None:
                heldout = self._showable(heldout, self._held_reader.source, "held-out")
        if self._section.encoder == "external":
            origin = read_origin(self._section.users_file or "")
            training = self._unseen(training, self.source, origin, "training")
            if self._held_reader is not None:
                heldout = self._unseen(heldout, self._held_reader.source, origin, "held-out")
        logger.info("%d users of training, %d held out", len(training), len(set(heldout) - set(training)))
        return training, heldout

    def _showable(self, pairs: Pairs, source: Any, what: str) -> Pairs:
        kept = with_other_prompts(pairs, source)
        if not kept:
            raise self._nobody(pairs, what)
        if len(kept) < len(pairs):
            logger.info("%d %s users without pairs of two prompts are left out", len(pairs) - len(kept), what)
        return kept

    def _nobody(self, pairs: Pairs, what: str) -> UserError:
        return UserError(
            f"No user of the {what} pairs can be shown to the model.",
            f"{len(pairs)} users, none of whom decided pairs of two different prompts and other pictures",
            "use encoder: table, or data with more pairs per user",
        )

    def _unseen(self, pairs: Pairs, source: Any, origin: Origin, what: str) -> Pairs:
        """Without the pairs that made a user's own array, and without users who could not be embedded."""
        ids = source.pair_ids()
        nothing: frozenset[str] = frozenset()
        kept = {
            user: [row for row in rows if ids[row] not in origin.shown.get(user, nothing)]
            for user, rows in pairs.items()
            if user not in origin.left_out
        }
        kept = {user: rows for user, rows in kept.items() if rows}
        if pairs and not kept:
            raise UserError(
                f"No {what} pair is left besides those that made the users' embeddings.",
                f"{self._section.users_file}: {len(pairs)} users",
                "embed fewer pairs per user (personal extract --shots), or use data with more",
            )
        if gone := sum(map(len, pairs.values())) - sum(map(len, kept.values())):
            logger.info(
                "%d %s pairs made the users' embeddings, or are of %d users without one: left out",
                gone,
                what,
                len(pairs) - len(kept),
            )
        return kept

    def _reward_scales(self) -> Tensor:
        """``[R]`` root mean squares of the margins: weights compare rewards in these units."""
        wanted = self._section.rewards or []
        for source in (self.source, *([] if self.heldout_source is None else [self.heldout_source])):
            found = source.margin_names
            if missing := [name for name in wanted if name not in found]:
                raise UserError(
                    "The pairs have no margins of these rewards.",
                    f"{source.table.address}: {', '.join(missing)}; margins of {', '.join(found) or 'nothing'}",
                    "write them with t2i-align rewards label",
                )
        scales = np.array([np.sqrt(np.square(self.source.gaps(name)).mean()) for name in wanted])
        if (scales == 0).any():
            raise UserError("A reward never tells the two pictures apart.", wanted[int(scales.argmin())], "remove it")
        return torch.tensor(scales, dtype=torch.float32, device=self._device)

    def _judged(self, batch: PairBatch, purpose: str) -> PairBatch:
        if self._rewards is None or self.reward_users is None:
            return batch
        margins = torch.stack([batch.margins[name] for name in self._section.rewards or ()], dim=1)
        total = (self.reward_users.weights(batch, purpose) * margins / self._rewards).sum(1)
        turned = turn(batch, total < 0, torch.where(total == 0, 0.5, 1.0))
        # A sign alone would let a reward of weight 0.01 decide all pairs that the other rewards leave open.
        return replace(turned, weights=turned.weights * total.abs().clamp(max=1.0))


def turn(batch: PairBatch, which: Tensor, preferred: Tensor) -> PairBatch:
    """Exchange winner and loser of the pairs in `which` ``[B]``, and set the labels."""

    def chosen(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None or second is None:
            return first
        return torch.where(which.view(-1, *[1] * (first.ndim - 1)), second, first)

    winner, loser = chosen(batch.winner, batch.loser), chosen(batch.loser, batch.winner)
    assert winner is not None and loser is not None
    sign = torch.where(which, -1.0, 1.0)
    prompts: dict[str, Any] = {}
    if batch.prompt_loser is not None:
        prompts["prompt"] = batch.prompt.where(~which, batch.prompt_loser)
        prompts["prompt_loser"] = batch.prompt_loser.where(~which, batch.prompt)
    if (scores := batch.columns.get("scores")) is not None:
        prompts["columns"] = {**batch.columns, "scores": chosen(scores, scores.flip(1))}
    return replace(
        batch,
        winner=winner,
        loser=loser,
        time_ids_winner=chosen(batch.time_ids_winner, batch.time_ids_loser),
        time_ids_loser=chosen(batch.time_ids_loser, batch.time_ids_winner),
        margins={name: sign * value for name, value in batch.margins.items()},
        preferred=preferred,
        **prompts,
    )
