"""A new user of a table: the combination of its users that explains the answers best, by the run's own objective."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import load_backbone
from t2i_align.config.loading import load_config
from t2i_align.config.schema import RunConfig
from t2i_align.data.pair_source import PairSource
from t2i_align.errors import UserError
from t2i_align.objectives import resolve
from t2i_align.personal.adapter import UserAdapter
from t2i_align.personal.crowd import Pairs
from t2i_align.personal.fitting import FittedUser, fit_user
from t2i_align.personal.provider import UserPairs
from t2i_align.personal.step import UserOff
from t2i_align.personal.support import majorities
from t2i_align.training.step import Draws, PairStep

logger = logging.getLogger(__name__)

STEPS = 100
BATCH = 8  # pairs per step; every step draws new noise and timesteps


class OneUser(UserPairs):
    """The pairs of one user; see `UserPairs`.

    Args:
        kept: ids of the pairs.
    """

    def __init__(self, *args: Any, kept: frozenset[str], **options: Any) -> None:
        self._kept = kept
        super().__init__(*args, **options)

    def _crowds(self) -> tuple[Pairs, Pairs]:
        rows = [row for row, pair_id in enumerate(self.source.pair_ids()) if pair_id in self._kept]
        return {"user": rows}, {}


def fit_to_table(
    run: str | Path, adapter: UserAdapter, address: str, given: PairSource, steps: int | None = None
) -> FittedUser:
    """Find a new user's tokens with everything else frozen; minutes on a CPU at the size of the built-in world.

    Args:
        run: run or export folder of the adapter: its base, its objective and its geometry of pictures are used.
        adapter: of the run, encoder table.
        address: source of the answers.
        given: the user's decided answers in it; repeats count once, contradictions as the majority has it.
        steps: of Adam; None is `STEPS`.

    Raises:
        UserError: answers that cancel each other.
    """
    steps = steps or STEPS
    kept = majorities(given, list(range(len(given))))
    if not kept:
        raise UserError(
            "The user's answers cancel each other: there is no taste in them.",
            f"{address}: {len(given)} answers",
            "ask about other pairs, or use the null user",
        )
    if len(kept) < len(given):
        logger.warning("of %d answers %d distinct pairs remain", len(given), len(kept))
    config = _config(Path(run), address)
    accelerator = Accelerator()
    backbone = load_backbone(config.model, str(accelerator.device), torch.float32)
    backbone.unet.requires_grad_(False)
    adapter.to(accelerator.device).requires_grad_(False)
    adapter.install(backbone.unet)
    backbone.use_reference(UserOff(backbone.unet, adapter))
    objective = resolve(config.objective)
    assert config.personal is not None
    ids = given.pair_ids()
    pairs = OneUser(
        config,
        config.personal,
        backbone,
        batch_size=min(BATCH, len(kept)),
        accumulation=1,
        device=accelerator.device,
        needs=objective.data_needs,
        margin=objective.margin,
        kept=frozenset(ids[row] for row in kept),
    )
    step = PairStep(backbone, objective, config.seed, steps, accelerator)
    number = itertools.count()

    def loss(tokens: Tensor) -> Tensor:
        batch = pairs.batch(now := next(number), 0)
        with adapter.condition(tokens.expand(len(batch), -1, -1), tiled=True):
            return step.loss(batch, Draws("train", 0), now)[0].loss.mean()

    fitted = fit_user(adapter.encoder.get_parameter("table"), loss, steps)
    quarter = max(1, steps // 4)
    before, after = (sum(part) / quarter for part in (fitted.losses[:quarter], fitted.losses[-quarter:]))
    logger.info("fitted to %d pairs: mean loss of the first quarter %.4f, of the last %.4f", len(kept), before, after)
    return fitted


def _config(run: Path, address: str) -> RunConfig:
    config = load_config(run / "config.yaml", [])
    answers = {"source": address, "heldout_source": None, "heldout_fraction": 0.0, "cache_dir": None}
    answers |= {"max_pairs": None, "shuffle_labels": False, "proportion_empty_prompts": 0.0}
    data = config.data.model_copy(update={**answers, "format": "auto", "split": "train", "columns": {}})
    return config.model_copy(update={"data": data})
