"""A start for the heads of the shapes world: towers that see what its oracle measures, before any preference.

The oracle's overall score of picture x for prompt p is a dot product. With s(x) the degrees to which every value of
every attribute is the case, a(p) the values that p asks for (n of them, as 0 and 1), and s_aes, s_det the caption-free
dimensions,

    overall = [a(p) / 2n, 1/4, 1/4] . [s(x), s_aes(x), s_det(x)] = t(p) . v(x).

So t and v, each padded by one coordinate of its own to a constant norm, are unit features whose cosine orders
pictures as the oracle does, and both towers of a CLIP can learn theirs from rendered scenes alone, by regression.
What a model's own samples look like, and what is preferred among them, is left to training on pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from reward_models import load
from reward_models.checkpoints import write_network
from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from reward_models.mps import MPSScorer
from reward_models.preprocess import Preprocessor
from reward_models.towers import unit
from reward_models.training.config import RewardTrainingConfig
from reward_models.training.loop import starting_scorer
from t2i_align.data.sources import open_table
from t2i_align.errors import UserError
from t2i_align.rewards.pairs import everything
from t2i_align.rewards.rendered import draw_scene
from t2i_align.rewards.training import PretrainingConfig
from t2i_align.shapes.measure import measure
from t2i_align.shapes.oracle import WEIGHTS, aesthetic, attribute_scores, detail
from t2i_align.shapes.world import VALUES, parse_caption

FEATURES = [(name, value) for name, values in VALUES.items() for value in values]
WIDTH = len(FEATURES) + 2
PICTURE_NORM = 3.0  # above every |v|: at most one value of an attribute is fully the case
PROMPT_NORM = 0.65  # above every |t|: sqrt(1/4 + 1/16 + 1/16) for a single attribute
WARM_UP = 100
LOGGED_EVERY = 100
SHIFT = 4  # pixels


def run(
    training: RewardTrainingConfig,
    config: PretrainingConfig,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a scorer whose towers have learnt to see; returns the folder.

    Args:
        training: names the scorer, its sizes and the seed.
        folder: new folder, a checkpoint for training on pairs.

    Raises:
        UserError: the feature space is too small.
    """
    if folder.exists():
        raise UserError("The checkpoint exists already.", str(folder), "delete it, or train on pairs from it")
    scorer = starting_scorer(training.model_copy(update={"checkpoint": None}))
    if not isinstance(scorer, (ClipLikeScorer, MPSScorer)):
        raise RewardModelError("this scorer cannot be trained", found=scorer.name)
    tower = scorer.model.tower if isinstance(scorer, MPSScorer) else scorer.model
    if config.fusion_steps and not (isinstance(scorer, MPSScorer) and training.conditions and training.mask_threshold):
        raise UserError(
            "fusion_steps train the fusion module of an MPS, for masks of a given threshold.",
            f"scorer {scorer.name}, conditions {training.conditions}, mask_threshold {training.mask_threshold}",
            "leave pretraining.fusion_steps out, or set scorer: mps, conditions and mask_threshold",
        )
    with torch.no_grad():
        size = tower.encode_image(torch.zeros(1, 3, scorer.preprocessor.size, scorer.preprocessor.size)).shape[-1]
    if size < WIDTH + 2:
        raise UserError(
            "The feature space is too small for what the oracle measures.",
            f"{size} dimensions, {WIDTH + 2} are needed",
            "raise projection_dim (embed_dim of an open_clip model)",
        )
    if config.towers is not None:
        take(tower, config.towers)
    else:
        _teach(tower, scorer, size, config, training.seed, progress)
    if config.logit_scale is not None:  # cosines are regressed, and no regression says what one is worth in logits
        with torch.no_grad():
            tower.logit_scale.fill_(math.log(config.logit_scale))
    if isinstance(scorer, MPSScorer) and config.fusion_steps:
        from t2i_align.rewards.fusion_start import teach

        teach(scorer, training, config, progress)
    return write_network(scorer.model, scorer.tokenise, folder, torch.float32)


def take(tower: torch.nn.Module, folder: str) -> None:
    """Copy the weights of another start.

    Raises:
        UserError: it has other sizes.
    """
    other = load("pickscore", folder, "cpu")
    assert isinstance(other, ClipLikeScorer)
    try:
        tower.load_state_dict(other.model.state_dict())
    except RuntimeError as error:
        found = str(error).splitlines()[1].strip()
        raise UserError(
            "The start to take the towers from has other sizes.", found, "give both the same model_config"
        ) from error


