"""The reference measured once: its errors over seeded draws are kept, and later runs only look them up.

A reference that never changes gives the same errors for the same picture, timestep and noise. So they are measured
before the first step, for exactly the items the run will visit, and kept. A run with another loss, beta, learning rate,
adapter or number of steps finds them there and saves every reference pass; one with other draws, data, precision or
another base model is refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.modes import evaluating
from t2i_align.config.schema import RunConfig
from t2i_align.data.provider import PairProvider
from t2i_align.objectives import Objective
from t2i_align.training.reference_store import ReferenceStore
from t2i_align.training.rows import is_sharded
from t2i_align.training.step import Draws, PairStep
from t2i_align.transfer import send

FLUSH_BATCHES = 64  # a killed measurement repeats at most these


def precompute_reference(
    config: RunConfig,
    backbone: Backbone,
    objective: Objective,
    provider: PairProvider,
    step: PairStep,
    accelerator: Accelerator,
) -> str:
    """Measure what the run will need and the folder lacks, and let `step` read it from now on.

    The policy must still be the base model. Every process measures its own batches.

    Returns:
        One sentence on what was there and what was measured.

    Raises:
        UserError: the folder holds errors of another reference.
    """
    started = time.perf_counter()
    folder = reference_dir(config)
    made_from = _made_from(config, backbone, objective, provider)
    if accelerator.is_main_process:
        ReferenceStore(folder, made_from)
    accelerator.wait_for_everyone()
    store = ReferenceStore(folder, made_from)
    measured = _measure(store, _visits(config), provider, step, lambda: _initial_model(backbone))
    accelerator.wait_for_everyone()
    store.reload()
    step.reference_errors = lambda batch: _look_up(store, batch)
    return (
        f"reference errors: {len(store)} in {folder}, {measured} of them measured now"
        f" in {time.perf_counter() - started:.1f} s"
    )


def reference_dir(config: RunConfig) -> Path:
    """``model.reference_dir``, or ``reference`` beside the cache's own files."""
    if config.model.reference_dir is not None:
        return Path(config.model.reference_dir).expanduser()
    assert config.data.cache_dir is not None  # a rule of the configuration
    cache = Path(config.data.cache_dir).expanduser()
    return cache.with_name(f"{cache.name}-reference")


def _visits(config: RunConfig) -> Iterator[tuple[int, int]]:
    """(step, micro-step) of the whole run."""
    for step in range(config.training.max_train_steps):
        for micro_step in range(config.training.gradient_accumulation_steps):
            yield step, micro_step


def _measure(
    store: ReferenceStore,
    visits: Iterator[tuple[int, int]],
    provider: PairProvider,
    step: PairStep,
    initial_model: Callable[[], AbstractContextManager[Any]],
) -> int:
    """Number of items measured; those that are there cost a look."""
    measured = 0
    for number, visit in enumerate(visits):
        ids, draws = provider.addresses(*visit)
        missing = store.missing(ids, draws)
        if any(missing):
            batch = provider.batch(*visit)  # the whole one: the same shapes, hence the same bits, as in training
            errors = step.errors_under(batch, Draws("train", 0), initial_model())
            store.add(batch.ids, batch.epochs, errors.reshape(-1, len(batch)).T)
            measured += sum(missing)
        if number % FLUSH_BATCHES == FLUSH_BATCHES - 1:
            store.flush()
    store.flush()
    return measured


def _look_up(store: ReferenceStore, batch: Any) -> Tensor:
    """``[P * B]`` picture-major, as the network would give them."""
    errors = store.find(batch.ids, batch.epochs).T.reshape(-1)
    return send(errors, batch.weights.device)


def _initial_model(backbone: Backbone) -> AbstractContextManager[Any]:
    """The base: under the adapters, or the policy itself, which was not trained yet."""
    return backbone.reference() if backbone.has_reference else evaluating(backbone.unet)


def _made_from(config: RunConfig, backbone: Backbone, objective: Objective, provider: PairProvider) -> dict[str, Any]:
    """Everything a reference error depends on, by the names a message uses."""
    data, slots = config.data, objective.slots
    schedule = hashlib.blake2b(backbone.alphas_cumprod.cpu().numpy().tobytes(), digest_size=8).hexdigest()
    return {
        "base model": backbone.denoiser_fingerprint(),
        "noise schedule": f"{backbone.prediction_type} {schedule}",
        "VAE and text encoders": backbone.encoder_fingerprint(),
        "pairs and labels": provider.fingerprint,
        "data.resolution": data.resolution,
        "data.center_crop": data.center_crop,
        "data.random_flip": data.random_flip,
        "data.proportion_empty_prompts": data.proportion_empty_prompts,
        "seed": config.seed,
        "objective.latents": slots.latents.model_dump(mode="json"),
        "objective.timestep": slots.timestep.model_dump(mode="json", exclude={"weighting"}),
        "objective.error": slots.error.model_dump(mode="json"),
        "layout of items": objective.layout,
        "training.mixed_precision": _precision(config, backbone),
        "training.allow_tf32": config.training.allow_tf32 and torch.cuda.is_available(),
    }


def _precision(config: RunConfig, backbone: Backbone) -> str:
    """What a reference pass computes in: sharded full training in half precision rounds all weights, also norms'."""
    half = config.training.mixed_precision != "no" and config.model.train == "full"
    sharded = half and is_sharded(backbone.unet)
    return config.training.mixed_precision + (", sharded" if sharded else "")
