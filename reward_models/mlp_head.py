"""The small heads on top of a feature vector: LAION's aesthetic predictors and ImageReward's reward MLP.

Three layouts are in circulation, told apart by their names in the state dict:

* `layers.{0,2,4,6,7}`: D -> 1024 -> 128 -> 64 -> 16 -> 1 with dropout and no activations (an affine map);
* `layers.{0,3,6,9,11}`: the same with ReLUs between;
* `weight`, `bias`: one linear layer (LAION's first predictor).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.loading import fit_state_dict
from reward_models.towers import without_memory

_LINEAR_POSITIONS = (0, 2, 4, 6, 7)
_RELU_POSITIONS = (0, 3, 6, 9, 11)
_DROPOUTS = (0.2, 0.2, 0.1)


class MlpHead(nn.Module):
    """Stack of linear layers with the published positions.

    Args:
        sizes: layer widths from input to output, six numbers ending in 1.
        relu: whether ReLUs stand between the layers.
    """

    def __init__(self, sizes: list[int], relu: bool) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for index, (inside, outside) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            modules.append(nn.Linear(inside, outside))
            if relu and index < len(sizes) - 2:
                modules.append(nn.ReLU())
            if index < len(_DROPOUTS):
                modules.append(nn.Dropout(_DROPOUTS[index]))
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """[N, D] to [N]."""
        return self.layers(features).squeeze(-1)


class LinearHead(nn.Linear):
    """One linear layer, [N, D] to [N]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).squeeze(-1)


def load_head(state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> tuple[nn.Module, int]:
    """Build the head that a state dict describes and fill it.

    Returns:
        the head in evaluation mode and its input width D.

    Raises:
        RewardModelError: the names belong to none of the three layouts, or the shapes do not chain.
    """
    with without_memory():
        head, width = _build(state, source)
    fit_state_dict(head, state, source, dtype)
    return head.requires_grad_(False).eval(), width


def _build(state: Mapping[str, Tensor], source: Path) -> tuple[nn.Module, int]:
    if set(state) == {"weight", "bias"} and state["weight"].ndim == 2:
        width = state["weight"].shape[1]
        return LinearHead(width), width
    names = [name for name in state if name.startswith("layers.") and name.endswith(".weight")]
    positions = tuple(sorted(int(name.split(".")[1]) for name in names if name.split(".")[1].isdigit()))
    if positions not in (_LINEAR_POSITIONS, _RELU_POSITIONS):
        raise RewardModelError(
            f"{source} is not a known aesthetic or reward head",
            found=f"names {sorted(state)[:6]}",
            fix=f"expected layers.N with N in {_LINEAR_POSITIONS} or {_RELU_POSITIONS}, or weight and bias",
        )
    weights = [state[f"layers.{position}.weight"] for position in positions]
    sizes = [weights[0].shape[-1], *(weight.shape[0] for weight in weights)]
    return MlpHead(sizes, relu=positions == _RELU_POSITIONS), sizes[0]
