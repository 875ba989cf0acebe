"""The typed shape of a run's YAML file: one pydantic model per section, unknown keys forbidden.

Names follow the diffusers training scripts, so that a known recipe can be carried over by eye. Rules across
sections (an option that the chosen objective or model does not read) live in ``rules.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from t2i_align.objectives.config import ObjectiveConfig
from t2i_align.online.config import OnlineConfig
from t2i_align.personal.section import PersonalSection
from t2i_align.sections import Folder, Section
from t2i_align.stepwise.config import RolloutConfig

Tracker = Literal["tensorboard", "wandb"]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PairField = Literal[
    "caption", "image_0", "image_1", "winner", "label_0", "label_1", "has_label", "chosen", "rejected",
    "caption_1", "id", "user_id", "weight", "margins", "score_0", "score_1",
]  # fmt: skip
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class LoraConfig(Section):
    """Low-rank adapters on the denoiser (peft)."""

    rank: PositiveInt = Field(16, description="rank r of the update B A")
    alpha: float | None = Field(None, gt=0, description="the update is alpha / rank * B A; null means rank")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"],
        min_length=1,
        description="module name endings that get an adapter",
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the adapter input")
    use_dora: bool = Field(False, description="weight-decomposed LoRA (DoRA)")


class ModelConfig(Section):
    """What is denoised, how it is adapted, and what it is compared with."""

    pretrained_model_name_or_path: str = Field(description="diffusers folder, hub id, or shapes:base")
    pretrained_vae_model_name_or_path: str | None = Field(
        None, description="another VAE, e.g. one that is safe in fp16"
    )
    revision: str | None = Field(None, description="hub revision")
    variant: str | None = Field(None, description="file variant such as fp16")
    train: Literal["lora", "full", "user"] = Field(
        "lora",
        description="train LoRA adapters, the whole UNet, or the user adapter of the personal section",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig)
    reference: Literal["auto", "adapter_off", "frozen_copy", "precomputed"] = Field(
        "auto",
        description="reference policy; auto: the base under disabled adapters, a frozen copy for full training; "
        "precomputed: its errors are measured before the first step and kept for later runs",
    )
    reference_draws: PositiveInt = Field(
        4, description="timesteps and noises per item of a precomputed reference; later passes go through them again"
    )
    reference_dir: str | None = Field(
        None, description="where precomputed reference errors are kept; null: beside data.cache_dir"
    )
    attention: Literal["auto", "xformers", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math"] = Field(
        "auto", description="attention kernels; auto: xformers where it runs in half precision, else sdpa"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute activations in the backward pass; auto: in as few blocks as the memory estimate allows",
    )
    memory_limit_gb: float | None = Field(
        None,
        gt=0.0,
        description="what gradient_checkpointing: auto may use; null: what the device has free",
    )
    channels_last: bool = Field(False, description="keep the denoiser's maps and weights channels last in memory")
    compile: bool = Field(False, description="torch.compile the repeated UNet blocks")


class DataConfig(Section):
    """Where pairs come from and how pictures become tensors."""

    source: str = Field(
        description="parquet file or folder, URL of either (s3://, hf://datasets/...), HF dataset folder or hub id, "
        "JSONL, CSV or TSV file, folder with chosen/ and rejected/, or shapes:pairs"
    )
    format: Literal["auto", "pickapic", "jsonl", "ranked", "table", "folders"] = Field(
        "auto", description="record layout; auto looks at it. table: CSV or TSV; folders: chosen/ and rejected/"
    )
    columns: dict[PairField, str] = Field(
        {},
        description="our field (caption, image_0, image_1, winner, label_0, chosen, rejected, user_id ...) -> the "
        "column that holds it, where its own name does not say so",
    )
    split: str = Field("train", description="split of a hub dataset or dataset folder")
    heldout_source: str | None = Field(None, description="pairs kept out of training, for implicit accuracy")
    heldout_split: str = Field("validation", description="split used with heldout_source")
    heldout_fraction: float = Field(0.0, ge=0.0, lt=1.0, description="share of the source's prompts held out instead")
    ties: Literal["drop", "soft", "coin", "zero_weight"] = Field("drop", description="what a label of 0.5 becomes")
    resolution: PositiveInt = Field(description="side of the square training picture in pixels")
    center_crop: bool = Field(True, description="centre crop; false: addressed random crop shared by the pair")
    random_flip: bool = Field(False, description="horizontal flip with probability 1/2, shared by the pair")
    max_pairs: PositiveInt | None = Field(None, description="use only the first n usable pairs")
    loser_captions: Literal["as_given", "weak", "medium", "strong"] = Field(
        "as_given", description="perturb the losers' captions, without a language model, for objective dcpo"
    )
    list_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="pictures per item of a ranked or group objective; null: whole lists, all of one length"
    )
    shuffle_labels: bool = Field(False, description="control: labels drawn by fair coin; nothing should be learnt")
    proportion_empty_prompts: Probability = Field(0.0, description="caption dropout, one draw per pair")
    cache_dir: str | None = Field(None, description="encoded latents and prompts; null: encode live images every step")
    dataloader_num_workers: NonNegativeInt = Field(0, description="worker threads that decode pictures ahead")


class EmaConfig(Section):
    """Exponential moving average of the trained weights."""

    enabled: bool = Field(False, description="keep the average, validate with it and export it")
    decay: float = Field(0.999, gt=0.0, lt=1.0, description="share of the old average kept at each step")
    update_after_step: NonNegativeInt = Field(0, description="follow the weights exactly until this step")


class TrainingConfig(Section):
    """The loop: budget, optimiser, precision, checkpoints."""

    train_batch_size: PositiveInt = Field(4, description="pairs per device and micro-step")
    gradient_accumulation_steps: PositiveInt = Field(1, description="micro-steps per optimiser step")
    max_train_steps: NonNegativeInt = Field(description="optimiser steps")
    learning_rate: float = Field(ge=0.0, description="absolute learning rate at the optimiser")
    scale_lr: bool = Field(False, description="multiply learning_rate by the effective batch in pairs; printed")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field("constant_with_warmup", description="learning-rate schedule, by its diffusers name")
    lr_warmup_steps: NonNegativeInt = Field(0, description="in optimiser steps, whatever the number of processes")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw",
        description="adamw_8bit needs bitsandbytes (CPU: 0.50); adafactor runs with an absolute learning rate",
    )
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="decay of the first moment")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="decay of the second moment")
    adam_weight_decay: float = Field(1e-2, ge=0.0, description="decoupled weight decay, of every optimiser")
    adam_epsilon: float = Field(1e-8, gt=0.0, description="added to the root of the second moment")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are clipped to this global norm")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="autocast type and storage type of frozen weights; trained weights stay float32"
    )
    allow_tf32: bool = Field(False, description="TensorFloat-32 matrix products on CUDA")
    ema: EmaConfig = Field(default_factory=EmaConfig)
    checkpointing_steps: PositiveInt = Field(500, description="write a resumable checkpoint every n optimiser steps")
    checkpoints_total_limit: PositiveInt | None = Field(None, description="keep only the newest n; null keeps all")
    resume_from_checkpoint: str | None = Field(None, description="latest, or a checkpoint-N folder")
    logging_steps: PositiveInt = Field(1, description="write metrics every n optimiser steps")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        """YAML 1.1 reads an unquoted ``no`` as false."""
        return "no" if value is False else value


class ValidationConfig(Section):
    """Pictures and held-out accuracy during training."""

    validation_prompts: list[str] = Field([], description="one picture each in every sample grid")
    validation_steps: PositiveInt | None = Field(None, description="every n optimiser steps; null: only at the end")
    num_inference_steps: PositiveInt = Field(25, description="denoising steps per picture")
    guidance_scale: float = Field(5.0, ge=0.0, description="classifier-free guidance; 1 and below turn it off")
    validation_seed: NonNegativeInt = Field(0, description="of the initial noise, the same at every validation")
    heldout_pairs: PositiveInt = Field(256, description="held-out pairs used for implicit accuracy, at most")
    heldout_draws: PositiveInt = Field(4, description="(timestep, noise) draws per held-out pair")


class ExportConfig(Section):
    """Portable weights written when training finishes."""

    kohya: bool = Field(False, description="also write the LoRA under kohya keys")
    save_dtype: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="type of the exported weights")


class RunConfig(Section):
    """A whole run."""

    output_dir: Folder = Field(description="run folder")
    seed: NonNegativeInt = Field(0, description="of everything random; draws are addressed, not streamed")
    report_to: list[Tracker] = Field(["tensorboard"], description="trackers fed beside metrics.jsonl; may be empty")
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    rollout: RolloutConfig | None = Field(
        None, description="on-policy pairs of latents within sampling (LPO, SPO, TailorPO); null: none"
    )
    online: OnlineConfig | None = Field(None, description="on-policy pairs of finished pictures; null: none")
    personal: PersonalSection | None = Field(None, description="one model for many users; null: one taste for all")
    training: TrainingConfig
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
