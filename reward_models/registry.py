"""The scorers by name, and the one way to load them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from reward_models.aesthetic import load_aesthetic
from reward_models.clip_score import load_clip_score
from reward_models.ensemble import load_ensemble
from reward_models.errors import RewardModelError, unknown_name
from reward_models.hps import load_hps_v1, load_hpsv2, load_hpsv21
from reward_models.image_reward import load_image_reward
from reward_models.mps import load_mps
from reward_models.pickscore import load_pickscore
from reward_models.scorer import BaseScorer, torch_device, torch_dtype

SCORERS: dict[str, Callable[..., BaseScorer]] = {
    "clip_score": load_clip_score,
    "aesthetic": load_aesthetic,
    "pickscore": load_pickscore,
    "hps_v1": load_hps_v1,
    "hpsv2": load_hpsv2,
    "hpsv2.1": load_hpsv21,
    "mps": load_mps,
    "image_reward": load_image_reward,
    "ensemble": load_ensemble,
}


def load(
    name: str,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> BaseScorer:
    """Load a scorer.

    Args:
        name: a key of `SCORERS`; `mps:aesthetic` is short for `mps` with `condition="aesthetic"`.
        checkpoint: path of the weights in their published layout, or a Hugging Face reference (`owner/repo`
            for a folder, `owner/repo:file` for a file, `@revision` after the repository). None takes the
            published weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype: precision of the towers: float32, float16, bfloat16 (or float64 for gradient checks).
            Normalisation and dot products stay in float32.
        tokenizer: folder or hub id, where the checkpoint carries none.
        model_config: JSON file or mapping of another size than the published one.
        **options: options of this scorer alone, see its `load_...` function.

    Raises:
        RewardModelError: unknown name or option, or a checkpoint that is missing, damaged, unsafe or of
            another size.
    """
    name, _, condition = name.partition(":")
    if name not in SCORERS:
        raise unknown_name("scorer", name, SCORERS)
    if condition:
        options["condition"] = condition
    given = {"tokenizer": tokenizer, "model_config": model_config}
    options.update({key: value for key, value in given.items() if value is not None})
    loader = SCORERS[name]
    known = [key for key in inspect.signature(loader).parameters if key not in ("checkpoint", "device", "dtype")]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    if checkpoint is not None and not str(checkpoint):
        raise RewardModelError("checkpoint is an empty string", fix="leave it out for the published weights")
    return loader(checkpoint=checkpoint, device=torch_device(device), dtype=torch_dtype(dtype), **options)
