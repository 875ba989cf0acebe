"""Held-out implicit accuracy and validation pictures, computed by all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from t2i_align.backbones import Backbone
from t2i_align.backbones.modes import evaluating
from t2i_align.config.schema import RunConfig, ValidationConfig
from t2i_align.data.batch import PairBatch
from t2i_align.training.parts import Parts
from t2i_align.training.step import Draws, PairStep


class Validation:
    """Held-out accuracy and sample grids of one run; all processes call it together.

    Make it while the policy still is the base model: a run without a reference measures the base then.

    Args:
        config: the run; data, validation, batch size and run folder are read.
        backbone: the policy.
        parts: of the run.
        accelerator: processes.
    """

    def __init__(self, config: RunConfig, backbone: Backbone, parts: Parts, accelerator: Accelerator) -> None:
        self._config, self._backbone, self._step, self._accelerator = config, backbone, parts.step, accelerator
        self._probe: HeldoutProbe | None = None
        if parts.heldout is None:
            return
        pairs, step = parts.heldout
        share = -(-config.validation.heldout_pairs // accelerator.num_processes)
        with evaluating(backbone.unet):
            self._probe = HeldoutProbe(
                step,
                lambda: pairs.heldout_batches(share, config.training.train_batch_size),
                config.validation.heldout_draws,
                backbone.reference if backbone.has_reference else None,
            )

    @torch.no_grad()
    def heldout(self) -> dict[str, float]:
        """Mean accuracy, d_w, d_l and margin over the held-out pairs of all processes; empty without such pairs."""
        if self._probe is None:
            return {}
        rows = self._probe.measure()  # processes may hold different numbers of pairs: reduce sums and counts
        sums = torch.cat([rows.sum(0), torch.tensor([float(len(rows))])]).to(self._accelerator.device)
        *sums, count = self._accelerator.reduce(sums, reduction="sum").tolist()
        accuracy, d_winner, d_loser = (value / count for value in sums)
        return {
            "heldout/implicit_accuracy": accuracy,
            "heldout/d_w": d_winner,
            "heldout/d_l": d_loser,
            "heldout/margin": d_loser - d_winner,
        }

    @torch.no_grad()
    def draw(self, step: int) -> dict[str, Path]:
        """Write ``samples/step-N.png``, the validation prompts in a grid, once for every user that is shown.

        Returns:
            The grids this process wrote, by a name that stays the same from step to step.
        """
        grids: dict[str, Path] = {}
        validation, rank = self._config.validation, self._accelerator.process_index
        if not validation.validation_prompts:
            return grids
        for word, sampling in self._step.validation_users(validation.guidance_scale > 1):
            folder = Path(self._config.output_dir) / "samples" / f"step-{step}{word}"
            with sampling:
                draw_samples(self._backbone.pipeline(), validation, folder, rank, self._accelerator.num_processes)
            self._accelerator.wait_for_everyone()
            if self._accelerator.is_main_process:
                grids[f"samples{word}"] = folder.with_name(f"{folder.name}.png")
                compose_grid(folder, validation.validation_prompts, grids[f"samples{word}"])
        return grids


class HeldoutProbe:
    """Implicit accuracy on pairs the run never trains on, with the same (timestep, noise) draws every time.

    The reference errors ``[2, N, draws]`` are measured once. Where the run keeps its initial model as a reference that
    happens at the first validation, so that training starts at once. Without one, make the probe while the policy
    still is the base model, before a checkpoint is loaded: they are measured then. So the probe works for
    reference-free objectives too.

    Args:
        step: measures errors of a batch.
        batches: a fresh iterator over this process's held-out batches.
        draws: (timestep, noise) draws per pair; a pair is decided by its mean margin over them.
        reference: makes the initial model answer inside; None where the run has none.
    """

    def __init__(
        self,
        step: PairStep,
        batches: Callable[[], Iterable[PairBatch]],
        draws: int,
        reference: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._step, self._batches, self._draws, self._initial = step, batches, draws, reference
        self._reference = self._measure() if reference is None else None

    def measure(self) -> torch.Tensor:
        """Per held-out pair of this process ``[N, 3]``: accuracy (ties 0.5), d_w, d_l."""
        if self._reference is None:
            assert self._initial is not None
            self._reference = self._measure(self._initial)
        d_winner, d_loser = (self._measure() - self._reference).mean(-1)
        margin = d_loser - d_winner
        accuracy = torch.where(margin == 0, 0.5, (margin > 0).float())
        return torch.stack([accuracy, d_winner, d_loser], dim=1)

    @torch.no_grad()
    def _measure(self, network: Callable[[], AbstractContextManager[Any]] = nullcontext) -> torch.Tensor:
        rows = []
        for batch in self._batches():
            per_draw = []
            for draw in range(self._draws):
                errors = self._step.probe_errors(batch, Draws("heldout", draw), network)
                per_draw.append(torch.stack(errors).float().cpu())
            rows.append(torch.stack(per_draw, dim=-1))
        return torch.cat(rows, dim=1) if rows else torch.zeros(2, 0, self._draws)


def draw_samples(pipeline, config: ValidationConfig, folder: Path, rank: int, world_size: int) -> None:
    """Render this process's share of the validation prompts into ``folder`` as ``NN.png``."""
    from t2i_align.evaluation.sampling import sample_images

    folder.mkdir(parents=True, exist_ok=True)
    mine = list(range(rank, len(config.validation_prompts), world_size))
    if not mine:
        return
    images = sample_images(
        pipeline,
        [config.validation_prompts[i] for i in mine],
        seeds=[config.validation_seed + i for i in mine],
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
    )
    for index, image in zip(mine, images, strict=True):
        image.save(folder / f"{index:02d}.png")


def compose_grid(folder: Path, prompts: list[str], target: Path) -> None:
    """Join the rendered prompts into one picture (main process, after a barrier)."""
    from t2i_align.evaluation.grids import grid

    images = [Image.open(folder / f"{index:02d}.png").convert("RGB") for index in range(len(prompts))]
    if images:
        grid(images, columns=min(len(images), 4), captions=prompts).save(target)
