"""Portable weights: a LoRA or UNet that plain diffusers loads, with a model card. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.export.card import model_card
    from t2i_align.export.run import export_checkpoint, export_run

_HOMES = {"export_checkpoint": "run", "export_run": "run", "model_card": "card"}

__all__ = ["export_checkpoint", "export_run", "model_card"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
