"""The objective algebra: every offline preference objective as one choice per slot.

Loading this package is light; its contents (and torch) load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.objectives.config import ObjectiveConfig, build, resolve
    from t2i_align.objectives.listing import PresetRow, describe, list_presets
    from t2i_align.objectives.objective import Objective
    from t2i_align.objectives.types import ObjectiveOutput, PairErrors, snr_table

_HOMES = {
    "ObjectiveConfig": "config",
    "build": "config",
    "resolve": "config",
    "PresetRow": "listing",
    "describe": "listing",
    "list_presets": "listing",
    "Objective": "objective",
    "ObjectiveOutput": "types",
    "PairErrors": "types",
    "snr_table": "types",
}
__all__ = [
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "PairErrors",
    "PresetRow",
    "build",
    "describe",
    "list_presets",
    "resolve",
    "snr_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
