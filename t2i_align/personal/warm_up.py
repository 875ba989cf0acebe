"""What the encoder of pairs learns before the denoiser is involved: to foresee the user's other answers.

    P(first preferred) = sigmoid(<U vec(E_u), x_first - x_second>)

with the features x of the query's pictures and a matrix U that is thrown away afterwards. It takes seconds: no picture
is denoised. A preference objective alone gives the encoder almost no signal at first, because everybody's tastes cancel
in its gradient until the tokens tell users apart.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_align.personal.pair_set import PairSet
from t2i_align.personal.users import Answered
from t2i_align.randomness import addressed_generator

logger = logging.getLogger(__name__)

BATCH = 128
LEARNING_RATE = 2e-3
SCALE = 10.0  # differences of unit vectors are small; this brings margins to the order of 1


def warm_up(encoder: nn.Module, answered: Answered, support: int, steps: int, seed: int) -> float:
    """Train `encoder` in place; returns the accuracy on the last quarter of the steps' queries.

    Every query is asked before it is learnt from, with other answers of the user shown, of other prompts.

    Args:
        encoder: a `PairSetEncoder`, on any device.
        answered: training pairs with their features.
        support: pairs shown per query.
        steps: of Adam, with `BATCH` queries each.
        seed: of the run.
    """
    device = next(encoder.parameters()).device
    rows = [row for of_user in answered.pairs.values() for row in of_user if answered.labels[row] != 0.5]
    config = encoder.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        readout = nn.Linear(config.num_tokens * config.token_width, config.features, bias=False).to(device)
    parameters = [*encoder.parameters(), *readout.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    right: list[float] = []
    for step in range(steps):
        generator = addressed_generator(seed, "warm_up", step)
        chosen = torch.randint(len(rows), (BATCH,), generator=generator).tolist()
        margins = _margins(encoder, readout, answered, [rows[place] for place in chosen], support, generator, device)
        loss = F.softplus(-margins).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step >= steps * 3 // 4:
            right.append((margins > 0).float().mean().item())
    optimiser.zero_grad(set_to_none=True)  # or the first step of the run would add them to its own
    accuracy = sum(right) / max(len(right), 1)
    logger.info("the encoder foresees %.0f %% of the users' other answers", 100 * accuracy)
    return accuracy


def _margins(
    encoder: nn.Module,
    readout: nn.Linear,
    answered: Answered,
    rows: list[int],
    support: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """``[B]``, positive where the winner of the query is foreseen."""
    users = [answered.show(answered.others(row), support, generator) for row in rows]
    tokens = encoder(PairSet.padded(users).to(device))
    wins = [bool(answered.labels[row] > 0.5) for row in rows]
    winner, loser, _ = answered.features.shown(rows, wins)
    away = F.normalize(winner.float(), dim=-1) - F.normalize(loser.float(), dim=-1)
    return (readout(tokens.flatten(1)) * away.to(device)).sum(-1) * SCALE
