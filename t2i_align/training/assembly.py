"""The objects of one run: built from a loaded model, restored, logged, validated and exported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from reward_models.files import write_json
from t2i_align import objectives
from t2i_align.backbones import Backbone, trainable_state
from t2i_align.backbones.modes import evaluating
from t2i_align.config.loading import save_resolved
from t2i_align.config.schema import RunConfig
from t2i_align.data.provider import PairProvider
from t2i_align.export import export_run
from t2i_align.export.history import in_words, read_history, write_history
from t2i_align.training.ema import Ema
from t2i_align.training.environment import ENVIRONMENT, describe_environment, differences, read_environment
from t2i_align.training.items import LAYOUTS
from t2i_align.training.loop import Hooks, Loop
from t2i_align.training.memory import WHOLE, Shares, plan_memory, rest_encoders, rows_of
from t2i_align.training.metrics import MetricsWriter, read_metrics
from t2i_align.training.optimisers import absolute_learning_rate, build_optimizer, build_scheduler, effective_batch
from t2i_align.training.parts import Parts, build_parts, is_offline
from t2i_align.training.prediction_check import warn_of_worse_than_zero
from t2i_align.training.progress import Progress
from t2i_align.training.record import Record
from t2i_align.training.reference_errors import precompute_reference
from t2i_align.training.resuming import Resumption
from t2i_align.training.rows import collect
from t2i_align.training.saving import Saver
from t2i_align.training.sharding import divide, requested
from t2i_align.training.step import PairStep
from t2i_align.training.validation import Validation


class Run:
    """The objects of one run, wired together, and what happens around the loop's steps."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, backbone: Backbone, objective: objectives.Objective
    ) -> None:
        self.config, self.accelerator, self.backbone, self.objective = config, accelerator, backbone, objective
        self.output_dir = Path(config.output_dir)
        self.record = Record(Progress(config.training.max_train_steps, accelerator.is_main_process))
        self.parts: Parts = build_parts(config, backbone, objective, accelerator)
        rest_encoders(config, backbone, objective)
        self._plan_memory()
        self.sharding = divide(config, backbone, accelerator)
        self.trainable = trainable_state(backbone)
        self.ema = Ema(config.training.ema, self.trainable) if config.training.ema.enabled else None
        self.loop = self._loop()
        self.saver = Saver(config, objective, accelerator, self.parts, self.trainable, self.ema, self.loop)
        self.validation: Validation | None = None

    def _plan_memory(self) -> None:
        """Estimate a step, and recompute what does not fit; the denoiser must still be whole."""
        decides = self.config.model.gradient_checkpointing == "auto" or self.accelerator.device.type == "cuda"
        if decides and self.config.personal is None:  # a user adapter's passes need users
            rows = rows_of(self.config, self.objective, self.parts.provider)
            request, count = requested(), self.accelerator.num_processes
            shares = Shares(count, request) if request is not None and count > 1 else WHOLE
            self.record.progress.note(plan_memory(self.config, self.backbone, rows, shares))

    def _loop(self) -> Loop:
        """The loop around a prepared (moved, wrapped) denoiser and its optimiser."""
        training = self.config.training
        parameters = list(self.trainable.values())
        rate = absolute_learning_rate(training, self.accelerator.num_processes)
        optimizer = build_optimizer(training, parameters, rate)
        policy: torch.nn.Module = self.backbone.unet
        if self.sharding is None:
            policy, optimizer = self.accelerator.prepare(policy, optimizer)
        self.backbone.policy = policy
        return Loop(
            config=self.config,
            accelerator=self.accelerator,
            step=self.parts.step,
            provider=self.parts.provider,
            policy=policy,
            parameters=parameters,
            optimizer=optimizer,
            scheduler=build_scheduler(training, optimizer),
            hooks=Hooks(self.log, lambda step: self.saver.save(step), self.validate),
            ema=self.ema,
        )

    def prepare(self, resume: Resumption | None) -> None:
        """Run folder, held-out reference (still the base model), then the checkpoint."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self.validation = Validation(self.config, self.backbone, self.parts, self.accelerator)
            self._look_ahead()
            self._check_prediction()
        if resume is not None:
            self.saver.restore(resume.checkpoint)
            rows = read_metrics(self.output_dir / "metrics.jsonl")
            self.record.remember(row for row in rows if row["step"] <= self.loop.finished_steps)
        if self.accelerator.is_main_process:
            self._open_folder(resume)
        self.accelerator.wait_for_everyone()
        if resume is None:
            self.validate(0)

    def log(self, step: int, summary) -> None:
        """Reduce over processes, then write on one."""
        provider, seconds = self.parts.provider, self.loop.train_seconds
        values = summary.flush() | {"epoch": provider.epoch_of(step - 1), "seconds": seconds}
        self.record.log(step, values | provider.totals(seconds))

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Held-out implicit accuracy and sample grid, with the averaged weights where there are any."""
        assert self.validation is not None  # prepare makes it
        averaged = self.ema.applied() if self.ema is not None else nullcontext()
        with averaged, self._alone(), evaluating(self.backbone.unet), self.backbone.encoders_here():
            values = self.validation.heldout() if step else {}
            grids = self.validation.draw(step)
        self.record.heldout(step, values)
        self.record.pictures(step, grids)

    def export(self) -> Path:
        """Portable weights and model card, from the averaged weights where there are any."""
        path, weights = self.output_dir / "export", None if self.ema is None else self.ema.weights
        if self.sharding is not None:
            weights = collect(weights or self.trainable, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            rows = read_metrics(self.output_dir / "metrics.jsonl")
            path = export_run(
                self.backbone,
                path,
                self.config,
                {key: value for row in rows[-20:] for key, value in row.items()},
                data_fingerprint=self.parts.provider.fingerprint,
                weights=weights,
                history=read_history(self.output_dir, before=self.loop.finished_steps),
            )
        self.accelerator.wait_for_everyone()
        return path

    def close(self) -> None:
        """Flush files, stop the decoders, end the progress bar."""
        self.record.close()
        self.parts.provider.close()

    def _alone(self) -> AbstractContextManager[None]:
        """Inside, every process can make passes without gradients that the others do not join."""
        return nullcontext() if self.sharding is None else self.sharding.gathered()

    def _look_ahead(self) -> None:
        """Measure the reference's errors where that is done beforehand."""
        provider, step = self.parts.provider, self.parts.step
        if self.config.model.reference == "precomputed":
            assert isinstance(provider, PairProvider) and isinstance(step, PairStep)  # a rule of the configuration
            parts = (self.backbone, self.objective, provider, step, self.accelerator)
            self.record.progress.note(precompute_reference(self.config, *parts))

    def _check_prediction(self) -> None:
        """Warn when the schedule contradicts the weights; on-policy runs have no real pictures to ask about."""
        if is_offline(self.config) and isinstance(self.parts.step, PairStep):
            items = LAYOUTS[self.objective.layout](self.parts.provider.batch(0, 0))
            warn_of_worse_than_zero(self.backbone, items)

    def _open_folder(self, resume: Resumption | None) -> None:
        """Configuration, environment, history and metrics file (main process), and a line that says what begins."""
        environment = describe_environment(
            num_processes=self.accelerator.num_processes,
            device=self.accelerator.device,
            attention=self.backbone.attention_choice,
        )
        if resume is not None:
            before = read_environment(self.output_dir)
            write_history(self.output_dir, resume.entry(differences(before, environment)))
        history = read_history(self.output_dir) if resume is not None else []
        save_resolved(self.config, self.output_dir / "config.yaml", in_words(history))
        write_json(self.output_dir / ENVIRONMENT, environment, indent=1)
        self.record.writer = MetricsWriter(
            self.output_dir, self.config.report_to, self.config.model_dump(mode="json"), self.loop.finished_steps
        )
        self.record.progress.note(self._opening(resume))

    def _opening(self, resume: Resumption | None) -> str:
        """What begins, in one line, and what a resumed run does differently in further ones."""
        training, provider = self.config.training, self.parts.provider
        batch = effective_batch(training, self.accelerator.num_processes)
        origin = "new run" if resume is None else f"resumed from {resume.checkpoint}"
        count = sum(parameter.numel() for parameter in self.trainable.values())
        changed = {} if resume is None else resume.acting | resume.beside
        return "\n".join(
            [
                f"{origin} in {self.output_dir}: {provider.num_pairs} {provider.items}, effective batch {batch}, "
                f"{training.max_train_steps} steps, {count:,} trained parameters, {self.objective.name}",
                *(f"  {key}: {value['then']} before, {value['now']} from here on" for key, value in changed.items()),
            ]
        )