def _teach(
    tower: torch.nn.Module,
    scorer: ClipLikeScorer | MPSScorer,
    size: int,
    config: PretrainingConfig,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Both stages: rendered pictures, then a model's samples among them."""
    more = samples(config.samples, config.copies, seed)  # first: a wrong address shows before the work
    pictures, captions = render(config.pictures, seed, progress)
    texts = scorer.tokenise(captions), asked(captions, size)
    images = inputs_of(pictures, scorer.preprocessor), seen(pictures, size)
    fit(tower, images, texts, config, config.steps, config.learning_rate, seed, progress)
    if more:
        both = (
            torch.cat([images[0], inputs_of(more, scorer.preprocessor)]),
            torch.cat([images[1], seen(more, size)]),
        )
        for turn in range(config.sample_rounds):
            rate = config.learning_rate / 2 ** (turn + 1)
            fit(tower, both, texts, config, config.sample_steps, rate, seed + 1 + turn, progress)


def inputs_of(pictures: Sequence[Image.Image], preprocessor: Preprocessor) -> Tensor:
    """Preprocessed pictures ``[N, 3, S, S]``."""
    inputs = torch.empty(len(pictures), 3, preprocessor.size, preprocessor.size, dtype=torch.float16)
    for row, picture in zip(inputs, pictures, strict=True):  # halves and no second copy: this is most of the memory
        row.copy_(preprocessor(picture))
    return inputs


def samples(sources: Sequence[str], copies: int, seed: int) -> list[Image.Image]:
    """Pictures of pair sources, each followed by `copies` - 1 changed ones; the oracle measures what it sees."""
    found = []
    for number, source in enumerate(sources):
        pairs = everything(open_table(source))
        for index in range(len(pairs)):
            rng = np.random.default_rng([seed, 8, number, index])
            for data in pairs.images(index):
                picture = decode_image(data)
                found += [picture, *(changed(picture, rng) for _ in range(copies - 1))]
    return found


def changed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture mirrored, turned, moved by a few pixels, blurred or sharpened."""
    pixels = np.asarray(picture)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.3:
        pixels = np.rot90(pixels, int(rng.integers(1, 4)))
    column, row = rng.integers(0, 2 * SHIFT + 1, 2)
    wide = np.pad(pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    moved = Image.fromarray(wide[row : row + pixels.shape[0], column : column + pixels.shape[1]].copy())
    coin = rng.random()
    if coin < 0.25:
        return moved.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if coin < 0.4:
        return moved.filter(ImageFilter.UnsharpMask(1, int(rng.integers(20, 100)), 0))
    return moved


def render(
    count: int, seed: int, progress: Callable[[str, int, int], None] | None = None
) -> tuple[list[Image.Image], list[str]]:
    """Rendered pictures with flaws, and as many captions."""
    drawn = []
    for number in range(count):
        drawn.append(draw_scene(np.random.default_rng([seed, 7, number])))
        if progress is not None and (number + 1) % 500 == 0:
            progress("pictures", number + 1, count)
    return [picture for _, picture in drawn], [caption for caption, _ in drawn]


def degrees(pictures: Sequence[Image.Image]) -> np.ndarray:
    """What the oracle measures, ``[N, WIDTH]`` in [0, 1]: [s, s_aes, s_det]."""
    measured = measure(pictures)
    scores = attribute_scores(measured)
    columns = [*(scores[name] for name in VALUES), aesthetic(measured)[:, None], detail(measured)[:, None]]
    return np.concatenate(columns, axis=1)


def seen(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """Targets ``[N, size]`` of the image tower: unit vectors along [s, s_aes, s_det, padding, 0, ...]."""
    return _padded(degrees(pictures), size, WIDTH, PICTURE_NORM)


def wanted(captions: Sequence[str]) -> np.ndarray:
    """What every measured degree counts for overall, ``[N, WIDTH]``: [a / 2n, 1/4, 1/4]."""
    weights = np.zeros((len(captions), WIDTH))
    weights[:, -2:] = WEIGHTS["aesthetic"], WEIGHTS["detail"]
    for row, text in enumerate(captions):
        attributes = parse_caption(text)
        for attribute in attributes.items():
            weights[row, FEATURES.index(attribute)] = WEIGHTS["semantic"] / len(attributes)
    return weights


def asked(captions: Sequence[str], size: int) -> Tensor:
    """Targets ``[N, size]`` of the text tower: unit vectors along [a / 2n, 1/4, 1/4, 0, padding, 0, ...]."""
    return _padded(wanted(captions), size, WIDTH + 1, PROMPT_NORM)


def _padded(values: np.ndarray, size: int, column: int, norm: float) -> Tensor:
    """Rows of norm 1: the values over `norm`, and in `column` what is missing."""
    result = np.zeros((len(values), size))
    result[:, : values.shape[1]] = values
    result[:, column] = np.sqrt(np.maximum(norm**2 - (values**2).sum(axis=1), 0.0))
    return torch.from_numpy((result / np.linalg.norm(result, axis=1, keepdims=True)).astype(np.float32))


def fit(
    tower: torch.nn.Module,
    images: tuple[Tensor, Tensor],
    texts: tuple[Tensor, Tensor],
    config: PretrainingConfig,
    steps: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Regress both towers' unit features on their targets, in place; deterministic in the seed.

    Args:
        images, texts: (inputs, targets); pictures and prompts are drawn independently.
    """
    tower.requires_grad_(True).train().to(memory_format=torch.channels_last)  # a third faster through convolutions
    weights = importance(texts[1])
    optimizer = torch.optim.AdamW(tower.parameters(), lr=learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate
        (picture, seen_there), (prompt, asked_there) = (
            _draw(part, config.batch_size, generator) for part in (images, texts)
        )
        loss = (weights * (unit(tower.encode_image(picture.float())) - seen_there).square()).sum(-1).mean()
        loss = loss + (unit(tower.encode_text(prompt)) - asked_there).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if progress is not None and (step + 1) % LOGGED_EVERY == 0:
            progress("pretraining steps", step + 1, steps)
    tower.requires_grad_(False).eval()


def importance(asked_there: Tensor) -> Tensor:
    """Weight `[size]` of every coordinate of a picture's target, 1 for the largest: how much of a score hangs on it.

    The root mean square over prompts [N, size] of what multiplies it; what multiplies nothing weighs as the least.
    """
    size = asked_there.square().mean(dim=0).sqrt()
    size[size == 0] = size[size > 0].min()
    return size / size.max()


def _draw(part: tuple[Tensor, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(part[0]), (count,), generator=generator)
    return part[0][rows], part[1][rows]
