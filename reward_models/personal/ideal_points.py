"""Ideal points with prototypes (PAL, arXiv 2406.08469): a user likes what lies near a mixture of K prototypes.

    w_u = softmax(a_u),   z_u = w_u P,   r_u(x) = - tau |f(h(x) / s) - z_u|

f maps features to a space of `width` dimensions (linear, or one hidden GELU layer), P ``[K, width]`` are the
prototypes, s scales the features to unit differences. Training uses the logistic link on r_u(x_1) - r_u(x_2) (PAL's
published variants include it beside the hinge), which makes margins probabilities and gives new users a covariance:
their K logits have the prior N(mean, covariance) of the users of training. Every user weighs alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.personal.evidence import weigh
from reward_models.personal.low_rank import check_trainable, check_width
from reward_models.personal.posterior import UserPosterior, fit_posterior
from reward_models.personal.records import PreferencePairs

DISTANCE_FLOOR = 1e-12  # added to squared distances: a distance of 0 has no gradient
LEAST_SPREAD = 1e-2  # added to the covariance of the logits: the softmax leaves one direction without any


@dataclass(frozen=True)
class IdealPointConfig:
    """Sizes.

    Attributes:
        features: D.
        prototypes: K.
        width: dimensions of the space of ideal points.
        hidden: width of the hidden layer of f; 0 makes f linear.
        users: names of the users of training.
    """

    features: int
    prototypes: int = 3
    width: int = 16
    hidden: int = 0
    users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.features, self.prototypes, self.width) < 1 or self.hidden < 0:
            raise RewardModelError("sizes of an ideal-point head must be positive", found=str(self))


class IdealPointHead(nn.Module):
    """The head; get a trained one from `fit_ideal_points` or ``files.load_head``.

    Attributes:
        map: f.
        prototypes: ``[K, width]`` P.
        logits: ``[U, K]`` a_u of the users of training.
        log_temperature: ``[]`` log tau.
        prior_mean, prior_covariance: ``[K]``, ``[K, K]``, of the logits of a new user.
        scale: ``[]`` s.
    """

    prior_mean: Tensor
    prior_covariance: Tensor
    scale: Tensor

    def __init__(self, config: IdealPointConfig) -> None:
        super().__init__()
        self.config = config
        double = torch.float64
        layers: list[nn.Module] = [nn.Linear(config.features, config.hidden or config.width, dtype=double)]
        if config.hidden:
            layers += [nn.GELU(), nn.Linear(config.hidden, config.width, dtype=double)]
        self.map = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.zeros(config.prototypes, config.width, dtype=double))
        self.logits = nn.Parameter(torch.zeros(len(config.users), config.prototypes, dtype=double))
        self.log_temperature = nn.Parameter(torch.zeros((), dtype=double))
        self.register_buffer("prior_mean", torch.zeros(config.prototypes, dtype=double))
        self.register_buffer("prior_covariance", torch.eye(config.prototypes, dtype=double))
        self.register_buffer("scale", torch.ones((), dtype=double))

    def prior(self) -> tuple[Tensor, Tensor]:
        """Of the logits."""
        return self.prior_mean, self.prior_covariance

    def rewards(self, features: Tensor, code: Tensor) -> Tensor:
        """``[N]`` rewards of items ``[N, D]`` for a user's logits ``[K]``, or each for its own ``[N, K]``."""
        ideal = torch.softmax(code, dim=-1) @ self.prototypes
        squared = (self.map(features.double() / self.scale) - ideal).square().sum(-1)
        return -self.log_temperature.exp() * (squared + DISTANCE_FLOOR).sqrt()

    def margins(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P]``: reward of the first minus reward of the second; `code` as for `rewards`."""
        check_width(pairs, self.config.features)
        first, second = pairs.features[pairs.index[:, 0]], pairs.features[pairs.index[:, 1]]
        return self.rewards(first, code) - self.rewards(second, code)

    def jacobian(self, pairs: PreferencePairs, code: Tensor) -> Tensor:
        """``[P, K]`` by forward differentiation in the K logits."""
        return torch.func.jacfwd(lambda logits: self.margins(pairs, logits))(code)

    def fit_user(self, pairs: PreferencePairs) -> UserPosterior:
        """The taste behind the comparisons of one user, known or new; none gives the prior.

        Raises:
            RewardModelError: several users, or features of another width.
        """
        check_width(pairs, self.config.features)
        return fit_posterior(self, weigh(pairs))


def fit_ideal_points(
    pairs: PreferencePairs,
    prototypes: int = 3,
    width: int = 16,
    hidden: int = 0,
    steps: int = 500,
    learning_rate: float = 0.03,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> IdealPointHead:
    """Train on the comparisons of many users: full batch, AdamW with cosine decay, float64.

    Args:
        pairs: of two users at least.
        prototypes: K.
        width: dimensions of the space of ideal points.
        hidden: width of f's hidden layer, 0 for a linear f.
        steps: of AdamW.
        learning_rate: at the start; logits and temperature have no weight decay.
        weight_decay: of f and the prototypes.
        seed: of the random start.

    Raises:
        RewardModelError: nothing to learn from.
    """
    check_trainable(pairs, personal=prototypes > 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = IdealPointHead(IdealPointConfig(pairs.width, prototypes, width, hidden, pairs.users))
        nn.init.normal_(head.prototypes)
        nn.init.normal_(head.logits)
    head.scale.copy_(pairs.differences().square().mean().sqrt())
    free = [head.logits, head.log_temperature]
    decayed = [*head.map.parameters(), head.prototypes]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weights = pairs.balanced_weights()
    for _ in range(steps):
        optimiser.zero_grad()
        margins = head.margins(pairs, head.logits[pairs.user])
        loss = (weights * (F.softplus(margins) - pairs.label * margins)).mean()
        # The N(0, 1) prior of the logits, on the scale of a mean over pairs.
        loss = loss + 0.5 * head.logits.square().sum() / len(pairs)
        loss.backward()
        optimiser.step()
        schedule.step()
    return _with_prior(head)


@torch.no_grad()
def _with_prior(head: IdealPointHead) -> IdealPointHead:
    """Take mean and covariance of the trained logits for the population of new users."""
    average = head.logits.mean(0)
    away = head.logits - average
    head.prior_mean.copy_(average)
    identity = torch.eye(head.config.prototypes, dtype=torch.float64)
    head.prior_covariance.copy_(away.T @ away / len(away) + LEAST_SPREAD * identity)
    return head.requires_grad_(False)
