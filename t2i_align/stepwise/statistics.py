"""What a rollout says about itself: acceptance by timestep, score gaps."""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_align.stepwise.selector import Selection

BINS = 4
_ROWS = ("examined", "accepted", "score", "gap")


class RolloutStatistics:
    """Sums over examined states, in equal bins of the noise schedule; additive over rollouts and processes.

    Args:
        num_train_timesteps: T.

    Attributes:
        sums: ``[4, BINS]`` float64: examined states, accepted pairs, mean score of the candidates, score of the best
            minus score of the worst.
    """

    def __init__(self, num_train_timesteps: int) -> None:
        self._total = num_train_timesteps
        self.sums = torch.zeros(len(_ROWS), BINS, dtype=torch.float64)

    def add(self, timestep: int, scores: Tensor, selection: Selection) -> None:
        """One branched step: ``scores`` ``[K, N]`` and the selection among them."""
        column = min(timestep * BINS // self._total, BINS - 1)
        gap = selection.score_winner - selection.score_loser
        values = [scores.shape[1], selection.accepted.sum(), scores.mean(0).sum(), gap.sum()]
        self.sums[:, column] += torch.tensor([float(value) for value in values], dtype=torch.float64)

    def metrics(self) -> dict[str, float]:
        """Acceptance, mean score and mean gap, overall, and acceptance by timestep (bin 0: least noise)."""
        examined, accepted, score, gap = self.sums
        total = float(examined.sum())
        if total == 0:
            return {}
        values = {
            "rollout/acceptance": float(accepted.sum()) / total,
            "rollout/score_mean": float(score.sum()) / total,
            "rollout/score_gap": float(gap.sum()) / total,
        }
        for index in range(BINS):
            if examined[index] > 0:
                name = f"rollout/acceptance_by_timestep/{index}_of_{BINS}"
                values[name] = float(accepted[index] / examined[index])
        return values
