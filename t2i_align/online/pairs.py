"""One stage: sample pictures with the policy as it is, judge them, write ordinary pairs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from reward_models.files import complete_file
from reward_models.images import decode_image
from reward_models.scorer import BaseScorer
from t2i_align.evaluation.sampling import sample_images
from t2i_align.online.config import OnlineConfig
from t2i_align.randomness import address_hash

SEEDS = 2**31  # what a torch.Generator of any diffusers pipeline takes


@dataclass(frozen=True)
class Task:
    """One prompt of a refresh.

    Attributes:
        name: unique in the run; the pair's id, and the address of its seeds.
        prompt: the caption.
        winner: encoded picture to be preferred (sopo), or None.
    """

    name: str
    prompt: str
    winner: bytes | None = None


@dataclass(frozen=True)
class Made:
    """What became of the tasks: accepted pairs of all, and sums over all tasks.

    Attributes:
        pairs: rows in the Pick-a-Pic schema.
        tasks: how many there were.
        score: sum of the mean scores of the own pictures, in the scorer's units.
        gap: sum of S_w - S_l in logits.
    """

    pairs: list[dict[str, Any]]
    tasks: int
    score: float
    gap: float


def make_pairs(
    config: OnlineConfig,
    pipeline: Any,
    scorer: BaseScorer,
    tasks: Sequence[Task],
    seed: int,
    resolution: int,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Sample ``config.candidates`` pictures per task and keep the pairs whose gap exceeds the threshold.

    Every picture depends on (seed, task, candidate) and the weights alone.

    Args:
        config: the online section.
        pipeline: samples from the policy; left as it was found.
        scorer: judges pictures.
        tasks: prompts of this process.
        seed: of the run.
        resolution: side of the pictures in pixels.
        progress: called with pictures done and their number.
    """
    count, total = config.candidates, len(tasks) * config.candidates
    prompts = [task.prompt for task in tasks for _ in range(count)]
    seeds = [address_hash(seed, "online", task.name, k) % SEEDS for task in tasks for k in range(count)]
    pictures: list[Image.Image] = []
    for start in range(0, total, config.pictures_per_pass):
        rows = slice(start, start + config.pictures_per_pass)
        pictures += sample_images(
            pipeline,
            prompts[rows],
            seeds[rows],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            height=resolution,
            width=resolution,
            batch_size=config.pictures_per_pass,
        )
        if progress is not None:
            progress(len(pictures), total)
    scores = _scores(scorer, prompts, pictures, config.pictures_per_pass).reshape(len(tasks), count)
    winners = _winner_scores(scorer, tasks, config.pictures_per_pass)
    pairs, gap = [], 0.0
    for index, task in enumerate(tasks):
        own = scores[index]
        worst = int(own.argmin())
        best = None if task.winner is not None else int(own.argmax())
        high = float(own[best]) if best is not None else float(winners[index])
        difference = high - float(own[worst])
        gap += scorer.preference_scale * difference
        if _accepted(config, scorer.preference_scale * difference, float(own[worst])):
            first = task.winner if best is None else png(pictures[index * count + best])
            label = _label(config, scorer.preference_scale * difference)
            assert first is not None
            pairs.append(_row(task, first, png(pictures[index * count + worst]), label, {scorer.name: difference}))
    return Made(pairs, len(tasks), float(scores.mean(1).sum()), gap)


def _scores(scorer: BaseScorer, prompts: list[str], pictures: Sequence[Any], batch_size: int) -> Tensor:
    return scorer.score(prompts, list(pictures), batch_size=batch_size).float()


def _winner_scores(scorer: BaseScorer, tasks: Sequence[Task], batch_size: int) -> Tensor:
    """Scores ``[N]`` of the given winners; nothing where winners are the policy's own."""
    given = [(task.prompt, decode_image(task.winner)) for task in tasks if task.winner is not None]
    if not given:
        return torch.zeros(0)
    return _scores(scorer, [prompt for prompt, _ in given], [picture for _, picture in given], batch_size)


def _accepted(config: OnlineConfig, logit: float, loser: float) -> bool:
    """Exact ties and reversed pairs are never accepted."""
    if config.loser_below is not None and loser >= config.loser_below:
        return False
    return logit > 0 and math.tanh(logit / 2) > config.threshold


def _label(config: OnlineConfig, logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if config.soft_labels else 1.0


def _row(task: Task, first: bytes, second: bytes, label: float, margins: dict[str, float]) -> dict[str, Any]:
    return {
        "ranking_id": task.name,
        "caption": task.prompt,
        "jpg_0": first,
        "jpg_1": second,
        "label_0": label,
        "label_1": 1.0 - label,
        "has_label": True,
        "margins": margins,
    }


def png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(rows: Sequence[dict[str, Any]], scorer: str, path: Path) -> None:
    """Pairs as a parquet file in the Pick-a-Pic schema, complete or not at all; may be empty."""
    schema = pa.schema(
        [
            ("ranking_id", pa.string()),
            ("caption", pa.string()),
            ("jpg_0", pa.binary()),
            ("jpg_1", pa.binary()),
            ("label_0", pa.float64()),
            ("label_1", pa.float64()),
            ("has_label", pa.bool_()),
            ("margins", pa.struct([(scorer, pa.float64())])),
        ]
    )
    with complete_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)
