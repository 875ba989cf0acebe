"""The table of ``t2i-align configs list``: what each recipe trains, on which model, and what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple

from t2i_align.config import recipes

COMMANDS = {  # a section that only one kind of file has -> the command that reads it
    "distributed_type": "accelerate launch",
    "methods": "study",
    "models": "compare",
    "vae": "shapes pretrain",
    "scorer": "rewards train",
    "output_dir": "train",
}


class Row(NamedTuple):
    """One recipe.

    Attributes:
        name: path below ``configs/``.
        command: of t2i-align, or accelerate's, that takes the file.
        objective: preset, and where its pairs come from if not from data; the kind of a reward model; or empty.
        model: base model without the hub's owner; empty where the file names none.
        purpose: first line of the file.
    """

    name: str
    command: str
    objective: str
    model: str
    purpose: str


def rows() -> list[Row]:
    """Every recipe that a command takes; files that are only extended or read by others are left out."""
    return [row for name in recipes.names() if name.endswith(".yaml") and (row := _row(name)) is not None]


def _row(name: str) -> Row | None:
    values = _values(name)
    command = next((command for section, command in COMMANDS.items() if section in values), None)
    if command is None:
        return None
    text = (recipes.folder() / name).read_text(encoding="utf-8")
    purpose = text.partition("\n")[0].removeprefix("#").strip()
    return Row(name, command, _objective(values), _model(values), purpose)


def _values(name: str) -> dict[str, Any]:
    """Sections of a recipe over those it extends; `layers.merge` does it in full and takes a second for ten files."""
    own = recipes.content(name) or {}
    parents = own.get("extends", [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged |= _values(normpath(PurePosixPath(name).parent / parent))
    for section, value in own.items():
        below = merged.get(section)
        merged[section] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _objective(values: Mapping[str, Any]) -> str:
    preset = values.get("objective", {}).get("preset", values.get("scorer", ""))
    if "rollout" in values:
        return f"{preset}, {values['rollout']['preset']} rollouts"
    if "online" in values:
        return f"{preset}, online pairs"
    return f"{preset}, per user" if "personal" in values else preset


def _model(values: Mapping[str, Any]) -> str:
    section = values.get("model", values.get("run", {}).get("model", {}))
    return section.get("pretrained_model_name_or_path", "").rpartition("/")[2]
