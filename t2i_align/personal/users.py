"""What the encoder is told about the users of a batch; one class per encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from t2i_align.data.batch import PairBatch
from t2i_align.data.pair_source import PairSource
from t2i_align.data.selection import normalise
from t2i_align.errors import UserError
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.crowd import Pairs
from t2i_align.personal.pair_features import PairFeatures
from t2i_align.personal.pair_set import PairSet
from t2i_align.personal.section import PersonalSection
from t2i_align.randomness import addressed_generator


class Users(Protocol):
    """Turns the users of a batch into inputs of the encoder.

    Attributes:
        config: of the adapter that reads them.
    """

    config: PersonalConfig

    def of_batch(self, batch: PairBatch, purpose: str) -> Any:
        """Inputs for the B users of a batch of training (``train``) or held-out pairs."""
        ...

    def of_user(self, user: str) -> Any:
        """Inputs for one user, as shown at validation."""
        ...


def sizes(section: PersonalSection) -> dict[str, Any]:
    """What every adapter's configuration takes from the section."""
    names = ("encoder", "num_tokens", "token_width", "start", "hidden")
    return {name: getattr(section, name) for name in names}


class TableUsers:
    """Users by name.

    Args:
        section: of the run.
        users: of training.
        others: held-out pairs' users, who must be among them.
    """

    def __init__(self, section: PersonalSection, users: Sequence[str], others: Sequence[str]) -> None:
        if unknown := sorted(set(others) - set(users)):
            raise UserError(
                "A table knows only the users it was trained on.",
                f"{len(unknown)} users of the held-out pairs have no training pair, such as {unknown[0]}",
                "hold out by prompt (data.heldout_fraction), or use encoder: pair_set",
            )
        self.config = PersonalConfig(**sizes(section), names=tuple(users))

    def of_batch(self, batch: PairBatch, purpose: str) -> list[str]:
        """See `Users`."""
        return [str(user) for user in batch.users]

    def of_user(self, user: str) -> list[str]:
        """See `Users`."""
        return [user]


class ArrayUsers:
    """Users as arrays ``[L, F]`` made elsewhere.

    Args:
        section: of the run.
        arrays: by user.
        users: who must have one.
        device: of the adapter.
    """

    def __init__(
        self, section: PersonalSection, arrays: Mapping[str, Tensor], users: Sequence[str], device: torch.device
    ) -> None:
        if missing := sorted(set(users) - set(arrays)):
            raise UserError(
                "Some users have no embedding.",
                f"{len(missing)} of {len(set(users))}, such as {missing[0]}; {section.users_file} has {len(arrays)}",
                "embed all users of the pairs, under their user_id",
            )
        self.arrays = {user: arrays[user].to(device) for user in sorted(set(users))}
        self.config = PersonalConfig(**sizes(section), features=next(iter(arrays.values())).shape[1])

    def of_batch(self, batch: PairBatch, purpose: str) -> Tensor:
        """See `Users`."""
        return torch.stack([self.arrays[str(user)] for user in batch.users])

    def of_user(self, user: str) -> Tensor:
        """See `Users`."""
        return self.arrays[user][None]


class RewardUsers:
    """Users as weights over rewards, drawn for every pair and epoch: uniform on the simplex (a Dirichlet of ones).

    Args:
        section: of the run.
        seed: of the run.
        device: of the adapter.
    """

    def __init__(self, section: PersonalSection, seed: int, device: torch.device) -> None:
        self.config = PersonalConfig(**sizes(section), names=tuple(section.rewards or ()))
        self._seed, self._device = seed, device

    def weights(self, batch: PairBatch, purpose: str) -> Tensor:
        """``[B, R]`` float32, non-negative, rows sum to 1; a function of the pair and its epoch."""
        rows = []
        for pair, epoch in zip(batch.ids, batch.epochs, strict=True):
            generator = addressed_generator(self._seed, "reward_weights", purpose, epoch, pair)
            rows.append(-torch.rand(len(self.config.names), generator=generator).clamp_min(1e-12).log())
        drawn = torch.stack(rows)
        return (drawn / drawn.sum(1, keepdim=True)).to(self._device)

    def of_batch(self, batch: PairBatch, purpose: str) -> Tensor:
        """See `Users`."""
        return self.weights(batch, purpose)

    def of_user(self, user: str) -> Tensor:
        """Weight 1 on the reward called `user`."""
        return torch.tensor([[float(name == user) for name in self.config.names]], device=self._device)


