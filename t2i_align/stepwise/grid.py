"""The sampler's steps as (parent, child) timestep pairs, read off the checkpoint's scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from t2i_align.errors import UserError

FinalAlpha = Literal["first_timestep", "scheduler"]
CLEAN_END = -1


@dataclass(frozen=True)
class StepGrid:
    """S sampler steps from noise to picture.

    Attributes:
        parents: timestep of the state each step starts from, descending.
        children: timestep of the state it leads to; -1 is the clean end (only the last may be).
        final_alpha: cumulative alpha of the clean end.
    """

    parents: tuple[int, ...]
    children: tuple[int, ...]
    final_alpha: float

    def __len__(self) -> int:
        return len(self.parents)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Parents and children as long ``[S]`` on the CPU."""
        return torch.tensor(self.parents), torch.tensor(self.children)


def step_grid(
    scheduler_config: Mapping[str, Any], num_inference_steps: int, final_alpha: FinalAlpha = "first_timestep"
) -> StepGrid:
    """The grid that a DDIM sampler with the checkpoint's own configuration would walk.

    Args:
        scheduler_config: of the checkpoint; its timestep spacing and offset are used, whatever sampler it
            names.
        num_inference_steps: S.
        final_alpha: where the last step leads. ``first_timestep``: to timestep 0, as the published step-level
            code does (its sigma stays positive, so the last step can be trained). ``scheduler``: to the
            scheduler's final alpha, as the DDIM paper and diffusers do; where that is 1 the last step is
            deterministic and is never trained.

    Raises:
        UserError: more steps than training timesteps, or a scheduler that clips predicted latents (the mean
            would not be affine in the network output, and the shared-parent identity would fail).
    """
    total = int(scheduler_config.get("num_train_timesteps", 1000))
    if not 1 <= num_inference_steps <= total:
        raise UserError(
            "rollout.num_inference_steps must lie between 1 and the number of training timesteps.",
            f"{num_inference_steps}, with {total} training timesteps",
        )
    _refuse_clipping(scheduler_config)
    scheduler = DDIMScheduler.from_config(dict(scheduler_config), clip_sample=False, thresholding=False)
    scheduler.set_timesteps(num_inference_steps)
    parents = tuple(int(t) for t in scheduler.timesteps)
    last = 0 if final_alpha == "first_timestep" else CLEAN_END
    return StepGrid(parents, (*parents[1:], last), float(scheduler.final_alpha_cumprod))


def _refuse_clipping(config: Mapping[str, Any]) -> None:
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise UserError(
                "Step-level methods need a sampler that does not clip its predicted latents.",
                f"{option}: true in the checkpoint's scheduler configuration",
                f"set {option} to false in scheduler/scheduler_config.json; latents are not pixels",
            )
