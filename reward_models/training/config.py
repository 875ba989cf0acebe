"""Typed configuration of a training run; unknown keys and options without effect are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reward_models.errors import RewardModelError


class RewardTrainingConfig(BaseModel):
    """One run. The defaults are PickScore's published recipe; `RECIPES` has HPS v2's and an MPS one."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    # What is trained, and from what.
    scorer: Literal["pickscore", "hps_v1", "hpsv2", "hpsv2.1", "mps"] = "pickscore"
    checkpoint: str | None = Field(description="None: random weights of model_config, drawn from seed")
    tokenizer: str | None = None
    model_configuration: str | dict[str, Any] | None = Field(default=None, alias="model_config")
    output_dir: Path
    seed: int = 42

    # Batches: pairs per device and step.
    train_batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_train_steps: int = Field(default=4000, ge=1)
    dataloader_num_workers: int = Field(default=0, ge=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"

    # Optimiser.
    learning_rate: float = Field(default=3e-6, gt=0)
    weight_decay: float = Field(default=0.3, ge=0)
    decay_gains_and_biases: bool = True
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    lr_warmup_steps: int = Field(default=500, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)

    # Objective.
    loss: Literal["pickscore", "hps", "mps"] = "pickscore"
    in_batch_negatives: bool = False
    conditions: dict[str, str] | None = Field(
        default=None, description="mps only: label dimension -> condition name or text"
    )
    mask_threshold: float | None = Field(default=None, ge=0, lt=1, description="mps only: overrides the checkpoint's")
    mask_temperature: float | None = Field(default=None, gt=0, description="mps only: soft mask at the start")
    max_logit_scale: float | None = Field(default=None, gt=0, description="clamp exp(logit_scale) to it")

    # Freezing: None trains all blocks.
    trainable_text_blocks: int | None = Field(default=None, ge=0)
    trainable_image_blocks: int | None = Field(default=None, ge=0)

    # Validation and checkpoints.
    validation_steps: int = Field(default=100, ge=1)
    checkpointing_steps: int = Field(default=500, ge=1)
    checkpoints_total_limit: int = Field(default=2, ge=1)
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", description="of best/ and final/")
    resume_from_checkpoint: str | None = Field(default=None, description="latest, or a checkpoint")

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: object) -> object:
        """A blank path would be the current folder."""
        if isinstance(value, str) and not value.strip():
            raise ValueError("is blank; give it a value, or leave the key out")
        return value

    @field_validator("output_dir")
    @classmethod
    def _home_is_expanded(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        """YAML 1.1 reads an unquoted `no` as false."""
        return "no" if value is False else value

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> RewardTrainingConfig:
        if (self.scorer == "mps") != (self.loss == "mps"):
            raise ValueError("loss 'mps' belongs to scorer 'mps', and the other losses to the other scorers")
        if self.in_batch_negatives and self.loss != "pickscore":
            raise ValueError(f"in_batch_negatives is not read by loss '{self.loss}'")
        for name in ("conditions", "mask_threshold", "mask_temperature"):
            if getattr(self, name) is not None and self.loss != "mps":
                raise ValueError(f"{name} is not read by loss '{self.loss}'")
        if self.checkpoint is None and self.model_configuration is None:
            raise ValueError("checkpoint is None, which starts from random weights, and these need a model_config")
        if self.lr_warmup_steps > self.max_train_steps:
            raise ValueError("lr_warmup_steps exceeds max_train_steps")
        return self

    @property
    def dimensions(self) -> dict[str, str]:
        """Label dimension -> condition; a scorer without conditions has the one dimension `overall`."""
        return self.conditions or {"overall": "overall"}


RECIPES: dict[str, dict[str, Any]] = {
    # Batch 128 as 16 pairs on 8 devices, bf16, everything trained, logit_scale not clamped.
    "pickscore": {"mixed_precision": "bf16"},
    # Loss summed over the local batch of 16, no decay of gains and biases, most of the text tower frozen. The
    # published image freeze is by "groups": projection, 19 blocks and final norm are the last 20.
    "hpsv2": {
        "scorer": "hpsv2",
        "loss": "hps",
        "learning_rate": 3.3e-6,
        "weight_decay": 0.35,
        "decay_gains_and_biases": False,
        "lr_scheduler": "cosine",
        "max_grad_norm": None,
        "max_logit_scale": 100.0,
        "trainable_text_blocks": 11,
        "trainable_image_blocks": 19,
        "mixed_precision": "bf16",
    },
    # The paper samples a dimension per example; here every labelled dimension of a pair counts.
    "mps": {
        "scorer": "mps",
        "loss": "mps",
        "conditions": {name: name for name in ("overall", "aesthetic", "detail", "semantic")},
        "mixed_precision": "bf16",
    },
}


def training_config(content: dict[str, Any]) -> RewardTrainingConfig:
    """Validate a mapping; `recipe: NAME` in it starts from an entry of `RECIPES`.

    Raises:
        RewardModelError: every problem at once.
    """
    content = dict(content)
    recipe = content.pop("recipe", None)
    if recipe is not None and recipe not in RECIPES:
        raise RewardModelError("unknown recipe", found=str(recipe), fix=f"choose from: {', '.join(RECIPES)}")
    try:
        return RewardTrainingConfig.model_validate({**RECIPES.get(recipe, {}), **content})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise RewardModelError("the training configuration is wrong", found="; ".join(problems)) from error
