"""A start for the fusion module of an MPS of the shapes world, whose towers see already (`pretraining`).

All that tells the fusion module which condition it works under is which of the prompt's words it may read. With CLIP's
own text tower the masks of different conditions differ by themselves; with a small one, trained on captions alone, they
hardly do, and then every condition scores alike. So two things are learnt here, one after the other:

words
    A prompt token passes the mask of a condition if and only if the condition's text names it. A condition that
    shares no word with any caption lets everything through. With r the ratio of `MPSNetwork.token_ratios`, the loss
    is the cross entropy of sigmoid((r - threshold) / `SOFTNESS`), kept and dropped tokens weighing alike.
fusion
    Under every condition, score(x) - score(y) = `SCALE` (d(x) - d(y)) with d that dimension of the oracle, by least
    squares, each dimension divided by its own variance. Half of the pairs are samples of one prompt, half any two
    drawn pictures. The towers are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reward_models.images import decode_image
from reward_models.mps import MPSNetwork, MPSScorer, set_mask_threshold
from reward_models.towers import unit
from reward_models.training.config import RewardTrainingConfig
from t2i_align.data.sources import open_table
from t2i_align.errors import UserError
from t2i_align.rewards import pretraining
from t2i_align.rewards.pairs import everything
from t2i_align.rewards.training import PretrainingConfig
from t2i_align.shapes.assets import prompts
from t2i_align.shapes.oracle import DIMENSIONS, WEIGHTS

SOFTNESS = 0.1  # of the mask, in ratios
SCALE = 20.0  # logits per point of the oracle
CAPTIONS_PER_STEP = 64
PAIRS_PER_STEP = 16
WORD_STEPS = 600
ENCODED_AT_ONCE = 256

Progress = Callable[[str, int, int], None]


class Pairs(NamedTuple):
    """Pairs of pictures as the fusion module and the oracle see them."""

    tokens: Tensor  # [N, 2, I, D] of the image tower, float16
    degrees: Tensor  # [N, 2, WIDTH] what the oracle measures
    ids: Tensor  # [N, L] the prompt
    wanted: Tensor  # [N, WIDTH] what it asks for

    def some(self, rows: Tensor) -> Pairs:
        """The pairs `rows`."""
        return Pairs(*(part[rows] for part in self))


def teach(
    scorer: MPSScorer, training: RewardTrainingConfig, config: PretrainingConfig, progress: Progress | None = None
) -> float:
    """Both stages, in place; returns the share of prompt tokens that the masks treat as they should.

    Args:
        training: has the conditions' texts by dimension (`overall`, or one of the oracle's), the mask's threshold and
            the seed.

    Raises:
        UserError: a dimension that the oracle does not have.
    """
    conditions, seed = training.conditions or {}, training.seed
    unknown = sorted(set(conditions) - {"overall", *DIMENSIONS})
    if unknown:
        known = ", ".join(("overall", *DIMENSIONS))
        raise UserError("The oracle has no such dimension.", ", ".join(unknown), f"choose from: {known}")
    set_mask_threshold(scorer.model, training.mask_threshold)
    scorer.model.conditions |= conditions
    sampled = sample_pairs(config.samples)
    drawn, captions = pretraining.render(config.pictures - config.pictures % 2, seed, progress)
    drawn_pairs = (captions[::2], drawn)
    right = teach_words(scorer, list(conditions.values()), captions, config.learning_rate, seed, progress)
    parts = [encoded(scorer, *part) for part in (sampled, drawn_pairs) if part[0]]
    teach_fusion(scorer, conditions, parts, config, seed, progress)
    return right


def sample_pairs(sources: Sequence[str]) -> tuple[list[str], list[Image.Image]]:
    """Captions ``N`` and pictures ``2N`` of pair sources, less those of the packaged held-out prompts."""
    held_out = frozenset(prompts("heldout"))
    captions: list[str] = []
    pictures: list[Image.Image] = []
    for source in sources:
        pairs = everything(open_table(source))
        for index, caption in enumerate(pairs.captions()):
            if caption not in held_out:
                captions.append(caption)
                pictures += [decode_image(data) for data in pairs.images(index)]
    return captions, pictures


def named_words(ids: Tensor, condition: Tensor, start: int, end: int) -> Tensor:
    """Which prompt tokens ``[P, L]`` a condition's tokens ``[L]`` name, bool; all of them if it names none at all."""
    words = condition[(condition != start) & (condition != end)]
    named = torch.isin(ids, words)
    return named if named.any() else torch.ones_like(named)


