"""Step-level training on tiny pipelines, without files: the loop's calls in the loop's order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from t2i_align import objectives
from t2i_align.backbones import Backbone, load_backbone
from t2i_align.config.schema import RunConfig
from t2i_align.stepwise.build import Stepwise, build_stepwise
from t2i_align.stepwise.config import RolloutConfig
from t2i_align.training.step import Draws

PROMPTS = ["a red circle", "a blue square", "a green star"]
ROLLOUT = {
    "scorer": {"name": "channel_mean"},
    "threshold": {"schedule": "constant", "low": 0.0},
    "prompts_per_rollout": 2,
    "num_inference_steps": 4,
    "candidates": 3,
    "guidance_scale": 2.0,
}


def run_config(model: Path, resolution: int = 32, **training) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output_dir": "unused",
            "seed": 3,
            "model": {"pretrained_model_name_or_path": str(model), "lora": {"rank": 4}},
            "data": {"source": "unused.parquet", "resolution": resolution},
            "objective": {"preset": "dpo", "beta": 500.0},
            "training": {"train_batch_size": 4, "max_train_steps": 8, "learning_rate": 1e-3, **training},
        }
    )


@dataclass
class Trainer:
    """What the loop does with a provider and a step."""

    config: RunConfig
    backbone: Backbone
    parts: Stepwise
    optimizer: torch.optim.Optimizer
    losses: list[list[float]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    finished: int = 0

    def steps(self, count: int) -> Trainer:
        for _ in range(count):
            self._optimise()
        return self

    def _optimise(self) -> None:
        accumulation = self.config.training.gradient_accumulation_steps
        losses = []
        for micro_step in range(accumulation):
            batch = self.parts.provider.batch(self.finished, micro_step)
            if len(batch) == 0:
                continue
            output, timesteps = self.parts.step.loss(batch, Draws("train", 0), self.finished)
            assert timesteps.shape == output.loss.shape == (len(batch),)
            (output.loss.mean() / accumulation).backward()
            losses.append(float(output.loss.detach().mean()))
        if losses:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(losses)
        self.metrics.append({**self.parts.provider.metrics(), **self.parts.provider.totals(0.0)})
        self.finished += 1


def trainer(
    model: Path,
    rollout: dict | None = None,
    scorer=None,
    objective: dict | None = None,
    learning_rate: float = 1e-3,
    resolution: int = 32,
    prompts: list[str] | None = None,
    accelerator=None,
    **training,
) -> Trainer:
    torch.manual_seed(0)  # adapter initialisation
    config = run_config(model, resolution, **training)
    resolved = objectives.resolve(objective or config.objective)
    backbone = load_backbone(config.model, torch.device("cpu"), torch.float32, needs_reference=resolved.needs_reference)
    section = RolloutConfig.model_validate({**ROLLOUT, **(rollout or {})})
    accelerator = accelerator or Accelerator(cpu=True)
    parts = build_stepwise(config, section, backbone, resolved, accelerator, prompts or PROMPTS, scorer)
    optimizer = torch.optim.AdamW(backbone.trainable_parameters(), lr=learning_rate)
    return Trainer(config, backbone, parts, optimizer)


def weights(run: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.backbone.trainable_parameters()]
