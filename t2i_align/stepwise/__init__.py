"""Step-level preference optimisation: on-policy pairs decided in the middle of sampling (LPO, SPO, TailorPO).

Loading this package is light; its contents (and torch) load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.stepwise.build import Stepwise, build_stepwise
    from t2i_align.stepwise.config import RolloutConfig

_HOMES = {"RolloutConfig": "config", "Stepwise": "build", "build_stepwise": "build"}
__all__ = ["RolloutConfig", "Stepwise", "build_stepwise"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
