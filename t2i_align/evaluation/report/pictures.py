"""Which pictures the report shows, and how they get into one file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from t2i_align.evaluation.manifest import read_manifest
from t2i_align.evaluation.results import Evaluation

LARGEST_SIDE = 512  # larger pictures are embedded smaller and as WebP
WINS, LOSSES, PLAIN = 12, 12, 12


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
    """A titled group of cards."""

    key: str
    title: str
    note: str
    cards: tuple[Card, ...]


def galleries(evaluation: Evaluation, model: str) -> list[Gallery]:
    """Best wins, worst losses, and the first prompts unchosen, of ``model`` against the baseline."""
    scorer, dimension = evaluation.primary
    scores = evaluation.scores.matrix(model, scorer, dimension)
    difference = scores - evaluation.scores.matrix(evaluation.baseline, scorer, dimension)
    flat = difference.ravel()
    order = np.argsort(np.where(np.isnan(flat), 0.0, flat), kind="stable")
    usable = int(np.count_nonzero(~np.isnan(flat)))
    gains = [int(i) for i in order[::-1] if flat[i] > evaluation.tolerance]
    losses = [int(i) for i in order if flat[i] < -evaluation.tolerance]
    draws = difference.shape[1]
    first = [prompt * draws for prompt in range(min(PLAIN, difference.shape[0]))]
    maker = _Maker(evaluation, model)
    what = f"by {scorer} {dimension}"
    return [
        Gallery("wins", "Best wins", f"{len(gains)} of {usable} pictures improved {what}.", maker.cards(gains[:WINS])),
        Gallery(
            "losses",
            "Worst losses",
            f"{len(losses)} of {usable} pictures got worse {what}.",
            maker.cards(losses[:LOSSES]),
        ),
        Gallery("plain", "Not chosen", "The first prompts of the set, in order.", maker.cards(first)),
    ]


class _Maker:
    """Builds cards, encoding each picture once."""

    def __init__(self, evaluation: Evaluation, model: str) -> None:
        self._evaluation = evaluation
        others = [name for name in evaluation.models if name not in (evaluation.baseline, model)]
        self._models = [evaluation.baseline, model, *others]
        self._files = {
            name: {(p.prompt_index, p.draw): p for p in read_manifest(evaluation.folder / name)}
            for name in self._models
        }
        self._uris: dict[Path, str | None] = {}

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
