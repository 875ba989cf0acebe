"""``train(config)``: wire the rooms together, run the loop, export."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from t2i_align import objectives
from t2i_align.backbones import Backbone, load_backbone, trainable_state
from t2i_align.backbones.loading import weight_dtype
from t2i_align.backbones.modes import evaluating
from t2i_align.config.loading import save_resolved
from t2i_align.config.schema import RunConfig
from t2i_align.data.provider import PairProvider, ensure_cache
from t2i_align.data.sources import has_heldout
from t2i_align.errors import UserError
from t2i_align.export import export_run
from t2i_align.online.provider import OnlinePairs
from t2i_align.personal.build import build_personal
from t2i_align.stepwise import build_stepwise
from t2i_align.training.checkpoints import TrainState, load_checkpoint, resolve_resume, save_checkpoint
from t2i_align.training.datasets import check_source, offline_provider
from t2i_align.training.ema import Ema
from t2i_align.training.environment import write_environment
from t2i_align.training.loop import Hooks, Loop
from t2i_align.training.memory import measured_bytes, plan_memory, rows_of
from t2i_align.training.metrics import DisplacementWatch, MetricsWriter, read_metrics
from t2i_align.training.optimisers import (
    absolute_learning_rate,
    build_optimizer,
    build_scheduler,
    effective_batch,
)
from t2i_align.training.progress import Progress
from t2i_align.training.reference_errors import precompute_reference
from t2i_align.training.step import PairStep
from t2i_align.training.validation import HeldoutProbe, compose_grid, draw_samples

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
    output_dir = Path(config.output_dir)
    resume = resolve_resume(output_dir, config.training.resume_from_checkpoint)
    objective = objectives.resolve(config.objective)
    if config.rollout is None and config.online is None:
        check_source(config, objective)
    accelerator = _accelerator(config)
    set_seed(config.seed)
    backbone = load_backbone(
        config.model,
        accelerator.device,
        weight_dtype(config.training.mixed_precision),
        needs_reference=objective.needs_reference,
        needs_features=objective.error.needs_features,
    )
    if (config.rollout is None and config.online is None) or has_heldout(config.data):
        ensure_cache(config, backbone, rank=accelerator.process_index, world_size=accelerator.num_processes)
    accelerator.wait_for_everyone()
    run = _Run(config, accelerator, backbone, objective, output_dir)
    run.prepare(resume)
    try:
        run.loop.run()
        where = "on the GPU" if accelerator.device.type == "cuda" else "by the process, libraries included"
        run.progress.note(f"memory: at most {measured_bytes(accelerator.device) / 1e9:.2f} GB {where}")
    finally:
        run.close()
    export_dir = run.export()
    return TrainResult(
        output_dir, export_dir, run.loop.finished_steps, run.loop.train_seconds, time.perf_counter() - started
    )


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


class _Run:
    """The objects of one run and the hooks the loop calls."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        backbone: Backbone,
        objective: objectives.Objective,
        output_dir: Path,
    ) -> None:
        training = config.training
        self.config, self.accelerator, self.backbone = config, accelerator, backbone
        self.objective, self.output_dir = objective, output_dir
        self.provider, self.step = self._provider_and_step()
        self.trainable = trainable_state(backbone)
        rate = absolute_learning_rate(training, accelerator.num_processes)
        optimizer = build_optimizer(training, list(self.trainable.values()), rate)
        policy, optimizer = accelerator.prepare(backbone.unet, optimizer)
        backbone.policy = policy
        scheduler = build_scheduler(training, optimizer)
        self.ema = Ema(training.ema, self.trainable) if training.ema.enabled else None
        self.loop = Loop(
            config=config,
            accelerator=accelerator,
            step=self.step,
            provider=self.provider,
            policy=policy,
            parameters=list(self.trainable.values()),
            optimizer=optimizer,
            scheduler=scheduler,
            hooks=Hooks(self.log, self.checkpoint, self.validate),
            ema=self.ema,
        )
        self.displacement = DisplacementWatch()
        self.writer: MetricsWriter | None = None
        self.probe: HeldoutProbe | None = None
        self.progress = Progress(training.max_train_steps, accelerator.is_main_process)

    def _provider_and_step(self) -> tuple[Any, Any]:
        """The two parts in which on-policy and offline runs differ."""
        if self.config.rollout is not None:
            parts = build_stepwise(self.config, self.config.rollout, self.backbone, self.objective, self.accelerator)
            return parts.provider, parts.step
        if self.config.online is not None:
            pairs = OnlinePairs(self.config, self.config.online, self.backbone, self.accelerator, self._offline)
            return pairs, self._pair_step()
        if self.config.personal is not None:
            own = build_personal(self.config, self.config.personal, self.backbone, self.objective, self.accelerator)
            return own.provider, own.step
        return self._offline(self.config), self._pair_step()

    def _offline(self, config: RunConfig) -> PairProvider:
        return offline_provider(config, self.backbone, self.objective, self.accelerator)

    def _pairs(self) -> PairProvider:
        training, accelerator = self.config.training, self.accelerator
        return PairProvider(
            self.config,
            self.backbone,
            batch_size=training.train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )

    def _pair_step(self) -> PairStep:
        steps = self.config.training.max_train_steps
        return PairStep(self.backbone, self.objective, self.config.seed, steps, self.accelerator)

    def prepare(self, resume: Path | None) -> None:
        """Run folder, held-out reference (still the base model), then the checkpoint."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._prepare_probe()
        if self.config.personal is None:  # a user adapter's passes need users
            rows = rows_of(self.config, self.objective, self.provider)
            self.progress.note(plan_memory(self.config, self.backbone, rows))
        if self.config.model.reference == "precomputed":
            parts = (self.backbone, self.objective, self.provider, self.step, self.accelerator)
            self.progress.note(precompute_reference(self.config, *parts))
        if resume is not None:
            self._restore(resume)
        if self.accelerator.is_main_process:
            save_resolved(self.config, self.output_dir / "config.yaml")
            write_environment(
                self.output_dir,
                num_processes=self.accelerator.num_processes,
                device=self.accelerator.device,
                attention=self.backbone.attention_choice,
            )
            self.writer = MetricsWriter(
                self.output_dir, self.config.report_to, self.config.model_dump(mode="json"), self.loop.finished_steps
            )
            self._announce(resume)
        self.accelerator.wait_for_everyone()
        if resume is None:
            self.validate(0)

    def state(self) -> TrainState:
        """What a checkpoint holds."""
        return TrainState(
            trainable=self.trainable,
            optimizer=self.loop.optimizer,
            scheduler=self.loop.scheduler,
            ema=None if self.ema is None else self.ema.weights,
            ema_step=0 if self.ema is None else self.ema.step,
            scaler=self.accelerator.scaler,
            train_seconds=self.loop.train_seconds,
            provider={
                **{f"provider.{name}": value for name, value in self.provider.state().items()},
                **{f"step.{name}": value for name, value in self.step.state().items()},
            },
        )

    def identity(self) -> dict:
        """The settings a checkpoint must share with the run that resumes it."""
        training = self.config.training
        return {
            "seed": self.config.seed,
            "model": self.config.model.model_dump(
                mode="json", exclude={"attention", "gradient_checkpointing", "compile", "reference_dir"}
            ),
            "objective": self.objective.config,
            "pairs": self.provider.fingerprint,
            "rollout": None if self.config.rollout is None else self.config.rollout.model_dump(mode="json"),
            "online": None if self.config.online is None else self.config.online.model_dump(mode="json"),
            "personal": None if self.config.personal is None else self.config.personal.model_dump(mode="json"),
            "effective_batch": effective_batch(training, self.accelerator.num_processes),
            "resolution": self.config.data.resolution,
            "ema": training.ema.model_dump(mode="json"),
            "optimizer": training.optimizer,
        }

    def log(self, step: int, summary) -> None:
        """Reduce over processes, then write on one."""
        values = summary.flush()
        if "d_w" in values:
            values["likelihood_displacement"] = float(self._watch(values))
        values["epoch"] = self.provider.epoch_of(step - 1)
        values["seconds"] = self.loop.train_seconds
        values |= self.provider.totals(self.loop.train_seconds)
        self.progress.update(step, values)
        if self.writer is not None:
            self.writer.write(step, values)

    def checkpoint(self, step: int) -> None:
        """Written by one process; all meet afterwards."""
        state = self.state()  # on every process: a rollout gathers the pairs that wait
        if self.accelerator.is_main_process:
            limit = self.config.training.checkpoints_total_limit
            save_checkpoint(self.output_dir, step, state, self.identity(), limit)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Held-out implicit accuracy and sample grid, with the averaged weights where there are any."""
        with self.ema.applied() if self.ema is not None else nullcontext(), evaluating(self.backbone.unet):
            values = self._heldout() if step else {}
            self._samples(step)
        if self.writer is not None and values:
            self.writer.write(step, values)
            self.progress.note(f"step {step}: held-out implicit accuracy {values['heldout/implicit_accuracy']:.3f}")

    def export(self) -> Path:
        """Portable weights and model card, from the averaged weights where there are any."""
        path = self.output_dir / "export"
        if self.accelerator.is_main_process:
            rows = read_metrics(self.output_dir / "metrics.jsonl")
            final = {key: value for row in rows[-20:] for key, value in row.items()}
            path = export_run(
                self.backbone,
                path,
                self.config,
                final,
                data_fingerprint=self.provider.fingerprint,
                ema_weights=None if self.ema is None else self.ema.weights,
            )
        self.accelerator.wait_for_everyone()
        return path

    def close(self) -> None:
        """Flush files, stop the decoders, end the progress bar."""
        self.progress.close()
        self.provider.close()
        if self.writer is not None:
            self.writer.close()

    def _watch(self, values: dict) -> bool:
        """Show a logged step to the displacement watch; a resumed run shows it the earlier ones again."""
        if values.get("d_w") is None or values.get("margin") is None:
            return False
        return self.displacement.update(values["d_w"], values["margin"])

    def _prepare_probe(self) -> None:
        """Held-out pairs are a data set's, also where training pairs come from rollouts."""
        personal = self.config.personal
        if not has_heldout(self.config.data) and (personal is None or personal.heldout_users == 0):
            return
        offline = self.config.rollout is None and self.config.online is None
        pairs, step = (self.provider, self.step) if offline else (self._pairs(), self._pair_step())
        validation = self.config.validation
        share = -(-validation.heldout_pairs // self.accelerator.num_processes)
        with evaluating(self.backbone.unet):
            self.probe = HeldoutProbe(
                step,
                lambda: pairs.heldout_batches(share, self.config.training.train_batch_size),
                validation.heldout_draws,
                self.backbone.reference if self.backbone.has_reference else None,
            )

    def _heldout(self) -> dict[str, float]:
        if self.probe is None:
            return {}
        rows = self.probe.measure()  # processes may hold different numbers of pairs: reduce sums and counts
        sums = torch.cat([rows.sum(0), torch.tensor([float(len(rows))])]).to(self.accelerator.device)
        *sums, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        accuracy, d_winner, d_loser = (value / count for value in sums)
        return {
            "heldout/implicit_accuracy": accuracy,
            "heldout/d_w": d_winner,
            "heldout/d_l": d_loser,
            "heldout/margin": d_loser - d_winner,
        }

    def _samples(self, step: int) -> None:
        prompts = self.config.validation.validation_prompts
        if not prompts:
            return
        guided = self.config.validation.guidance_scale > 1
        personal = self.config.personal is not None
        for word, sampling in self.step.validation_users(guided) if personal else [("", nullcontext())]:
            folder = self.output_dir / "samples" / f"step-{step}{word}"
            with sampling:
                draw_samples(
                    self.backbone.pipeline(),
                    self.config.validation,
                    folder,
                    self.accelerator.process_index,
                    self.accelerator.num_processes,
                )
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                compose_grid(folder, prompts, folder.with_name(f"{folder.name}.png"))

    def _restore(self, checkpoint: Path) -> None:
        state = self.state()
        self.loop.finished_steps = load_checkpoint(checkpoint, state, self.identity())
        self.loop.train_seconds = state.train_seconds
        for part, owner in (("provider.", self.provider), ("step.", self.step)):
            kept = {name.removeprefix(part): value for name, value in state.provider.items() if name.startswith(part)}
            owner.restore(kept)
        if self.ema is not None:
            self.ema.step = state.ema_step
        for row in read_metrics(self.output_dir / "metrics.jsonl"):
            if row["step"] <= self.loop.finished_steps:
                self._watch(row)

    def _announce(self, resume: Path | None) -> None:
        training, count = self.config.training, sum(p.numel() for p in self.trainable.values())
        batch = effective_batch(training, self.accelerator.num_processes)
        origin = f"resumed from {resume}" if resume else "new run"
        self.progress.note(
            f"{origin} in {self.output_dir}: {self.provider.num_pairs} {self.provider.items}, effective batch {batch}, "
            f"{training.max_train_steps} steps, {count:,} trained parameters, {self.objective.name}"
        )
