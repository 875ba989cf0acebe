"""What a run ran on, written beside its results."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

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


def write_environment(output_dir: Path, **details) -> None:
    """Write ``environment.json``; keyword arguments go to ``describe_environment``."""
    (output_dir / "environment.json").write_text(json.dumps(describe_environment(**details), indent=1) + "\n")
