"""``load_for_sampling``: from anything that names a model to a plain diffusers pipeline."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel
from pydantic import ValidationError

from t2i_align.backbones.fit import check_component, check_fits_base, check_pipeline_weights, settle_variant
from t2i_align.backbones.folders import BUILT_IN, MODEL_INDEX, read_json, read_model_index, resolve_folder
from t2i_align.backbones.loading import BACKBONES, load_pipeline, load_vae, loading_errors, quiet_loading
from t2i_align.backbones.lora_files import LORA_FILE, PEFT_FILE, apply_lora
from t2i_align.backbones.pieces import part_files
from t2i_align.backbones.trainable import TRAINABLE
from t2i_align.backbones.weight_files import only_variant
from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError

logger = logging.getLogger(__name__)

Kind = Literal["pipeline", "lora", "unet", "user"]
IN_WORDS = {"lora": "LoRA", "unet": "UNet", "user": "user adapter"}
RUN_CONFIG = "config.yaml"
USER_WEIGHTS = "personal_weights.safetensors"
USER_CONFIG = "personal_config.json"  # of `personal.files`, whose adapter the caller loads
EXPORT = "export"


@dataclass(frozen=True)
class SamplingModel:
    """What a model argument means.

    Attributes:
        kind: a whole pipeline, a LoRA file, a UNet folder, or the folder of a user adapter.
        base: the pipeline, as a `ModelConfig` section (address, revision, variant, VAE).
        weights: LoRA file, UNet folder or adapter folder; None for a pipeline.
    """

    kind: Kind
    base: ModelConfig
    weights: Path | None = None

    @property
    def description(self) -> str:
        """What will be loaded, in one line."""
        base = self.base.pretrained_model_name_or_path
        base += f" (variant {self.base.variant})" if self.base.variant else ""
        if self.base.pretrained_vae_model_name_or_path:
            base += f" with the VAE {self.base.pretrained_vae_model_name_or_path}"
        if self.kind == "pipeline":
            return f"pipeline {base}"
        return f"{IN_WORDS[self.kind]} {self.weights} on {base}"


def load_for_sampling(
    model: str, base: str | None, dtype: torch.dtype, device: torch.device | str, variant: str | None = None
) -> DiffusionPipeline:
    """A plain diffusers pipeline, ready to call; what was loaded is logged.

    Args:
        model: pipeline folder, hub id, ``shapes:base``, run folder, export folder, LoRA file, UNet folder, or folder of
            a user adapter, of which only the base is loaded: `personal.load_personal` adds the rest.
        base: the pipeline under a LoRA or UNet; None takes the one it was trained on. Whole pipelines do not read it.
        dtype: of the weights.
        device: where it runs.
        variant: file variant of the pipeline, such as fp16; None is the one that a run recorded of its base.

    Raises:
        UserError: not found, damaged, or of another architecture than its base.
    """
    source = identify_model(model, base, variant)
    config = source.base
    folder = resolve_folder(config.pretrained_model_name_or_path, tuple(BACKBONES), config.revision, config.variant)
    index = read_model_index(folder)
    variant = settle_variant(folder, index, config.variant)
    check_pipeline_weights(folder, index, variant)
    given: dict[str, Any] = {}
    if source.kind == "unet" and source.weights is not None:
        given["unet"] = _load_unet(source.weights, folder, dtype)
    if config.pretrained_vae_model_name_or_path is not None:
        given["vae"] = load_vae(config.pretrained_vae_model_name_or_path, dtype)
    pipeline = load_pipeline(folder, BACKBONES[index["_class_name"]], variant, dtype, given)
    loaded = f"{index['_class_name']}: {source.description}"
    if source.kind == "lora" and source.weights is not None:
        adapted = apply_lora(pipeline, source.weights)
        loaded += "".join(f", {count} layers adapted in {component}" for component, count in adapted.items())
    logger.info("loaded %s", loaded)
    with quiet_loading():
        return pipeline.to(device)


def load_scheduler(model: str, base: str | None, variant: str | None = None) -> Any:
    """The scheduler of the pipeline that `load_for_sampling` would give, without its weights; arguments as there.

    Raises:
        UserError: not found, or of a kind that the installed diffusers does not know.
    """
    config = identify_model(model, base, variant).base
    folder = resolve_folder(config.pretrained_model_name_or_path, tuple(BACKBONES), config.revision, config.variant)
    name = (read_model_index(folder).get("scheduler") or ["", None])[1]
    if (kind := getattr(diffusers, name or "", None)) is None:
        raise UserError("The checkpoint's scheduler is not known.", f"{folder}: {name}", "update diffusers")
    with quiet_loading(), loading_errors(str(folder)):
        return kind.from_pretrained(str(folder / "scheduler"))


def identify_model(model: str, base: str | None = None, variant: str | None = None) -> SamplingModel:
    """Say what `model` is, without loading it; arguments as for `load_for_sampling`.

    Raises:
        UserError: nothing that can be sampled from, or a LoRA or UNet whose base is unknown.
    """
    source = _identify(model, base)
    if variant is None:
        return source
    return replace(source, base=source.base.model_copy(update={"variant": variant}))


def _identify(model: str, base: str | None) -> SamplingModel:
    path = Path(model).expanduser()
    if model.startswith(BUILT_IN) or not path.exists():
        return SamplingModel("pipeline", _base(model))
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError("A model file must be a LoRA in safetensors.", str(path), "convert it, or give a folder")
        return SamplingModel("lora", _base_of(path.parent, base), path)
    if (path / MODEL_INDEX).is_file():
        return SamplingModel("pipeline", _base(model))
    if (path / EXPORT).is_dir():
        path = path / EXPORT
    for file in (LORA_FILE, PEFT_FILE):
        if (path / file).is_file():
            return SamplingModel("lora", _base_of(path, base), path / file)
    if (path / USER_CONFIG).is_file() and (path / USER_WEIGHTS).is_file():
        return SamplingModel("user", _base_of(path, base), path)
    for folder in (path / "unet", path):
        if _is_unet(folder):
            return SamplingModel("unet", _base_of(path, base), folder)
    raise _nothing_there(path)


def _load_unet(weights: Path, base: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    variant = only_variant(weights)
    check_component(weights, "unet", variant)
    check_fits_base(weights, base / "unet")
    with quiet_loading(), loading_errors(str(weights)):
        return UNet2DConditionModel.from_pretrained(str(weights), dtype=dtype, variant=variant)


def _base(name: str) -> ModelConfig:
    return ModelConfig(pretrained_model_name_or_path=name)


def _base_of(folder: Path, base: str | None) -> ModelConfig:
    """The base as asked for, or as recorded by the run: beside the weights, or one folder up."""
    if base is not None:
        return _base(base)
    for place in (folder, folder.parent):
        file = place / RUN_CONFIG
        if file.is_file():
            try:
                return ModelConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["model"])
            except (yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
                raise UserError("The run's configuration cannot be read.", f"{file}: {error}", "give --base") from error
    raise UserError(
        "The base model of these weights is unknown.",
        f"{folder} has no {RUN_CONFIG}",
        "give the model they were trained on with --base",
    )


def _is_unet(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "UNet2DConditionModel"


def _nothing_there(path: Path) -> UserError:
    if part_files(path, TRAINABLE):
        return UserError(
            "A checkpoint is for resuming; its weights are not portable.",
            str(path),
            f"run t2i-align export {path.parent} --checkpoint {path.name}, and sample from the run",
        )
    if (path / RUN_CONFIG).is_file():
        return UserError("The run has no export yet.", str(path), f"let it finish, or run t2i-align export {path}")
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    return UserError(
        "There is no model in this folder.",
        f"{path} holds {inside}",
        f"give a folder with {MODEL_INDEX}, {LORA_FILE} or unet/, a LoRA file, a hub id, or shapes:base",
    )
