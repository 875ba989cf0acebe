"""What the loop receives: oriented pairs as tensors on the training device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2i_align.backbones.embeddings import PromptEmbeddings


@dataclass
class PairBatch:
    """B pairs after ties and orientation are settled.

    Attributes:
        ids: B pair ids.
        epochs: pass over the data each pair belongs to; a batch may straddle two. With the id it addresses
            the pair's draws.
        winner, loser: ``[B, C, h, w]`` float32 latents in the denoiser's scale.
        prompt: embeddings of the winner's caption, hidden ``[B, L, D]`` and pooled ``[B, P]`` or None.
        time_ids_winner, time_ids_loser: ``[B, 6]`` SDXL micro-conditioning from the real transform, or None.
        preferred: ``[B]`` in [0.5, 1], probability that the winner is the better picture.
        weights: ``[B]`` non-negative loss weights.
        margins: reward name -> ``[B]`` score(winner) - score(loser).
        users: B user ids or None.
        prompt_loser: embeddings of the loser's caption for double-caption data, else None.
        columns: what else the objective reads, by name in `PairErrors`: ``scores`` ``[B, 2]`` of (winner, loser), and
            the ``[B]`` columns of `derived.derive`.
    """

    ids: list[str]
    epochs: list[int]
    winner: Tensor
    loser: Tensor
    prompt: PromptEmbeddings
    time_ids_winner: Tensor | None
    time_ids_loser: Tensor | None
    preferred: Tensor
    weights: Tensor
    margins: dict[str, Tensor] = field(default_factory=dict)
    users: list[str | None] = field(default_factory=list)
    prompt_loser: PromptEmbeddings | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch with every tensor on ``device``; dtypes stay."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return PairBatch(
            ids=self.ids,
            epochs=self.epochs,
            winner=self.winner.to(device),
            loser=self.loser.to(device),
            prompt=self.prompt.to(device),
            time_ids_winner=move(self.time_ids_winner),
            time_ids_loser=move(self.time_ids_loser),
            preferred=self.preferred.to(device),
            weights=self.weights.to(device),
            margins={name: value.to(device) for name, value in self.margins.items()},
            users=self.users,
            prompt_loser=None if self.prompt_loser is None else self.prompt_loser.to(device),
            columns={name: value.to(device) for name, value in self.columns.items()},
        )


@dataclass
class ListBatch:
    """B lists of K pictures each, picture-major: picture 0 of every list, then picture 1, ...

    Attributes:
        ids, epochs: of the lists; with them their draws are addressed.
        latents: ``[K * B, C, h, w]`` float32. prompt, time_ids: of the same K * B pictures.
        scores: ``[B, K]`` in [0, 1]; a group's winners (score 1) come first.
        weights: ``[B]`` non-negative loss weights.
    """

    ids: list[str]
    epochs: list[int]
    latents: Tensor
    prompt: PromptEmbeddings
    time_ids: Tensor | None
    scores: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.ids)
