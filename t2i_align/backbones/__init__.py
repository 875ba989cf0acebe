"""What is denoised: one adapter per diffusers pipeline class, behind one contract (``Backbone``).

Names are imported on first use, so that ``import t2i_align.backbones`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.backbones.base import Backbone
    from t2i_align.backbones.embeddings import PromptEmbeddings
    from t2i_align.backbones.loading import BACKBONES, load_backbone
    from t2i_align.backbones.samplers import make_sampler, sampler_name
    from t2i_align.backbones.sampling import SamplingModel, identify_model, load_for_sampling, load_scheduler
    from t2i_align.backbones.trainable import load_trainable, trainable_state

_HOMES = {
    "BACKBONES": "loading",
    "Backbone": "base",
    "PromptEmbeddings": "embeddings",
    "SamplingModel": "sampling",
    "identify_model": "sampling",
    "load_backbone": "loading",
    "load_for_sampling": "sampling",
    "load_scheduler": "sampling",
    "make_sampler": "samplers",
    "load_trainable": "trainable",
    "sampler_name": "samplers",
    "trainable_state": "trainable",
}

__all__ = [
    "BACKBONES",
    "Backbone",
    "PromptEmbeddings",
    "SamplingModel",
    "identify_model",
    "load_backbone",
    "load_for_sampling",
    "load_scheduler",
    "load_trainable",
    "make_sampler",
    "sampler_name",
    "trainable_state",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
