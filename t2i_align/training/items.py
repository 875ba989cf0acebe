"""How a batch becomes an objective's items, and back: which pictures belong together, and whose errors are whose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.batch import ListBatch, PairBatch


@dataclass(frozen=True)
class Items:
    """A batch laid out as the objective's items: G pictures each, picture-major (all winners, then all losers).

    Attributes:
        ids, epochs: address of each of the N items' draws.
        latents: ``[G * N, C, h, w]``. time_ids: of the same G * N pictures.
        prompt: of the same, or only N where they hold again for every further picture of the items.
        weights: ``[N]``.
        columns: further fields of `PairErrors` that come from the data.
    """

    ids: list[str]
    epochs: list[int]
    latents: Tensor
    prompt: PromptEmbeddings
    time_ids: Tensor | None
    weights: Tensor
    columns: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def winners_only(batch: PairBatch) -> Items:
    """One item per pair, its winner."""
    columns = _columns(batch)
    return Items(batch.ids, batch.epochs, batch.winner, batch.prompt, batch.time_ids_winner, batch.weights, columns)


def as_pairs(batch: PairBatch) -> Items:
    """One item per pair, with both pictures."""
    time_ids = batch.time_ids_winner
    return Items(
        ids=batch.ids,
        epochs=batch.epochs,
        latents=torch.cat([batch.winner, batch.loser]),
        prompt=batch.prompt if batch.prompt_loser is None else batch.prompt.cat(batch.prompt_loser),
        time_ids=None if time_ids is None else torch.cat([time_ids, batch.time_ids_loser]),
        weights=batch.weights,
        columns=_columns(batch),
    )


def as_labelled(batch: PairBatch) -> Items:
    """Two items per pair, each with draws of its own: the winner, desirable with its probability, and the loser."""
    pairs = as_pairs(batch)
    columns: dict[str, Any] = {"labels": torch.cat([batch.preferred, 1.0 - batch.preferred])}
    columns |= {name: value.repeat(2) for name, value in batch.columns.items() if value.dim() == 1}
    if batch.margins:
        columns["margins"] = {name: value.repeat(2) for name, value in batch.margins.items()}
    return Items(
        ids=[f"{pair}/{side}" for side in ("winner", "loser") for pair in batch.ids],
        epochs=batch.epochs * 2,
        latents=pairs.latents,
        prompt=pairs.prompt,
        time_ids=pairs.time_ids,
        weights=batch.weights.repeat(2),
        columns=columns,
    )


def as_ranked(batch: ListBatch) -> Items:
    """One item per list, with its scores."""
    columns = {"scores": batch.scores}
    return Items(batch.ids, batch.epochs, batch.latents, batch.prompt, batch.time_ids, batch.weights, columns)


def as_groups(batch: ListBatch) -> Items:
    """One item per list: the first half of its pictures are winners, the rest losers."""
    return Items(batch.ids, batch.epochs, batch.latents, batch.prompt, batch.time_ids, batch.weights)


LAYOUTS: dict[str, Callable[[Any], Items]] = {
    "single": winners_only,
    "pair": as_pairs,
    "labelled": as_labelled,
    "ranked": as_ranked,
    "group": as_groups,
}


def _columns(batch: PairBatch) -> dict[str, Any]:
    return {"labels": batch.preferred, **({"margins": batch.margins} if batch.margins else {}), **batch.columns}


def sides(errors: Tensor, count: int, layout: str) -> tuple[Tensor, Tensor | None]:
    """Errors ``[G * N]`` of N items as what `PairErrors` calls winner and loser.

    ``[N]`` each for pairs, ``[N, M]`` for groups; all ``[N, K]`` of a ranked list, or ``[N]`` of single pictures, stand
    on the winner's side.
    """
    if layout == "pair":
        return errors[:count], errors[count:]
    if layout == "ranked":
        return errors.reshape(-1, count).T, None
    if layout == "group":
        winners, losers = errors.reshape(-1, count).T.chunk(2, dim=1)
        return winners, losers
    return errors, None
