"""What a run ran on, written beside its results."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = "environment.json"
PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "open_clip_torch",
    "xformers",
    "datasets",
    "safetensors",
    "numpy",
)


def describe_environment(num_processes: int, device: torch.device, attention: str) -> dict:
    """Versions, device and process count as plain JSON values."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "num_processes": num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "attention": attention,
        "packages": versions,
    }


def read_environment(output_dir: Path) -> dict[str, Any]:
    """What a run folder says of an earlier launch; empty where it says nothing."""
    file = output_dir / ENVIRONMENT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What of an environment is another now, as dotted key -> ``{"then", "now"}``; nothing without an earlier one."""
    before, after = _flat(then), _flat(now)
    keys = [key for key in after if before and before.get(key) != after[key]]
    return {key: {"then": before.get(key), "now": after[key]} for key in keys}


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    packages = environment.get("packages", {})
    plain = {key: value for key, value in environment.items() if key != "packages"}
    return plain | {f"packages.{name}": version for name, version in packages.items()}
