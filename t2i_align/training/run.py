"""``train(config)``: check, load, run the loop, export."""

from __future__ import annotations

import logging
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
from t2i_align.rewards.scorers import check_run_scorer
from t2i_align.stepwise.judges import check_judge
from t2i_align.training.assembly import Run
from t2i_align.training.datasets import check_source
from t2i_align.training.memory import measured_bytes
from t2i_align.training.optimisers import check_optimizer
from t2i_align.training.parts import is_offline
from t2i_align.training.resuming import Resumption, mark_finished, plan_resume
from t2i_align.training.sharding import refuse_early
from t2i_align.training.trackers import check_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves behind.

    Attributes:
        output_dir: the run folder.
        export_dir: portable weights.
        steps: optimiser steps done in all.
        train_seconds: time inside optimiser steps, over all launches of the run.
        seconds: wall time of the launch, loading and validation included.
        trained: whether this launch trained or exported; false where the run was finished before.
    """

    output_dir: Path
    export_dir: Path
    steps: int
    train_seconds: float
    seconds: float
    trained: bool = True


def train(config: RunConfig, *, may_change: bool = True) -> TrainResult:
    """Run a whole training from a checked configuration.

    A run that is finished is left as it is: nothing is loaded, nothing written.

    Args:
        config: the run.
        may_change: whether a resumed run may have other settings than before, of those that
            `t2i_align.training.resume_rules` lets act from then on.

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
    resume = plan_resume(config, objective, accelerator.num_processes, may_change=may_change)
    if resume is not None and resume.finished:
        return _as_it_is(config, resume, time.perf_counter() - started)
    if config.rollout is not None:
        check_judge(config.rollout.scorer)
    check_run_scorer(config)
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
    if accelerator.is_main_process:
        mark_finished(run.output_dir, loop.finished_steps)
    seconds = time.perf_counter() - started
    return TrainResult(Path(config.output_dir), export_dir, loop.finished_steps, loop.train_seconds, seconds)


def _accelerator(config: RunConfig) -> Accelerator:
    precision = config.training.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "training.mixed_precision: fp16 needs a CUDA device.", "no CUDA device", "use bf16 or no mixed precision"
        )
    torch.backends.cuda.matmul.allow_tf32 = config.training.allow_tf32  # also off again, after another run
    # Accumulation is the loop's own, and the schedule is stepped there: accelerate only moves and reduces.
    return Accelerator(mixed_precision=precision, step_scheduler_with_optimizer=False)


def _as_it_is(config: RunConfig, finished: Resumption, seconds: float) -> TrainResult:
    """The result of a run that was finished before; settings that only matter while a run goes on are named."""
    if finished.beside:
        ignored = ", ".join(finished.beside)
        logger.info("The run in %s is finished, so these settings are not acted on: %s", config.output_dir, ignored)
    folder = Path(config.output_dir)
    return TrainResult(folder, folder / "export", finished.step, finished.train_seconds, seconds, trained=False)


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
