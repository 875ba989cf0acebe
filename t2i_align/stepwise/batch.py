"""What a rollout hands to the loss: pairs of successors with their common parent."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from t2i_align.backbones.embeddings import PromptEmbeddings


@dataclass(frozen=True, eq=False)
class StepPairs:
    """N accepted pairs, as they wait for their optimiser step; no prompt embeddings, so that they store small.

    Latents are float32: half precision would round a twentieth of the last steps' sigma away.

    Attributes:
        parent, winner, loser: ``[N, C, h, w]``.
        parents, children: ``[N]`` long timesteps; a child of -1 is the clean end.
        score_winner, score_loser: ``[N]`` logits of the scorer.
        log_density_winner, log_density_loser: ``[N]`` float64, per dimension, under the policy that sampled them; what
            policy-gradient methods need.
        prompt: ``[N]`` long, index into the prompt list.
        version: ``[N]`` long, optimiser steps made before the rollout.
    """

    parent: Tensor
    winner: Tensor
    loser: Tensor
    parents: Tensor
    children: Tensor
    score_winner: Tensor
    score_loser: Tensor
    log_density_winner: Tensor
    log_density_loser: Tensor
    prompt: Tensor
    version: Tensor

    def __len__(self) -> int:
        return len(self.parent)

    def index(self, rows: Tensor) -> StepPairs:
        """The pairs at ``rows`` (long or bool)."""
        return StepPairs(**{name: value[rows.to(value.device)] for name, value in self.tensors().items()})

    def split(self, count: int) -> tuple[StepPairs, StepPairs]:
        """The first ``count`` pairs, and the rest."""
        rows = torch.arange(len(self))
        return self.index(rows[:count]), self.index(rows[count:])

    def to(self, device: torch.device) -> StepPairs:
        """Latents on ``device``; the numbers stay on the CPU."""
        latents = ("parent", "winner", "loser")
        return StepPairs(
            **{name: value.to(device) if name in latents else value for name, value in self.tensors().items()}
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every field by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def empty(cls, latent_shape: tuple[int, ...], device: torch.device) -> StepPairs:
        """No pairs, of latents ``[C, h, w]``."""
        latents = torch.zeros(0, *latent_shape, device=device)
        times, scores = torch.zeros(0, dtype=torch.long), torch.zeros(0)
        wide = scores.double()
        return cls(latents, latents, latents, times, times, scores, scores, wide, wide, times, times)

    @classmethod
    def cat(cls, parts: list[StepPairs]) -> StepPairs:
        """All pairs of several records, in order."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors()})


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The pairs of one micro-step.

    ``len`` is the same on all processes; 0 means that nobody has anything to learn from in this step.

    Attributes:
        pairs: N of them.
        prompt: their encoded prompts.
        time_ids: ``[N, 6]`` SDXL micro-conditioning, or None.
        weights: ``[N]``; they make the mean over micro-steps and processes the mean over the step's pairs. Rows that
            only fill up a batch have weight 0.
    """

    pairs: StepPairs
    prompt: PromptEmbeddings
    time_ids: Tensor | None
    weights: Tensor

    def __len__(self) -> int:
        return len(self.pairs)
