"""``t2i-align rewards train`` of noise-aware reward models: LPO's latent one (lrm) and SPO's step-aware one (spm).

The YAML file names the base model, whose VAE and noise schedule the pairs go through, and a data section as a run's.
The run folder holds ``config.yaml``, ``metrics.jsonl``, ``state.pt`` (to go on from), ``model/``, and, with held-out
pairs, ``accuracy.json`` and ``accuracy.png``: how often pairs are ranked right, by timestep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from reward_models.files import write_json, write_text
from reward_models.text_tables import split_lines
from t2i_align.config.layers import Merged
from t2i_align.config.problems import from_sections, report
from t2i_align.config.schema import DataConfig, NonNegativeInt, PositiveInt, Section
from t2i_align.errors import UserError
from t2i_align.sections import Folder

KINDS = ("lrm", "spm")
FINISHED = "finished.json"  # of the run folder: written last
Progress = Callable[[int, int, dict[str, float]], None]


class BaseModelConfig(Section):
    """Whose latents, noise schedule and text encoders are used."""

    pretrained_model_name_or_path: str = Field(description="diffusers folder, hub id, or shapes:base")
    pretrained_vae_model_name_or_path: str | None = Field(None, description="another VAE")
    revision: str | None = None
    variant: str | None = None


class LrmConfig(Section):
    """What of the diffusion model becomes the judge."""

    guidance_scale: float = Field(7.5, ge=1.0, description="visual feature enhancement; 1 turns it off, half the cost")
    enhanced: Literal["mid", "all", "all_but_first"] = Field("mid", description="features that are enhanced")
    stages: PositiveInt | None = Field(
        None, description="down stages that are used, from the finest; null: all and the mid block, as published"
    )
    multi_scale: bool = Field(True, description="features of every resolution, else of the mid block alone")
    text_encoders: Literal["own", "base"] = Field(
        "own", description="own: trained and saved with the model; base: the base model's, never trained, not saved"
    )


class SpmConfig(Section):
    """What scores the predicted pictures."""

    checkpoint: str | None = Field(None, description="PickScore-like CLIP folder to start from; null: the published")
    guidance_scale: float = Field(5.0, ge=0.0, description="of the predictions; that of the rollouts to be scored")


class TrainingSection(Section):
    """How long and how; see the published numbers in configs/."""

    max_train_steps: PositiveInt = 4000
    train_batch_size: PositiveInt = Field(16, description="pairs per step")
    learning_rate: float = Field(1e-5, gt=0.0)
    weight_decay: float = Field(0.3, ge=0.0)
    lr_warmup_steps: NonNegativeInt = 500
    max_grad_norm: float = Field(1.0, gt=0.0)
    timesteps: list[NonNegativeInt] | None = Field(
        None, description="noise levels that are drawn, uniformly; null: all of the schedule"
    )
    shared_noise: bool = Field(False, description="one noise for both pictures of a pair")
    train_text_encoders: bool = True
    weight_by_prompt: bool = Field(True, description="every prompt counts alike, however many pairs it has")
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpointing_steps: PositiveInt = 500

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        """YAML 1.1 reads an unquoted ``no`` as false."""
        return "no" if value is False else value


class ValidationSection(Section):
    """Accuracy on held-out pairs."""

    timesteps: list[NonNegativeInt] = Field([1, 201, 401, 601, 801, 951], min_length=1)
    draws: PositiveInt = Field(2, description="noises per pair")


class NoisyRewardConfig(Section):
    """A whole run."""

    scorer: Literal["lrm", "spm"]
    output_dir: Folder
    seed: NonNegativeInt = 0
    model: BaseModelConfig
    data: DataConfig
    lrm: LrmConfig = Field(default_factory=LrmConfig)
    spm: SpmConfig = Field(default_factory=SpmConfig)
    training: TrainingSection = Field(default_factory=TrainingSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    save_dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32", description="of the saved network; int8 (lrm only) keeps one scale per row"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> NoisyRewardConfig:
        other = "spm" if self.scorer == "lrm" else "lrm"
        if other in self.model_fields_set:
            raise ValueError(f"scorer {self.scorer} does not read the section {other}; remove it")
        if self.scorer == "spm" and self.save_dtype == "int8":
            raise ValueError("save_dtype: int8 is for scorer lrm; use float16")
        if self.scorer == "lrm" and self.lrm.text_encoders == "base" and self.training.train_text_encoders:
            raise ValueError("text_encoders: base are never trained; set training.train_text_encoders: false")
        return self


@dataclass(frozen=True)
class NoisyResult:
    """What a run leaves behind.

    Attributes:
        folder: of the trained model, for ``rollout.scorer.checkpoint``.
        accuracy: held-out accuracy by timestep; empty without held-out pairs.
        trained: false where the run was finished before, and is left as it is.
    """

    folder: Path
    accuracy: dict[int, float]
    trained: bool = True

    def render(self) -> str:
        """A few lines of plain text."""
        lines = [f"Model: {self.folder}" + ("" if self.trained else " (finished before; nothing was written)")]
        if self.accuracy:
            cells = ", ".join(f"t={t} {value:.3f}" for t, value in self.accuracy.items())
            lines.append(f"Held-out accuracy: {cells}")
        return "\n".join(lines)


def is_noisy(values: Mapping[str, Any]) -> bool:
    """Whether a merged configuration asks for one of the kinds trained here."""
    return values.get("scorer") in KINDS


def read_config(merged: Merged, source: str) -> NoisyRewardConfig:
    """Check a merged configuration.

    Raises:
        UserError: every problem together.
    """
    try:
        return NoisyRewardConfig.model_validate(merged.values)
    except ValidationError as error:
        raise report(from_sections(error), source, merged.places) from error


def train(config: NoisyRewardConfig, progress: Progress | None = None) -> NoisyResult:
    """Encode the pairs, train, save, and measure; a run that was interrupted goes on from its last checkpoint.

    One that is finished is left as it is.

    Raises:
        UserError: the model or the pairs cannot be used, or the folder holds another run.
        RewardModelError: a loss that is not finite, or a network of an unknown family.
    """
    from t2i_align.rewards.noisy_run import run

    output_dir = Path(config.output_dir)
    _claim(config, output_dir)
    if (finished := _finished(output_dir)) is not None:
        return finished
    rows: list[dict[str, float]] = []

    def log(step: int, steps: int, metrics: dict[str, float]) -> None:
        rows.append({"step": step, **metrics})
        if progress is not None:
            progress(step, steps, metrics)
        if step % 10 == 0 or step == steps:
            _append(output_dir / "metrics.jsonl", rows)

    folder, accuracy = run(config, output_dir, log)
    if accuracy:
        write_accuracy({config.scorer: accuracy}, output_dir)
    write_json(output_dir / FINISHED, {"model": folder.name, "accuracy": accuracy})
    return NoisyResult(folder, accuracy)


def _finished(output_dir: Path) -> NoisyResult | None:
    """The result of a run that was finished before, and whose model is still there."""
    file = output_dir / FINISHED
    made = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if made is None or not (output_dir / made["model"]).is_dir():
        return None
    return NoisyResult(
        output_dir / made["model"], {int(t): value for t, value in made["accuracy"].items()}, trained=False
    )


def write_accuracy(accuracy: Mapping[str, Mapping[int, float]], output_dir: Path, name: str = "accuracy") -> None:
    """Write held-out accuracies by timestep as JSON and as a figure, one curve per judge."""
    from matplotlib.figure import Figure

    text = json.dumps({judge: {str(t): v for t, v in values.items()} for judge, values in accuracy.items()}, indent=1)
    (output_dir / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for judge, values in accuracy.items():
        axes.plot(list(values), list(values.values()), marker="o", label=judge)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("timestep (noise)")
    axes.set_ylabel("accuracy on held-out pairs")
    axes.legend()
    figure.savefig(output_dir / f"{name}.png", dpi=120)


def _claim(config: NoisyRewardConfig, output_dir: Path) -> None:
    """Write the configuration; a folder with another one is refused."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    path = output_dir / "config.yaml"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            "The output folder holds a run with other settings.", str(output_dir), "choose another output_dir"
        )
    if not path.is_file() and output_dir.exists() and any(output_dir.iterdir()):
        raise UserError("The output folder is not empty.", str(output_dir), "choose another output_dir")
    if not path.is_file():
        write_text(path, text)


def _append(path: Path, rows: list[dict[str, float]]) -> None:
    """Add rows and empty the list; rows of steps that are run again replace the earlier ones."""
    kept: Sequence[str] = []
    if path.is_file():
        lines = split_lines(path.read_text(encoding="utf-8"))
        kept = [line for line in lines if json.loads(line)["step"] < rows[0]["step"]]
    write_text(path, "".join(f"{line}\n" for line in [*kept, *map(json.dumps, rows)]))
    rows.clear()
