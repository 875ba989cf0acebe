"""Where noisy latents and prompts meet: projections to one space, and the temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reward_models.towers import unit

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # 2.6593: a temperature of 14.3, as in CLIP


class LatentHeads(nn.Module):
    """Linear projections without bias, and tau = exp(logit_scale).

    They stay in float32 whatever the network runs in: cosines 1e-3 apart decide pairs.

    Args:
        visual_width: width of the concatenated visual features (4800 for SD1.5, 3520 for SDXL).
        pooled_width: width of the pooled text vector.
        width: of the common space.
        text_projection: whether the pooled text vector is projected.
    """

    def __init__(self, visual_width: int, pooled_width: int, width: int, text_projection: bool) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(visual_width, width, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        self.text_projection: nn.Linear | None = None
        if text_projection:
            self.text_projection = nn.Linear(pooled_width, width, bias=False)
            nn.init.normal_(self.text_projection.weight, std=pooled_width**-0.5)  # as CLIP starts
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    @property
    def scale(self) -> Tensor:
        """tau, the largest possible score."""
        return self.logit_scale.exp()

    def visual(self, features: Sequence[Tensor]) -> Tensor:
        """Unit vectors ``[N, width]`` from pooled features ``[N, w_i]``."""
        return self._project(self.visual_projection, torch.cat(list(features), dim=-1))

    def textual(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``[P, width]`` from pooled text vectors ``[P, Q]``."""
        if self.text_projection is None:
            return unit(pooled.to(self.logit_scale.dtype))
        return self._project(self.text_projection, pooled)

    def _project(self, layer: nn.Linear, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return unit(layer(features.to(layer.weight.dtype)))
