"""Low-rank reward heads: everybody shares a direction, and differs along a few (LoRe, arXiv 2504.14439).

    r_u(x) = <w_0 + V a_u, h(x)> / s,      V [D, R],  a_u [R] ~ N(0, S)

s is the root mean square of the feature differences, so that `ridge` means the same for any features. Training
minimises, over all users at once and with every user weighing alike,

    sum_p w_p BCE(sigmoid(d_p), y_p) + 1/2 sum_u |a_u|^2 + ridge/2 (|w_0|^2 + |V|^2)

The prior covariance follows by one step of expectation-maximisation, S = mean_u (a_u a_u' + C_u) around the mean of
the a_u, which moves into w_0. A new user is R numbers: a convex problem of a few Newton steps. R = 0 is the pooled
head, the baseline that personal heads have to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.personal.evidence import weigh
from reward_models.personal.posterior import UserPosterior, fit_posterior
from reward_models.personal.records import PreferencePairs


@dataclass(frozen=True)
class LowRankConfig:
    """Sizes and training choices.

    Attributes:
        features: D.
        rank: R, directions in which people differ; 0 pools everybody.
        ridge: of w_0 and V, on features scaled to unit differences.
        users: names of the users of training.
    """

    features: int
    rank: int = 4
    ridge: float = 1.0
    users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features < 1 or self.rank < 0 or self.ridge <= 0:
            raise RewardModelError(
                "a low-rank head needs features >= 1, rank >= 0 and ridge > 0",
                found=f"features {self.features}, rank {self.rank}, ridge {self.ridge}",
            )


class LowRankHead(nn.Module):
    """The head; get a trained one from `fit_low_rank` or ``files.load_head``.

    Attributes:
        common: ``[D]`` w_0.
        basis: ``[D, R]`` V.
        codes: ``[U, R]`` a_u of the users of training.
        prior_covariance: ``[R, R]`` S.
        scale: ``[]`` s.
    """

    prior_covariance: Tensor
    scale: Tensor

    def __init__(self, config: LowRankConfig) -> None:
        super().__init__()
        self.config = config
        width, rank = config.features, config.rank
        self.common = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.basis = nn.Parameter(torch.zeros(width, rank, dtype=torch.float64))
        self.codes = nn.Parameter(torch.zeros(len(config.users), rank, dtype=torch.float64))
        self.register_buffer("prior_covariance", torch.eye(rank, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean 0 and S."""
        return torch.zeros(self.config.rank, dtype=torch.float64), self.prior_covariance

    def rewards(self, features: Tensor, code: Tensor) -> Tensor:
        """``[N]`` rewards of items ``[N, D]`` for a user ``[R]``, or each for its own ``[N, R]``."""
        scaled = features.double() / self.scale
        return scaled @ self.common + ((scaled @ self.basis) * code).sum(-1)

    @torch.no_grad()
    def margins(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P]``: reward of the first minus reward of the second."""
        check_width(pairs, self.config.features)
        return self.rewards(pairs.differences(), code)

    @torch.no_grad()
    def jacobian(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P, R]``; the same for every user."""
        return pairs.differences() / self.scale @ self.basis

    def fit_user(self, pairs: PreferencePairs) -> UserPosterior:
        """The taste behind the comparisons of one user, known or new; none gives the prior.

        Raises:
            RewardModelError: several users, or features of another width.
        """
        check_width(pairs, self.config.features)
        return fit_posterior(self, weigh(pairs))


def check_width(pairs: PreferencePairs, width: int) -> None:
    """Raise RewardModelError unless the features are those the head was trained on, by their width."""
    if pairs.width != width:
        raise RewardModelError("these are not the features of this head", found=f"width {pairs.width}, trained {width}")


def fit_low_rank(
    pairs: PreferencePairs, rank: int = 4, ridge: float = 1.0, iterations: int = 200, seed: int = 0
) -> LowRankHead:
    """Train on the comparisons of many users: full batch, L-BFGS, float64; a second for thousands of pairs.

    Args:
        pairs: of two users at least where rank > 0.
        rank: R.
        ridge: see the module.
        iterations: of L-BFGS, at most.
        seed: of the random start.

    Raises:
        RewardModelError: nothing to learn from.
    """
    check_trainable(pairs, personal=rank > 0)
    head = LowRankHead(LowRankConfig(pairs.width, rank, ridge, pairs.users))
    head.scale.copy_(pairs.differences().square().mean().sqrt())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (head.basis, head.codes):
            parameter.normal_(0, 0.1, generator=generator)
    weights, difference = pairs.balanced_weights(), pairs.differences()
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        margins = head.rewards(difference, head.codes[pairs.user])
        loss = (weights * (F.softplus(margins) - pairs.label * margins)).sum()
        loss = loss + 0.5 * head.codes.square().sum()
        loss = loss + 0.5 * ridge * (head.common.square().sum() + head.basis.square().sum())
        loss.backward()
        return loss

    optimiser.step(closure)
    _estimate_prior(head, pairs)
    return head.requires_grad_(False)


def check_trainable(pairs: PreferencePairs, personal: bool) -> None:
    """Raise RewardModelError where no head can be trained on `pairs`."""
    if len(pairs) == 0 or not (pairs.label != 0.5).any() or pairs.differences().abs().max() == 0:
        raise RewardModelError(
            "there is nothing to learn from", found=f"{len(pairs)} pairs", fix="give decided pairs of different items"
        )
    if personal and len(pairs.users) < 2:
        raise RewardModelError("how people differ cannot be learned from one of them", found=pairs.users[0])


@torch.no_grad()
def _estimate_prior(head: LowRankHead, pairs: PreferencePairs) -> None:
    """Centre the users and set S; a user's C_u is that of training, with prior I."""
    if head.config.rank == 0:
        return
    jacobian = head.jacobian(pairs, head.codes)
    margins = head.rewards(pairs.differences(), head.codes[pairs.user])
    slope = pairs.balanced_weights() * torch.sigmoid(margins) * torch.sigmoid(-margins)
    curvature = torch.eye(head.config.rank, dtype=torch.float64).repeat(len(pairs.users), 1, 1)
    outer = slope[:, None, None] * jacobian[:, :, None] * jacobian[:, None, :]
    curvature.index_add_(0, pairs.user, outer)
    average = head.codes.mean(0)
    head.common.add_(head.basis @ average)
    head.codes.sub_(average)
    spread = head.codes.T @ head.codes / len(head.codes)
    head.prior_covariance.copy_(spread + torch.linalg.inv(curvature).mean(0))
