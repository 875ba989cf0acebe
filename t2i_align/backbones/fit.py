"""Do the weights fit the architecture? Compared by name and shape before anything heavy is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from t2i_align.backbones.folders import read_json
from t2i_align.backbones.weight_files import Shapes, component_files, only_variant, read_shapes, weight_files
from t2i_align.errors import UserError

logger = logging.getLogger(__name__)

SHOWN = 3
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")  # never loaded
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# AutoencoderKL files from before diffusers 0.18 use the first spelling; from_pretrained translates it.
OLD_VAE_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def check_pipeline_weights(folder: Path, model_index: dict[str, Any], variant: str | None) -> None:
    """Check every network of a pipeline folder against its own configuration.

    Raises:
        UserError: missing component or variant, damaged file, or weights of another architecture.
    """
    for name, entry in model_index.items():
        if not isinstance(entry, list) or entry[1] is None or name in IGNORED:
            continue
        if name in CHECKS:
            check_component(folder / name, name, variant, needs_variant=name == "unet")
        elif name.startswith("tokenizer"):
            _need_one(folder / name, TOKENIZER_FILES)
        elif name == "scheduler":
            _need_one(folder / name, ("scheduler_config.json",))


def settle_variant(folder: Path, model_index: dict[str, Any], variant: str | None) -> str | None:
    """The file variant to read: as asked for, or the only one that a folder without plain weights has, which is logged.

    None where that would be a guess: components without plain weights have several variants, or the variant would also
    be taken for components that have plain weights. `check_pipeline_weights` then says what there is.
    """
    if variant is not None:
        return variant
    networks = [name for name, entry in model_index.items() if name in CHECKS and isinstance(entry, list) and entry[1]]
    found = {name: weight_files(folder / name) for name in networks}
    lacking = [set(variants) for variants in found.values() if variants and None not in variants]
    common = set.intersection(*lacking) if lacking else set()
    only = common.pop() if len(common) == 1 else None
    if only is None or any(None in variants and only in variants for variants in found.values()):
        return None
    logger.warning("%s holds no weights but those of variant %s: reading these", folder, only)
    return only


def check_component(folder: Path, kind: str, variant: str | None = None, needs_variant: bool = False) -> None:
    """Check one component folder; `kind` is its name in a pipeline, such as ``unet``."""
    files = component_files(folder, variant, needs_variant)
    expected_shapes, canonical, allow_extra = CHECKS[kind]
    found = {canonical(name): shape for name, shape in read_shapes(files).items()}
    try:
        expected = {canonical(name): shape for name, shape in expected_shapes(folder).items()}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"The configuration of {kind} does not describe a supported network.",
            f"{folder / 'config.json'}: {error}",
            "use the configuration that belongs to these weights",
        ) from error
    problems = shape_problems(found, expected, allow_extra)
    if problems:
        raise UserError(
            f"The weights of {kind} belong to another architecture than its config.json.",
            f"{files[0]}: {summary(problems)}",
            "use weights and configuration of the same checkpoint",
        )


def check_fits_base(unet: Path, base: Path) -> None:
    """Check that trained UNet weights are of the architecture of the base pipeline's ``unet/``.

    Raises:
        UserError: they are not; names keys and shapes.
    """
    problems = shape_problems(read_shapes(component_files(unet, only_variant(unet), True)), _unet_shapes(base))
    if problems:
        raise UserError(
            "The UNet belongs to another architecture than the base model.",
            f"{unet} on {base}: {summary(problems)}",
            "give the base model it was trained on",
        )


def shape_problems(found: Shapes, expected: Shapes, allow_extra: bool = False) -> list[str]:
    """Differences between two sets of named shapes, in words; shape differences first."""
    different = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    missing = [f"{name} is missing" for name in expected if name not in found]
    extra = [] if allow_extra else [f"{name} is unexpected" for name in found if name not in expected]
    return different + missing + extra


def summary(problems: Iterable[str]) -> str:
    """The first few problems in one line, and how many more there are."""
    listed = list(problems)
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return "; ".join(listed[:SHOWN]) + more


def _need_one(folder: Path, names: tuple[str, ...]) -> None:
    """transformers makes an empty tokenizer of an empty folder, without a word; so look first."""
    if not any((folder / name).is_file() for name in names):
        raise UserError(
            "A component of the model is missing.",
            f"no {' or '.join(names)} in {folder}",
            "copy the whole pipeline folder",
        )


def _unet_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from diffusers import UNet2DConditionModel

    return _meta_shapes(lambda: UNet2DConditionModel.from_config(read_json(folder / "config.json")))


def _vae_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from diffusers import AutoencoderKL

    return _meta_shapes(lambda: AutoencoderKL.from_config(read_json(folder / "config.json")))


def _text_encoder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from transformers import CLIPTextConfig, CLIPTextModel

    return _meta_shapes(lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(folder)))


def _projected_text_encoder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return _meta_shapes(lambda: CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder)))


def _meta_shapes(build: Callable[[], torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def _canonical_vae(name: str) -> str:
    for old, new in OLD_VAE_ATTENTION.items():
        name = name.replace(old, new)
    return name


def _canonical_text(name: str) -> str:
    return name.removeprefix("text_model.")  # transformers 5 writes CLIPTextModel without the prefix


def _identity(name: str) -> str:
    return name


# component -> (shapes its config.json asks for, spelling to compare in, whether surplus tensors are harmless:
# text encoder files of old may hold position_ids)
CHECKS: dict[str, tuple[Callable[[Path], Shapes], Callable[[str], str], bool]] = {
    "unet": (_unet_shapes, _identity, False),
    "vae": (_vae_shapes, _canonical_vae, False),
    "text_encoder": (_text_encoder_shapes, _canonical_text, True),
    "text_encoder_2": (_projected_text_encoder_shapes, _canonical_text, True),
}
