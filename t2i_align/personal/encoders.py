"""Users to tokens ``[B, M, W]``, four ways.

| encoder         | a user is                                            | a new user needs          |
| --------------- | ---------------------------------------------------- | ------------------------- |
| `pair_set`      | a set of comparisons, in frozen features             | a few pairs, no training  |
| `table`         | a row of learned tokens                              | a fit (``fitting``)       |
| `external`      | an array ``[L, F]`` from elsewhere (a language model)| that array                |
| `reward_vector` | weights over named rewards                           | the weights, no training  |

The null user is not an input of an encoder: its tokens are zeros (``null_tokens``), whatever the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import nearest_of_many
from t2i_align.errors import UserError
from t2i_align.personal.config import PersonalConfig
from t2i_align.personal.pair_set import PairSet

HEADS = 4


class PairSetEncoder(nn.Module):
    """A permutation-invariant encoder of comparisons: arXiv 2501.06655's few-shot users without its language model.

        p_i = LN(MLP([w_i - l_i; w_i + l_i; c_i])),     E_m = W_o Attn(q_m, {p_i})

    w, l, c are features scaled to length 1, q_m are M learned queries. The attention averages the p_i, so answers that
    point in different directions give shorter tokens than answers that agree.
    """

    def __init__(self, config: PersonalConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        if hidden % HEADS:
            raise UserError("personal hidden must be a multiple of the attention heads.", str(hidden), "use 4 x k")
        self.pair = nn.Sequential(
            nn.Linear(2 * config.features + config.caption_features, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.queries = nn.Parameter(torch.randn(config.num_tokens, hidden) / hidden**0.5)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, config.token_width, bias=False)

    def forward(self, users: PairSet) -> Tensor:
        """Tokens ``[B, M, W]``."""
        widths = users.winner.shape[-1], users.caption.shape[-1]
        if widths != (self.config.features, self.config.caption_features):
            wanted = f"{self.config.features} and {self.config.caption_features}"
            raise UserError("These are not the features of the user encoder.", f"widths {widths}, trained on {wanted}")
        winner, loser, caption = (F.normalize(part, dim=-1) for part in (users.winner, users.loser, users.caption))
        codes = self.norm(self.pair(torch.cat([winner - loser, winner + loser, caption], -1)))
        batch = len(users)
        key, value = (self._heads(layer(codes)) for layer in (self.key, self.value))
        query = self._heads(self.queries.expand(batch, -1, -1))
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=users.mask[:, None, None])
        return self.out(pooled.transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class TableEncoder(nn.Module):
    """Learned tokens per user of training.

    Attributes:
        table: ``[U, M, W]``, small and different at the start, so that users can part.
    """

    def __init__(self, config: PersonalConfig) -> None:
        super().__init__()
        self._row = {name: row for row, name in enumerate(config.names)}
        self.table = nn.Parameter(torch.randn(len(config.names), config.num_tokens, config.token_width))

    def forward(self, users: Sequence[str]) -> Tensor:
        """Tokens ``[B, M, W]``.

        Raises:
            UserError: a user who is not in the table.
        """
        for name in users:
            if name not in self._row:
                advice = f"{nearest_of_many(name, self._row)}; or fit a new user, or use 'null'"
                raise UserError("The user is not in the table.", name, advice)
        return self.table[[self._row[name] for name in users]]


class ExternalEncoder(nn.Module):
    """A projection of arrays made elsewhere: E = LN(array) W_e, row by row, without bias.

    Any ``[L, F]`` will do, such as the 29 x 3584 hidden states of arXiv 2501.06655. The normalisation takes away the
    length of the rows, which in language models says more about the answer's length than about the user.
    """

    def __init__(self, config: PersonalConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.features, elementwise_affine=False)
        self.out = nn.Linear(config.features, config.token_width, bias=False)

    def forward(self, users: Tensor) -> Tensor:
        """Arrays ``[B, L, F]`` to tokens ``[B, L, W]``."""
        if users.ndim != 3 or users.shape[-1] != self.out.in_features:
            found = f"shape {list(users.shape)}, trained on width {self.out.in_features}"
            raise UserError("These are not the arrays of the user encoder.", found, "give [users, rows, width]")
        return self.out(self.norm(users.float()))


class RewardVectorEncoder(nn.Module):
    """Weights over named rewards: E = sum_r w_r T_r with learned tokens T_r, so zero weights are the null user."""

    def __init__(self, config: PersonalConfig) -> None:
        super().__init__()
        self.rewards = config.names
        self.table = nn.Parameter(torch.randn(len(config.names), config.num_tokens, config.token_width))

    def forward(self, users: Tensor) -> Tensor:
        """Weights ``[B, R]`` in the order of `rewards` to tokens ``[B, M, W]``."""
        if users.ndim != 2 or users.shape[1] != len(self.rewards):
            raise UserError(
                "A reward vector has one weight per reward.", f"shape {list(users.shape)}", str(self.rewards)
            )
        return torch.einsum("br,rmw->bmw", users.to(self.table.dtype), self.table)

    def vector(self, weights: Mapping[str, float]) -> Tensor:
        """``[1, R]`` from named weights; those left out are 0.

        Raises:
            UserError: an unknown reward.
        """
        if unknown := sorted(set(weights) - set(self.rewards)):
            raise UserError("Unknown reward.", ", ".join(unknown), f"one of {', '.join(self.rewards)}")
        return torch.tensor([[weights.get(name, 0.0) for name in self.rewards]])


ENCODERS: dict[str, type[nn.Module]] = {
    "pair_set": PairSetEncoder,
    "table": TableEncoder,
    "external": ExternalEncoder,
    "reward_vector": RewardVectorEncoder,
}


def make_encoder(config: PersonalConfig) -> nn.Module:
    """The encoder that `config` names, with random weights."""
    return ENCODERS[config.encoder](config)


def null_tokens(config: PersonalConfig) -> Tensor:
    """``[1, W]`` zeros: a user of whom nothing is known, the base model exactly (one token: all zeros attend alike)."""
    return torch.zeros(1, config.token_width)
