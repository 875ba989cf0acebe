"""``train(config)``: check, load, run the loop, export."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from t2i_align import objectives
from t2i_align.backbones import Backbone, load_backbone
from t2i_align.backbones.loading import weight_dtype
from t2i_align.config.schema import RunConfig
from t2i_align.data.provider import ensure_cache
from t2i_align.data.sources import has_heldout
from t2i_align.errors import UserError
from t2i_align.training.assembly import Run
from t2i_align.training.checkpoints import check_identity, resolve_resume
from t2i_align.training.datasets import check_source
from t2i_align.training.identity import settings_identity
from t2i_align.training.memory import measured_bytes
from t2i_align.training.optimisers import check_optimizer
from t2i_align.training.parts import is_offline
from t2i_align.training.sharding import refuse_early
from t2i_align.training.trackers import check_trackers


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves behind.

    Attributes:
        output_dir: the run folder.
        export_dir: portable weights.
        steps: optimiser steps done in all.
        train_seconds: time inside optimiser steps, over all launches of the run.
        seconds: wall time of the launch, loading and validation included.
    """

    output_dir: Path
    export_dir: Path
    steps: int
    train_seconds: float
    seconds: float


def train(config: RunConfig) -> TrainResult:
    """Run a whole training from a checked configuration.

    Raises:
        UserError: anything the user can put right, before the first step where it can be known then.
        Interrupted: asked to stop by a signal; a checkpoint was written.
    """
    started = time.perf_counter()
    objective = objectives.resolve(config.objective)
    check_trackers(config.report_to)
    check_optimizer(config.training)
    refuse_early(config, objective)
    accelerator = _accelerator(config)
    resume = _checkpoint_to_resume(config, objective, accelerator)
    if is_offline(config):
        check_source(config, objective, accelerator.num_processes)
    set_seed(config.seed)
    backbone = _load(config, objective, accelerator)
    if is_offline(config) or has_heldout(config.data):
        ensure_cache(config, backbone, rank=accelerator.process_index, world_size=accelerator.num_processes)
    accelerator.wait_for_everyone()
    run = Run(config, accelerator, backbone, objective)
    run.prepare(resume)
    try:
        run.loop.run()
        where = "on the GPU" if accelerator.device.type == "cuda" else "by the process, libraries included"
        run.record.progress.note(f"memory: at most {measured_bytes(accelerator.device) / 1e9:.2f} GB {where}")
    finally:
        run.close()
    export_dir, loop = run.export(), run.loop
    seconds = time.perf_counter() - started
    return TrainResult(Path(config.output_dir), export_dir, loop.finished_steps, loop.train_seconds, seconds)


def _accelerator(config: RunConfig) -> Accelerator:
    precision = config.training.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "training.mixed_precision: fp16 needs a CUDA device.", "no CUDA device", "use bf16 or no mixed precision"
        )
    if config.training.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    # Accumulation is the loop's own, and the schedule is stepped there: accelerate only moves and reduces.
    return Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False)


def _checkpoint_to_resume(config: RunConfig, objective: objectives.Objective, accelerator: Accelerator) -> Path | None:
    """The checkpoint to go on from; one of other settings is refused before anything is loaded."""
    resume = resolve_resume(Path(config.output_dir), config.training.resume_from_checkpoint)
    if resume is not None:
        check_identity(resume, settings_identity(config, objective, accelerator.num_processes))
    return resume


def _load(config: RunConfig, objective: objectives.Objective, accelerator: Accelerator) -> Backbone:
    """The model, known to suit the objective."""
    backbone = load_backbone(
        config.model,
        accelerator.device,
        weight_dtype(config.training.mixed_precision),
        needs_reference=objective.needs_reference,
        needs_features=objective.error.needs_features,
    )
    snr = objectives.snr_table(backbone.alphas_cumprod)
    objective.check_model(backbone.num_train_timesteps, snr, backbone.prediction_type)
    return backbone
