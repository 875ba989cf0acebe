"""Presets from a file of the user's own: ``objective: {preset: smooth_hinge.py}``; see docs/adding-an-objective.md."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from t2i_align.errors import UserError
from t2i_align.objectives.presets.base import Preset

SUFFIX = ".py"
VARIABLE = "PRESET"


def is_own(name: object) -> bool:
    """Whether a preset's name is the path of a file."""
    return isinstance(name, str) and name.endswith(SUFFIX)


def load_own(name: str) -> Preset:
    """The ``PRESET`` that a Python file defines. The file is run.

    Args:
        name: path of the file, relative to the working folder.

    Raises:
        UserError: no such file, it cannot be run, or it defines no preset.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError("objective.preset names a file that is not there", str(path), f"looked in {Path.cwd()}")
    return _load(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _load(path: Path, changed: int) -> Preset:
    spec = importlib.util.spec_from_file_location(f"t2i_align_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError("objective.preset is not a Python file", str(path), "see docs/adding-an-objective.md")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code raises is the user's to put right
        raise UserError(
            "objective.preset: the file cannot be run", f"{path}: {type(error).__name__}: {error}", "correct the file"
        ) from error
    preset = getattr(module, VARIABLE, None)
    if not isinstance(preset, Preset):
        raise UserError(
            f"objective.preset: the file defines no {VARIABLE}",
            f"{path}: {VARIABLE} is {type(preset).__name__}",
            f"write {VARIABLE} = Preset(...), see docs/adding-an-objective.md",
        )
    return preset
