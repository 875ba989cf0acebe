"""Judges behind one face: the oracle of the embedded world, or any reward model by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from t2i_align.errors import UserError


class Scorer(Protocol):
    """What the evaluation asks of a judge.

    Attributes:
        name, version: stand beside every score.
        dimensions: what ``score`` returns; the first one is the overall verdict.
    """

    name: str
    version: str
    dimensions: tuple[str, ...]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        """dimension -> ``[N]`` scores, higher is better; NaN where a picture has none."""
        ...


class OracleScorer:
    """Ground truth of the embedded world: overall first, then its dimensions."""

    name: str = "oracle"

    def __init__(self) -> None:
        from t2i_align.shapes.oracle import Oracle

        self._oracle = Oracle()
        self.version = str(getattr(self._oracle, "version", "1"))
        self.dimensions: tuple[str, ...] = ("overall", "semantic", "aesthetic", "detail")

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        """See ``Scorer``."""
        scores = self._oracle.score(list(prompts), list(images))
        return {name: np.asarray(scores[name], dtype=np.float64) for name in self.dimensions}


class RewardModelScorer:
    """A scorer of ``reward_models``: one number per picture, called overall."""

    dimensions: tuple[str, ...] = ("overall",)

    def __init__(self, spec: str, device: str | None) -> None:
        from t2i_align.rewards.scorers import load_scorer

        self.inner = load_scorer(spec, device)
        self.name = str(self.inner.name)
        self.version = str(self.inner.version)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        """See ``Scorer``."""
        return {"overall": np.asarray(self.inner.score(list(prompts), list(images)), dtype=np.float64)}


BUILT_IN: dict[str, Callable[[], Scorer]] = {"oracle": OracleScorer}
"""Judges that are not reward models."""


def check_scorers(specs: Iterable[str | Scorer]) -> None:
    """Whether there are scorers of these names, before anything is sampled for them; nothing is loaded or run.

    Args:
        specs: see ``open_scorer``.

    Raises:
        UserError: no such scorer, with the nearest name that there is.
    """
    from t2i_align.rewards.scorers import check_scorer_words

    words = [spec for spec in specs if isinstance(spec, str)]
    check_scorer_words([word for word in words if word not in BUILT_IN], one_each=True)


def open_scorer(spec: str | Scorer, device: str | None = None) -> Scorer:
    """A ready scorer from its name.

    Args:
        spec: ``oracle``; ``taste:ID[:TASTES]``, a user of the embedded world; a reward model's name, with a condition
            (``mps:aesthetic``) or weights of your own (``name=checkpoint``); ``file.py:function``; a .yaml file with
            one scorer; or a scorer.
        device: for reward models.

    Raises:
        UserError: no such scorer, or a checkpoint that cannot be used.
    """
    if not isinstance(spec, str):
        return spec
    name, _, checkpoint = spec.partition("=")
    if name in BUILT_IN:
        if checkpoint:
            raise UserError(f"The scorer {name} takes no checkpoint.", spec, f"ask for {name} alone")
        return BUILT_IN[name]()
    from reward_models.errors import RewardModelError

    try:
        return RewardModelScorer(spec, device)
    except RewardModelError as error:
        fix = error.fix or f"use {', '.join(BUILT_IN)} or a reward model"
        raise UserError(f"The scorer {name} cannot be used: {error.what}.", error.found, fix) from error
