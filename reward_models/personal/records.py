"""Comparisons of several people over frozen feature vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.errors import RewardModelError, nearest_of_many


@dataclass(frozen=True)
class PreferencePairs:
    """P comparisons of U users over N items. Build it with `build`, which checks everything.

    Attributes:
        features: ``[N, D]`` float64, one frozen vector per item (a picture, or a picture with its caption).
        index: ``[P, 2]`` long, rows of `features`: the first and the second item of each comparison.
        label: ``[P]`` float64, probability that the first is preferred; 0.5 is a tie.
        user: ``[P]`` long, positions in `users`.
        users: names, without repetition; a user may have no pair.
    """

    features: Tensor
    index: Tensor
    label: Tensor
    user: Tensor
    users: tuple[str, ...]

    @classmethod
    def build(
        cls, features: Tensor, index: Tensor, label: Tensor | Sequence[float], users: Sequence[str]
    ) -> PreferencePairs:
        """Check and convert.

        Args:
            features: ``[N, D]`` floats of any dtype.
            index: ``[P, 2]`` integers below N.
            label: ``[P]`` probabilities that the first item is preferred.
            users: who answered, one name per pair.

        Raises:
            RewardModelError: shapes that do not fit, values that are not finite, labels outside [0, 1].
        """
        features = torch.as_tensor(features).detach().to("cpu", torch.float64)
        index = torch.as_tensor(index).detach().to("cpu", torch.long).reshape(-1, 2)
        label = torch.as_tensor(label).detach().to("cpu", torch.float64).reshape(-1)
        names = tuple(dict.fromkeys(users))
        _check(features, index, label, len(users))
        position = {name: number for number, name in enumerate(names)}
        user = torch.tensor([position[name] for name in users], dtype=torch.long)
        return cls(features, index, label, user, names)

    @classmethod
    def of_one(cls, features: Tensor, index: Tensor, label: Tensor | Sequence[float], name: str) -> PreferencePairs:
        """The comparisons of one user, possibly none; arguments as for `build`."""
        count = torch.as_tensor(index).reshape(-1, 2).shape[0]
        pairs = cls.build(features, index, label, [name] * count)
        return pairs if pairs.users else cls(pairs.features, pairs.index, pairs.label, pairs.user, (name,))

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    def differences(self) -> Tensor:
        """``[P, D]``: features of the first item minus those of the second."""
        return self.features[self.index[:, 0]] - self.features[self.index[:, 1]]

    def select(self, rows: Tensor) -> PreferencePairs:
        """The comparisons at `rows` (long or bool); items and users stay."""
        return PreferencePairs(self.features, self.index[rows], self.label[rows], self.user[rows], self.users)

    def of_user(self, name: str) -> PreferencePairs:
        """The comparisons of one user, as a record with that user alone.

        Raises:
            RewardModelError: an unknown user.
        """
        if name not in self.users:
            raise RewardModelError(f"user '{name}' has no comparisons here", fix=nearest_of_many(name, self.users))
        rows = self.user == self.users.index(name)
        zeros = torch.zeros(int(rows.sum()), dtype=torch.long)
        return PreferencePairs(self.features, self.index[rows], self.label[rows], zeros, (name,))

    def balanced_weights(self) -> Tensor:
        """``[P]`` weights with mean 1 that give every user the same total: ``P / (U' n_u)``, U' users with pairs."""
        counts = torch.bincount(self.user, minlength=max(1, len(self.users))).double()
        return len(self) / ((counts > 0).sum() * counts[self.user])

    def flipped(self) -> PreferencePairs:
        """The same comparisons answered the other way."""
        return PreferencePairs(self.features, self.index, 1 - self.label, self.user, self.users)


def _check(features: Tensor, index: Tensor, label: Tensor, names: int) -> None:
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise RewardModelError("features must be a finite matrix [N, D]", found=f"shape {list(features.shape)}")
    if not len(index) == len(label) == names:
        found = f"{len(index)} index rows, {len(label)} labels, {names} user names"
        raise RewardModelError("every pair needs two items, a label and a user", found=found)
    if len(index) and (index.min() < 0 or index.max() >= len(features)):
        found = f"{int(index.min())} … {int(index.max())} for {len(features)} rows"
        raise RewardModelError("the pairs name items that do not exist", found=found)
    if not ((label >= 0) & (label <= 1)).all():
        bad = label[~((label >= 0) & (label <= 1))][0]
        raise RewardModelError("a label is a probability", found=str(bad.item()), fix="0, 0.5, 1, or between")
