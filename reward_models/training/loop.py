"""The training loop: accelerate for devices and precision, addressed batches, resume, held-out validation."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from reward_models.checkpoints import write_network, write_random
from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError
from reward_models.loading import read_json
from reward_models.mps import MPSScorer
from reward_models.registry import load
from reward_models.scorer import BaseScorer, torch_dtype
from reward_models.training.config import RewardTrainingConfig
from reward_models.training.data import AddressedBatches, PairDataset, pair_batches, to_device
from reward_models.training.metrics import pair_report
from reward_models.training.pair_model import PairModel, PairTensors, build_pair_model
from reward_models.training.plots import calibration_plot
from reward_models.training.records import PreferenceRecord
from reward_models.training.run_folder import RunFolder

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingResult:
    """What `train` leaves behind.

    Attributes:
        final: folder of the scorer after the last step.
        best: folder of the scorer with the best held-out accuracy, of equals the one with the lowest log loss; None
            without validation pairs.
        report: `pair_report` per dimension for `final` and `best`.
        trained: false where the run was finished before, and is left as it is.
    """

    final: Path
    best: Path | None
    report: dict[str, Any]
    trained: bool = True


@dataclass
class TrainingProgress:
    """The part of a checkpoint that is neither weights nor optimiser."""

    step: int = 0
    best_step: int = 0
    best_accuracy: float = -math.inf
    best_report: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def train(
    config: RewardTrainingConfig,
    train_records: Sequence[PreferenceRecord],
    validation_records: Sequence[PreferenceRecord] | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a scorer on preference pairs.

    Args:
        config: what, from where, how long.
        train_records: indexable pairs; pictures are decoded when used.
        validation_records: held-out pairs for accuracy, calibration and the choice of the best scorer.
        progress: called after every step with (step, steps, metrics) on the main process.

    Raises:
        RewardModelError: a wrong checkpoint, an undecodable picture, a pair without labels, a loss that is
            not finite.
    """
    folder = RunFolder(config)
    if folder.is_finished(folder.checkpoint_to_resume()):
        best, report = folder.root / "best", read_json(folder.root / "metrics.json")
        return TrainingResult(folder.root / "final", best if best.is_dir() else None, report, trained=False)
    return RewardTrainer(config, train_records, validation_records, progress).run()


