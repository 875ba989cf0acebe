"""One rollout to look at, outside training: what was drawn at every step, how it was judged, what it would become."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from t2i_align.backbones import Backbone, load_backbone
from t2i_align.backbones.loading import weight_dtype
from t2i_align.backbones.modes import evaluating
from t2i_align.config.schema import RunConfig
from t2i_align.errors import UserError
from t2i_align.stepwise.brancher import RolloutAddress
from t2i_align.stepwise.build import RolloutParts, build_rollout
from t2i_align.stepwise.denoiser import PassCounter
from t2i_align.stepwise.rollout import BranchedStep, RolloutPrompts


class Examined:
    """A finished rollout of N prompts.

    Attributes:
        steps: every branched step, the noisiest first.
        texts: the prompts.
    """

    def __init__(
        self, steps: Sequence[BranchedStep], prompts: RolloutPrompts, parts: RolloutParts, backbone: Backbone
    ) -> None:
        self.steps, self.texts = list(steps), list(prompts.texts)
        self._prompts, self._parts, self._backbone = prompts, parts, backbone

    def acceptance(self) -> dict[int, float]:
        """Share of the prompts that gave a pair, by the timestep that the step starts from."""
        return {step.parent: float(step.selection.accepted.float().mean()) for step in self.steps}

    @torch.no_grad()
    def pictures(self, step: BranchedStep, prompt: int) -> list[Image.Image]:
        """The clean picture that the policy predicts from each of the K candidates of one prompt.

        One guided pass for all K. A candidate of the last step is clean already and is decoded as it is.
        """
        clean: Tensor = step.candidates[:, prompt]
        if step.child > 0:
            count = len(clean)
            rows, times = torch.full((count,), prompt), torch.full((count,), step.child)
            ids = self._prompts.time_ids
            ids = None if ids is None else ids[prompt : prompt + 1].expand(count, -1)
            with evaluating(self._backbone.unet):
                output = self._parts.denoiser(clean, times, self._prompts.embeddings.index(rows), ids)
            clean = self._parts.kernel.clean(output, clean, times)
        return [to_pil_image(picture) for picture in self._backbone.decode(clean).float().cpu()]


def examine(run: RunConfig, prompts: Sequence[str], device: str | torch.device = "cpu") -> Examined:
    """Sample prompts once as a run with a ``rollout:`` section would before its first update.

    Args:
        run: the configuration; model, resolution, seed and the rollout section are read.
        prompts: N of them, instead of the section's.
        device: where the model runs.

    Raises:
        UserError: there is no rollout section or no prompt, or the section does not fit the model.
    """
    if run.rollout is None:
        raise UserError(
            "Only a run with a rollout section branches.", run.output_dir, "for example configs/shapes/lpo.yaml"
        )
    if not prompts:
        raise UserError("There is no prompt to sample.", "an empty list", "give at least one")
    dtype = weight_dtype(run.training.mixed_precision)
    backbone = load_backbone(run.model, device, dtype, needs_reference=False)
    parts = build_rollout(run, run.rollout, backbone, PassCounter())
    size = (run.data.resolution, run.data.resolution)
    ids = backbone.time_ids(size, (0, 0), size)
    asked = RolloutPrompts(
        texts=list(prompts),
        indices=torch.arange(len(prompts)),
        embeddings=backbone.encode_prompt(list(prompts)),
        time_ids=None if ids is None else ids.expand(len(prompts), -1),
    )
    steps: list[BranchedStep] = []
    parts.rollout.run(asked, RolloutAddress(run.seed, 0, range(len(prompts))), version=0, watch=steps.append)
    return Examined(steps, asked, parts, backbone)
