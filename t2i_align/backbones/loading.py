"""``load_backbone``: find the checkpoint, check it, load it, make it trainable."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError

from t2i_align.backbones.base import Backbone
from t2i_align.backbones.codec import codec_dtype
from t2i_align.backbones.fit import IGNORED, check_component, check_pipeline_weights, settle_variant
from t2i_align.backbones.folders import HUB_ID, MODEL_INDEX, hub_error, read_json, read_model_index, resolve_folder
from t2i_align.backbones.stable_diffusion import StableDiffusion
from t2i_align.backbones.stable_diffusion_xl import StableDiffusionXL
from t2i_align.backbones.weight_files import only_variant
from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError

logger = logging.getLogger(__name__)

VAE_OVERRIDE = "model.pretrained_vae_model_name_or_path=FOLDER (null: the base's own)"

# Pipeline class name in model_index.json -> adapter.
BACKBONES: dict[str, type[Backbone]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def weight_dtype(mixed_precision: str) -> torch.dtype:
    """Storage type of frozen weights under ``training.mixed_precision``; what is trained is always float32."""
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mixed_precision]


def load_backbone(
    config: ModelConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    needs_reference: bool = True,
    needs_features: bool = False,
    encoders_only: bool = False,
) -> Backbone:
    """Load what is denoised and prepare it for training.

    Args:
        config: the ``model`` section of a run.
        device: where it runs.
        dtype: compute precision; frozen weights are stored in it, trained ones in float32.
        needs_reference: False spares the frozen copy when the objective has no reference.
        needs_features: True keeps the initial denoiser's down blocks for errors in features.
        encoders_only: leave the denoiser out, to encode a cache.

    Raises:
        UserError: anything wrong with the checkpoint or the section, found before the weights are read where possible.
    """
    device = torch.device(device)
    folder = resolve_folder(config.pretrained_model_name_or_path, tuple(BACKBONES), config.revision, config.variant)
    model_index = read_model_index(folder)
    variant = settle_variant(folder, model_index, config.variant)
    check_pipeline_weights(folder, model_index, variant)
    backbone_class = BACKBONES[model_index["_class_name"]]
    given: dict[str, Any] = {"unet": None} if encoders_only else {}
    if config.pretrained_vae_model_name_or_path is not None:
        vae = load_vae(config.pretrained_vae_model_name_or_path, torch.float32)
        with quiet_loading():
            given["vae"] = vae.to(codec_dtype(vae.config, dtype))
    pipeline = load_pipeline(folder, backbone_class, variant, _dtypes(folder, config, dtype), given)
    with quiet_loading():
        pipeline.to(device)
    backbone = backbone_class(pipeline, device, dtype)
    backbone.variant = variant
    if not encoders_only:
        backbone.adapt(config, needs_reference, needs_features)
        logger.info("attention: %s", backbone.attention_choice)
    return backbone


def load_pipeline(
    folder: Path,
    backbone_class: type[Backbone],
    variant: str | None,
    dtypes: torch.dtype | dict[str, torch.dtype],
    given: Mapping[str, Any] | None = None,
) -> DiffusionPipeline:
    """The plain diffusers pipeline of a checked folder, on the CPU.

    Args:
        folder, backbone_class: where and what.
        variant: file variant.
        dtypes: storage dtype, or one per component with ``default``.
        given: components to use instead of the folder's; None leaves a component out.

    Raises:
        UserError: diffusers could not load it.
    """
    pipeline_class = backbone_class.pipeline_class
    index = read_model_index(folder)
    components = {name: part for name, part in {**dict.fromkeys(IGNORED), **(given or {})}.items() if name in index}
    options = {"add_watermarker": False, "requires_safety_checker": False}  # pictures are compared by pixels
    known = pipeline_class.__init__.__annotations__
    components.update({name: value for name, value in options.items() if name in known})
    with quiet_loading(), loading_errors(str(folder)):
        pipeline = pipeline_class.from_pretrained(str(folder), variant=variant, dtype=dtypes, **components)
    for encoder, tokenizer in zip(backbone_class.text_encoder_names, backbone_class.tokenizer_names, strict=True):
        limit_length(getattr(pipeline, tokenizer), getattr(pipeline, encoder))
    return pipeline


def limit_length(tokenizer: Any, text_encoder: Any) -> None:
    """Cut prompts at what the text encoder has positions for.

    A tokenizer without ``model_max_length`` gets 1e30 from transformers: prompts are then neither cut nor padded.
    """
    positions = text_encoder.config.max_position_embeddings
    if tokenizer.model_max_length > positions:
        logger.warning(
            "the tokenizer states no length that its text encoder has: prompts are cut at %d tokens", positions
        )
        tokenizer.model_max_length = positions


def load_vae(name: str, dtype: torch.dtype) -> AutoencoderKL:
    """Another VAE: its own folder or hub id, or a pipeline folder that holds one.

    Raises:
        UserError: not found, damaged, or not an AutoencoderKL.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder / "vae" if (folder / MODEL_INDEX).is_file() else folder
        found = read_json(folder / "config.json").get("_class_name") if folder.is_dir() else "no folder"
        if found != "AutoencoderKL":
            raise UserError(
                "model.pretrained_vae_model_name_or_path is not an AutoencoderKL.",
                f"{folder}: {found}",
                "give a folder with its config.json and weights, or a hub id",
            )
        variant = only_variant(folder)
        check_component(folder, "vae", variant)
        with quiet_loading(), loading_errors(name):
            return AutoencoderKL.from_pretrained(str(folder), dtype=dtype, variant=variant)
    if not HUB_ID.fullmatch(name):
        raise UserError("The folder of the VAE does not exist.", str(folder), f"set {VAE_OVERRIDE}, or a hub id")
    with quiet_loading(), loading_errors(name):
        try:
            return AutoencoderKL.from_pretrained(name, dtype=dtype)
        except OSError as error:
            raise hub_error("VAE", VAE_OVERRIDE, name, error) from error


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn what diffusers and transformers raise over a bad checkpoint into a UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(
            "The checkpoint could not be loaded.",
            f"{name}: {lines[0] if lines else type(error).__name__}",
            "check that it is complete, and that the installed diffusers and transformers know its components",
        ) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and advice from the libraries while a pipeline loads; errors are still raised."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    bars = [library.is_progress_bar_enabled() for library in libraries]
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, bar, level in zip(libraries, bars, levels, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


def _dtypes(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Storage dtype by component: the trained UNet in float32, the VAE in what it survives, the rest in `dtype`."""
    vae = codec_dtype(read_json(folder / "vae" / "config.json"), dtype)
    return {"unet": torch.float32 if config.train == "full" else dtype, "vae": vae, "default": dtype}
