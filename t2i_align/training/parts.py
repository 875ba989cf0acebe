"""The parts in which runs differ: what fills batches, what turns them into losses, what held-out pairs go through.

Offline pairs, rollouts, online pairs and users each bring their own; the loop and the run see only these protocols.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.data.provider import PairProvider
from t2i_align.data.sources import has_heldout
from t2i_align.objectives import Objective
from t2i_align.online.provider import OnlinePairs
from t2i_align.personal.build import build_personal
from t2i_align.stepwise import build_stepwise
from t2i_align.training.datasets import offline_provider, provider_options
from t2i_align.training.loop import BatchProvider, StepMaker
from t2i_align.training.step import PairStep


class Resumable(Protocol):
    """Something whose state waits in checkpoints."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run cannot work out; every process must call it."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        ...


class RunProvider(BatchProvider, Resumable, Protocol):
    """What a run asks of a provider beyond batches."""

    @property
    def items(self) -> str:
        """What `num_pairs` counts, in the plural."""
        ...

    @property
    def num_pairs(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Of what batches are made from; another one is another run."""
        ...

    def epoch_of(self, step: int) -> int: ...

    def totals(self, seconds: float) -> dict[str, float]:
        """Running totals to log, such as UNet passes; every process must call it."""
        ...

    def close(self) -> None: ...


class RunStep(StepMaker, Resumable, Protocol):
    """What a run asks of a step beyond losses."""

    def validation_users(self, guided: bool) -> list[tuple[str, AbstractContextManager[None]]]:
        """For whom validation pictures are made: a word for file names, and a context to sample in."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        provider: fills batches.
        step: turns them into losses.
        heldout: provider and step for held-out pairs, which are a data set's, whatever is trained on; None where there
            are none.
    """

    provider: RunProvider
    step: RunStep
    heldout: tuple[PairProvider, PairStep] | None


def is_offline(config: RunConfig) -> bool:
    """Whether the run trains on pairs that lie in ``data.source``."""
    return config.rollout is None and config.online is None


def build_parts(config: RunConfig, backbone: Backbone, objective: Objective, accelerator: Accelerator) -> Parts:
    """The parts that the sections of the configuration ask for.

    Raises:
        UserError: data, prompts, scorers or users that cannot be used.
    """

    def offline(run: RunConfig) -> PairProvider:
        return offline_provider(run, backbone, objective, accelerator)

    def pair_step() -> PairStep:
        return PairStep(backbone, objective, config.seed, config.training.max_train_steps, accelerator)

    def heldout() -> tuple[PairProvider, PairStep] | None:
        if not has_heldout(config.data):
            return None
        return PairProvider(config, backbone, **provider_options(config, accelerator)), pair_step()

    if config.rollout is not None:
        stepwise = build_stepwise(config, config.rollout, backbone, objective, accelerator)
        return Parts(stepwise.provider, stepwise.step, heldout())
    if config.online is not None:
        pairs = OnlinePairs(config, config.online, backbone, accelerator, offline)
        return Parts(pairs, pair_step(), heldout())
    if config.personal is not None:
        own = build_personal(config, config.personal, backbone, objective, accelerator)
        judged = has_heldout(config.data) or config.personal.heldout_users > 0
        return Parts(own.provider, own.step, (own.provider, own.step) if judged else None)
    provider, step = offline(config), pair_step()
    return Parts(provider, step, (provider, step) if has_heldout(config.data) else None)