def teach_words(
    scorer: MPSScorer, texts: list[str], captions: list[str], learning_rate: float, seed: int, progress: Progress | None
) -> float:
    """The first stage; the end token goes on meaning what it meant. Returns the share of tokens masked right."""
    network, tower = scorer.model, scorer.model.tower
    ids, condition_ids = scorer.tokenise(captions), scorer.tokenise(texts)
    ends = (int(tower.config.text_config.bos_token_id), int(tower.config.text_config.eos_token_id))
    named = torch.stack([named_words(ids, condition, *ends) for condition in condition_ids])
    meant = unit(_end_tokens(scorer, ids))
    learnt = [*tower.clip.text_model.parameters(), *tower.clip.text_projection.parameters()]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learnt, lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(WORD_STEPS):
        _set_rate(optimizer, learning_rate, step, WORD_STEPS)
        rows = torch.randint(len(ids), (CAPTIONS_PER_STEP,), generator=generator)
        tokens, end = tower.encode_text_tokens(ids[rows])
        loss = 10 * (unit(end) - meant[rows]).square().sum(-1).mean()
        for condition, kept in zip(tower.encode_text_tokens(condition_ids)[0], named, strict=True):
            logits = (network.token_ratios(tokens, condition) - network.mask_threshold) / SOFTNESS
            loss = loss + _balanced(logits, kept[rows])
        _step(optimizer, loss, learnt)
        _tell(progress, "words", step, WORD_STEPS)
    tower.requires_grad_(False)
    right = []
    with torch.no_grad():
        conditions = tower.encode_text_tokens(condition_ids)[0]
        for start in range(0, len(ids), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            tokens = tower.encode_text_tokens(ids[part])[0]
            for condition, kept in zip(conditions, named, strict=True):
                right.append((network.keep_tokens(tokens, condition) == kept[part]).float().mean())
    return float(torch.stack(right).mean())


def _balanced(logits: Tensor, kept: Tensor) -> Tensor:
    """Cross entropy with kept and dropped tokens weighing alike."""
    losses = F.binary_cross_entropy_with_logits(logits, kept.float(), reduction="none")
    parts = [losses[side].mean() for side in (kept, ~kept) if side.any()]
    return torch.stack(parts).mean()


@torch.no_grad()
def _end_tokens(scorer: MPSScorer, ids: Tensor) -> Tensor:
    return torch.cat([scorer.model.tower.encode_text_tokens(part)[1] for part in ids.split(ENCODED_AT_ONCE)])


@torch.no_grad()
def encoded(scorer: MPSScorer, captions: list[str], pictures: list[Image.Image]) -> Pairs:
    """Pairs of pictures (2i and 2i + 1), encoded by the image tower and measured by the oracle."""
    tokens = []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        inputs = torch.stack([scorer.preprocessor(picture) for picture in pictures[start : start + ENCODED_AT_ONCE]])
        tokens.append(scorer.model.tower.encode_image_tokens(inputs).half())
    degrees = torch.from_numpy(pretraining.degrees(pictures).astype(np.float32))
    wanted = torch.from_numpy(pretraining.wanted(captions).astype(np.float32))
    both = (len(captions), 2)
    return Pairs(torch.cat(tokens).unflatten(0, both), degrees.unflatten(0, both), scorer.tokenise(captions), wanted)


def teach_fusion(
    scorer: MPSScorer,
    conditions: dict[str, str],
    parts: Sequence[Pairs],
    config: PretrainingConfig,
    seed: int,
    progress: Progress | None,
) -> None:
    """The second stage."""
    network = scorer.model
    learnt = list(network.cross_model.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(learnt, lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        texts = network.tower.encode_text_tokens(scorer.tokenise(list(conditions.values())))[0]
    variances = [gaps(list(conditions), part).square().mean(0) for part in parts]
    for step in range(config.fusion_steps):
        _set_rate(optimizer, config.learning_rate, step, config.fusion_steps)
        loss = torch.zeros(())
        for part, variance in zip(parts, variances, strict=True):
            pairs = part.some(torch.randint(len(part.ids), (PAIRS_PER_STEP // len(parts),), generator=generator))
            errors = margins(network, texts, pairs) / SCALE - gaps(list(conditions), pairs)
            loss = loss + (errors.square() / variance).mean()
        _step(optimizer, loss, learnt)
        _tell(progress, "fusion steps", step, config.fusion_steps)
    network.cross_model.requires_grad_(False)


def margins(network: MPSNetwork, texts: Tensor, pairs: Pairs) -> Tensor:
    """Score differences ``[N, C]`` under conditions `texts` ``[C, L, D]``."""
    with torch.no_grad():
        tokens, end = (torch.cat([part, part]) for part in network.tower.encode_text_tokens(pairs.ids))
    pictures = pairs.tokens.transpose(0, 1).flatten(0, 1).float()  # all first ones, then all second ones
    columns = []
    for text in texts:
        first, second = network(tokens, end, network.keep_tokens(tokens, text), pictures).chunk(2)
        columns.append(first - second)
    return torch.stack(columns, dim=1)


def gaps(dimensions: Sequence[str], pairs: Pairs) -> Tensor:
    """How much better the first picture is in each dimension by the oracle, ``[N, C]``."""
    parts = pairs.wanted * (pairs.degrees[:, 0] - pairs.degrees[:, 1])  # of the overall score
    of = {
        "overall": parts.sum(1),
        "semantic": parts[:, :-2].sum(1) / WEIGHTS["semantic"],
        "aesthetic": parts[:, -2] / WEIGHTS["aesthetic"],
        "detail": parts[:, -1] / WEIGHTS["detail"],
    }
    return torch.stack([of[name] for name in dimensions], dim=1)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    factor = min(1.0, (step + 1) / pretraining.WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = factor * rate


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, learnt: list[torch.nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learnt, 1.0)
    optimizer.step()


def _tell(progress: Progress | None, what: str, step: int, steps: int) -> None:
    if progress is not None and (step + 1) % pretraining.LOGGED_EVERY == 0:
        progress(what, step + 1, steps)
