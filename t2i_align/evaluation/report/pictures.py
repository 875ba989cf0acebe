"""Which pictures the report shows, and how they get into one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from t2i_align.evaluation.manifest import read_manifest
from t2i_align.evaluation.results import Evaluation

LARGEST_SIDE = 512  # larger pictures are embedded smaller and as WebP
PLAIN = 12  # cards of the first prompts
MANY, FEW = 12, 4  # cards of wins and of losses: of the only model on trial, of each of several


@dataclass(frozen=True)
class Shown:
    """One model's picture: data URI (None where it cannot be decoded), score and scores by dimension."""

    model: str
    uri: str | None
    score: float | None
    scores: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Card:
    """One prompt and seed, all models: the baseline first, then the model on trial.

    Attributes:
        difference: of the primary score, model on trial minus baseline; None where one is missing.
    """

    prompt: str
    prompt_index: int
    seed: int
    pictures: tuple[Shown, ...]
    difference: float | None


@dataclass(frozen=True)
class Gallery:
    """A titled group of cards; on cards of ``everyone`` all models are seen at once, on others the first two."""

    key: str
    title: str
    note: str
    cards: tuple[Card, ...]
    everyone: bool = False


def galleries(evaluation: Evaluation, models: Sequence[str]) -> list[Gallery]:
    """Best wins and worst losses of every model on trial against the baseline, and the first prompts unchosen."""
    several = len(models) > 1
    uris: dict[Path, str | None] = {}
    draws = evaluation.scores.shape[1]
    first = [prompt * draws for prompt in range(min(PLAIN, evaluation.scores.shape[0]))]
    plain = Gallery(
        "plain",
        "Not chosen",
        "The first prompts of the set, in order.",
        _Maker(evaluation, models[0], uris).cards(first),
        several,
    )
    chosen = [
        gallery
        for model in models
        for gallery in _wins_and_losses(evaluation, model, _Maker(evaluation, model, uris), several)
    ]
    return [plain, *chosen] if several else [*chosen, plain]


def _wins_and_losses(evaluation: Evaluation, model: str, maker: _Maker, several: bool) -> list[Gallery]:
    scorer, dimension = evaluation.primary
    scores = evaluation.scores.matrix(model, scorer, dimension)
    flat = (scores - evaluation.scores.matrix(evaluation.baseline, scorer, dimension)).ravel()
    order = np.argsort(np.where(np.isnan(flat), 0.0, flat), kind="stable")
    usable = int(np.count_nonzero(~np.isnan(flat)))
    gains = [int(i) for i in order[::-1] if flat[i] > evaluation.tolerance]
    losses = [int(i) for i in order if flat[i] < -evaluation.tolerance]
    what, many = f"by {scorer} {dimension}", FEW if several else MANY
    key, best, worst = (
        (f"-{model}", f"{model}: best wins", f"{model}: worst losses") if several else ("", "Best wins", "Worst losses")
    )
    return [
        Gallery(
            f"wins{key}",
            best,
            f"{len(gains)} of {usable} pictures improved {what}.",
            maker.cards(gains[:many]),
        ),
        Gallery(
            f"losses{key}",
            worst,
            f"{len(losses)} of {usable} pictures got worse {what}.",
            maker.cards(losses[:many]),
        ),
    ]


class _Maker:
    """Builds cards, encoding each picture once."""

    def __init__(self, evaluation: Evaluation, model: str, uris: dict[Path, str | None]) -> None:
        self._evaluation = evaluation
        others = [name for name in evaluation.models if name not in (evaluation.baseline, model)]
        self._models = [evaluation.baseline, model, *others]
        self._files = {
            name: {(p.prompt_index, p.draw): p for p in read_manifest(evaluation.folder / name)}
            for name in self._models
        }
        self._uris = uris  # encoded pictures, shared between makers

    def cards(self, indices: list[int]) -> tuple[Card, ...]:
        """Cards of flat ``prompt * draws + draw`` indices."""
        draws = self._evaluation.scores.shape[1]
        return tuple(self._card(*divmod(index, draws)) for index in indices)

    def _card(self, prompt_index: int, draw: int) -> Card:
        pictures = tuple(self._shown(name, prompt_index, draw) for name in self._models)
        record = self._files[self._models[0]][prompt_index, draw]
        before, after = pictures[0].score, pictures[1].score
        difference = None if before is None or after is None else after - before
        return Card(record.prompt, prompt_index, record.seed, pictures, difference)

    def _shown(self, model: str, prompt_index: int, draw: int) -> Shown:
        scores = []
        for scorer, dimension in self._evaluation.scores.dimensions:
            value = float(self._evaluation.scores.matrix(model, scorer, dimension)[prompt_index, draw])
            scores.append((f"{scorer} {dimension}", None if np.isnan(value) else value))
        record = self._files[model].get((prompt_index, draw))
        path = None if record is None else self._evaluation.folder / model / record.file
        return Shown(model, None if path is None else self._uri(path), scores[0][1], tuple(scores))

    def _uri(self, path: Path) -> str | None:
        if path not in self._uris:
            try:
                self._uris[path] = data_uri(decode_image(path))
            except RewardModelError:
                self._uris[path] = None
        return self._uris[path]


def data_uri(image: Image.Image, largest_side: int = LARGEST_SIDE) -> str:
    """PNG for small pictures, exactly as scored; WebP, reduced to ``largest_side`` pixels, for others."""
    image = image.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= 128:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
        image.save(buffer, format="WEBP", quality=85)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