class RewardTrainer:
    """State and steps of one run; see `train`."""

    def __init__(
        self,
        config: RewardTrainingConfig,
        train_records: Sequence[PreferenceRecord],
        validation_records: Sequence[PreferenceRecord] | None,
        progress: Progress | None,
    ) -> None:
        self.config, self.report_progress = config, progress
        self.folder = RunFolder(config)
        resume = self.folder.checkpoint_to_resume()
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
        )
        scorer = starting_scorer(config)
        if not isinstance(scorer, (ClipLikeScorer, MPSScorer)):
            raise RewardModelError("this scorer cannot be trained", found=scorer.name)
        self.tokenise, self.network = scorer.tokenise, scorer.model
        self.train_data = PairDataset(train_records, scorer.preprocessor, list(config.dimensions))
        self.validation_data = (
            PairDataset(validation_records, scorer.preprocessor, list(config.dimensions))
            if validation_records
            else None
        )
        model = build_pair_model(scorer, config)
        optimizer = build_optimizer(model, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(config))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.progress = TrainingProgress()
        self.last_report: dict[str, Any] = {}
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        if resume is not None:
            self.accelerator.load_state(str(resume))
        if self.accelerator.is_main_process:
            self.folder.start(self.progress.step)
        self.accelerator.wait_for_everyone()

    def run(self) -> TrainingResult:
        """All remaining steps, then the last validation and the final scorer."""
        losses: list[Tensor] = []
        self.model.train()
        for batch in self._batches():
            with self.accelerator.accumulate(self.model):
                losses.append(self._micro_step(batch))
            if self.accelerator.sync_gradients:
                self._after_step(torch.stack(losses).mean())
                losses = []
        return self._finish()

    def _batches(self) -> Iterator[PairTensors]:
        accumulation, accelerator = self.config.gradient_accumulation_steps, self.accelerator
        batches = AddressedBatches(
            len(self.train_data),
            self.config.train_batch_size,
            self.config.seed,
            self.progress.step * accumulation,
            self.config.max_train_steps * accumulation,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return pair_batches(self.train_data, batches, self.tokenise, self.config.dataloader_num_workers)

    def _micro_step(self, batch: PairTensors) -> Tensor:
        self.accelerator.unwrap_model(self.model).set_progress(self.progress.step / self.config.max_train_steps)
        loss = self.model(to_device(batch, self.accelerator.device)).loss
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _after_step(self, loss: Tensor) -> None:
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.progress.step += 1
        step, config = self.progress.step, self.config
        self._clamp_logit_scale()
        value = float(self.accelerator.reduce(loss, reduction="mean"))
        if not math.isfinite(value):
            raise RewardModelError(
                f"the loss is not finite at step {step}",
                found=str(value),
                fix="lower learning_rate, or use mixed_precision bf16 instead of fp16",
            )
        row = {"step": step, "loss": value, "learning_rate": rate, "logit_scale": self._scale()}
        if self.accelerator.is_main_process:
            self.folder.log(row)
            if self.report_progress:
                self.report_progress(step, config.max_train_steps, row)
        last = step == config.max_train_steps
        if self.validation_data and (last or step % config.validation_steps == 0):
            self._validate()
        if last or step % config.checkpointing_steps == 0:
            self._checkpoint()

    @torch.no_grad()
    def _clamp_logit_scale(self) -> None:
        if self.config.max_logit_scale is not None:
            scale = self.accelerator.unwrap_model(self.model).logit_scale
            scale.clamp_(0, math.log(self.config.max_logit_scale))

    def _scale(self) -> float:
        return float(self.accelerator.unwrap_model(self.model).logit_scale.detach().exp())

    def _validate(self) -> None:
        margins, labels = self.margins(self.validation_data)
        report = {
            dimension: pair_report(_sigmoid(margins[known, column]), labels[known, column])
            for column, dimension in enumerate(self.config.dimensions)
            if (known := ~np.isnan(labels[:, column])).any()
        }
        # A dimension whose held-out labels are all ties has no accuracy; without any the log loss decides.
        untied = [part["accuracy"] for part in report.values() if part["untied_pairs"]]
        accuracy = float(np.mean(untied)) if untied else -_mean_log_loss(report)
        step, best = self.progress.step, self.progress.best_accuracy
        # A few hundred pairs make equal accuracies common.
        better = accuracy > best or (
            accuracy == best and _mean_log_loss(report) < _mean_log_loss(self.progress.best_report)
        )
        if better:
            self.progress.best_accuracy, self.progress.best_step = accuracy, step
            self.progress.best_report = report
        self.last_report = report
        if self.accelerator.is_main_process:
            keys = ("accuracy", "tie_accuracy", "log_loss", "expected_calibration_error")
            flat = {f"{name}/{key}": part[key] for name, part in report.items() for key in keys}
            self.folder.log({"step": step, "validation_accuracy": accuracy, **flat})
            if better:
                self._write_scorer("best")
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def margins(self, data: PairDataset) -> tuple[np.ndarray, np.ndarray]:
        """Logit margins s_a - s_b and labels, both [N, C] in the order of the records, on every process."""
        size, accelerator = self.config.train_batch_size, self.accelerator
        batches = [list(range(start, min(start + size, len(data)))) for start in range(0, len(data), size)]
        own = batches[accelerator.process_index :: accelerator.num_processes]
        model, found = accelerator.unwrap_model(self.model).eval(), []
        loader = pair_batches(data, own, self.tokenise, self.config.dataloader_num_workers)
        for indices, batch in zip(own, loader, strict=True):
            with accelerator.autocast():
                margins = model.margins(to_device(batch, accelerator.device))
            found.append((indices, margins.float().cpu().numpy(), batch.labels_a.numpy()))
        model.train()
        everything = sorted(gather_object(found), key=lambda part: part[0][0])
        return np.concatenate([part[1] for part in everything]), np.concatenate([part[2] for part in everything])

    def _checkpoint(self) -> None:
        partial = self.folder.root / f".checkpoint-{self.progress.step}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.finish_checkpoint(partial, self.progress.step)
        self.accelerator.wait_for_everyone()

    def _write_scorer(self, name: str) -> None:
        target, new = self.folder.root / name, self.folder.root / f".{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        write_network(self.network, self.tokenise, new, torch_dtype(self.config.save_dtype))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)

    def _finish(self) -> TrainingResult:
        report: dict[str, Any] = {}
        if self.validation_data:
            if not self.last_report:
                self._validate()  # resumed after the last step
            report = {
                "final": {"step": self.progress.step, **self.last_report},
                "best": {"step": self.progress.best_step, **self.progress.best_report},
            }
        if self.accelerator.is_main_process:
            self._write_scorer("final")
            self.folder.write_json("metrics.json", report)
            if report:
                calibration_plot(self.progress.best_report, self.folder.root / "calibration.png")
        self.accelerator.wait_for_everyone()
        root = self.folder.root
        return TrainingResult(root / "final", root / "best" if self.validation_data else None, report)


def _mean_log_loss(report: dict[str, Any]) -> float:
    """Mean over the dimensions of a report."""
    return float(np.mean([part["log_loss"] for part in report.values()]))


def starting_scorer(config: RewardTrainingConfig) -> BaseScorer:
    """The scorer a run starts from: its checkpoint, or random weights that are a function of the seed."""
    options = {"tokenizer": config.tokenizer, "model_config": config.model_configuration}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if config.checkpoint is not None:
        return load(config.scorer, config.checkpoint, "cpu", "float32", **given)
    assert config.model_configuration is not None  # the configuration's own rule
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        write_random(config.scorer, start, config.model_configuration, config.tokenizer, config.seed)
        return load(config.scorer, start, "cpu", "float32")


def _sigmoid(margins: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-margins.astype(np.float64)))


def build_optimizer(model: PairModel, config: RewardTrainingConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; gains and biases may be spared the weight decay."""
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 and not config.decay_gains_and_biases
            (spared if spare else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def learning_rate_factor(config: RewardTrainingConfig) -> Callable[[int], float]:
    """Factor on the learning rate for the update after `step` updates: linear warm-up, then the decay."""
    warmup, total = config.lr_warmup_steps, config.max_train_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        if config.lr_scheduler == "linear":
            return max(0.0, 1 - done)
        if config.lr_scheduler == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor
