"""The published code's numbers for step-level methods (tests/data/golden/stepwise)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data/golden/stepwise"


@cache
def tensors(file: str) -> dict[str, Tensor]:
    return load_file(FOLDER / file)


@cache
def _cases() -> list[dict]:
    return json.loads((FOLDER / "cases.json").read_text())["cases"]


def cases(kind: str) -> list[dict]:
    return [case for case in _cases() if case["kind"] == kind]


def ids(case: dict) -> str:
    return case["id"]


def inputs(case: dict) -> dict[str, Tensor]:
    """The inputs; floating-point ones in float64."""
    values = {name: tensors(file)[key] for name, (file, key) in case["inputs"].items()}
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


def expected(case: dict, name: str) -> Tensor:
    """The number in the best precision stored."""
    entry = case["expected"][name]
    for key in ("tensor_rederived", "tensor"):
        if key in entry:
            return tensors("expected.safetensors")[entry[key]].double()
    return torch.as_tensor(entry.get("rederived", entry.get("official_f64", entry.get("official"))))