class ShownPairs:
    """Users as some of their other pairs, of other prompts and pictures than the pair that is trained on.

    Which ones is drawn for every pair and epoch, so a user is never the same four pictures.

    Args:
        section: of the run.
        sides: what there is of training and held-out pairs, by purpose.
        seed: of the run.
        device: of the adapter.
        extractor: word of the features, for the adapter's configuration.
    """

    def __init__(
        self,
        section: PersonalSection,
        sides: Mapping[str, Answered],
        seed: int,
        device: torch.device,
        extractor: str,
    ) -> None:
        self.training = sides["train"]
        features = self.training.features
        self._sides, self._seed, self._device, self._count = sides, seed, device, section.support_pairs
        self.config = PersonalConfig(
            **sizes(section),
            features=features.pictures.shape[1],
            caption_features=features.captions.shape[1],
            extractor=extractor,
        )

    def of_batch(self, batch: PairBatch, purpose: str) -> PairSet:
        """See `Users`."""
        side = self._sides[purpose]
        users = []
        for pair, epoch in zip(batch.ids, batch.epochs, strict=True):
            generator = addressed_generator(self._seed, "support", purpose, epoch, pair)
            users.append(side.show(side.others(side.row[pair]), self._count, generator))
        return PairSet.of_users(users).to(self._device)

    def of_user(self, user: str) -> PairSet:
        """The user's first decided pairs."""
        side = next(side for side in self._sides.values() if user in side.pairs)
        rows = [row for row in side.pairs[user] if side.labels[row] != 0.5][: self._count]
        return PairSet.of_users([side.show(rows, len(rows), torch.Generator())]).to(self._device)


class Answered:
    """Pairs of one source with their features, by user.

    Args:
        source: the pairs.
        features: of all of them.
        pairs: rows per user.
    """

    def __init__(self, source: PairSource, features: PairFeatures, pairs: Pairs) -> None:
        self.features, self.pairs, self.labels = features, pairs, source.labels()
        self.row = {pair_id: row for row, pair_id in enumerate(source.pair_ids())}
        self._prompts = [normalise(caption) for caption in source.captions()]
        self._pictures = features.pairs_of_pictures()
        self._user = {row: user for user, rows in pairs.items() for row in rows}

    def others(self, row: int) -> list[int]:
        """Decided pairs of the same user for other prompts and of other pictures.

        An answer to the same two pictures under other words is the answer that is to be foreseen.
        """
        prompt, pictures = self._prompts[row], self._pictures[row]
        return [
            other
            for other in self.pairs[self._user[row]]
            if self._prompts[other] != prompt and self._pictures[other] != pictures and self.labels[other] != 0.5
        ]

    def showable(self) -> Pairs:
        """The pairs that have `others`, by user."""
        kept = {}
        for user, rows in self.pairs.items():
            decided = [row for row in rows if self.labels[row] != 0.5]
            prompts = Counter(self._prompts[row] for row in decided)
            pictures = Counter(self._pictures[row] for row in decided)
            both = Counter((self._prompts[row], self._pictures[row]) for row in decided)

            def count(row: int) -> int:
                """Decided pairs that differ from a row in both; the sum of the others, without counting twice."""
                prompt, pair = self._prompts[row], self._pictures[row]
                return len(decided) - prompts[prompt] - pictures[pair] + both[prompt, pair]  # noqa: B023

            if found := [row for row in rows if count(row)]:
                kept[user] = found
        return kept

    def show(self, rows: list[int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` of the rows at most, as winners, losers and captions."""
        if len(rows) > count:
            rows = [rows[number] for number in torch.randperm(len(rows), generator=generator)[:count].tolist()]
        return self.features.shown(rows, [bool(self.labels[row] > 0.5) for row in rows])
