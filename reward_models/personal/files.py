"""A personal head as a folder: ``config.json`` and ``model.safetensors`` (float64)."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reward_models.errors import RewardModelError
from reward_models.files import complete_file, write_json
from reward_models.personal.ideal_points import IdealPointConfig, IdealPointHead
from reward_models.personal.low_rank import LowRankConfig, LowRankHead

FORMAT = "t2i_align personal reward head 1"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PersonalHead = LowRankHead | IdealPointHead
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "low_rank": (LowRankHead, LowRankConfig),
    "ideal_points": (IdealPointHead, IdealPointConfig),
}


def save_head(head: PersonalHead, folder: str | Path) -> Path:
    """Write the head, with the users of training; returns the folder."""
    kind = next(name for name, (head_type, _) in KINDS.items() if isinstance(head, head_type))
    target = Path(folder)
    with complete_file(target / WEIGHTS_FILE) as temporary:
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, temporary)
    write_json(target / CONFIG_FILE, {"format": FORMAT, "kind": kind, **asdict(head.config)})
    return target


def load_head(folder: str | Path) -> PersonalHead:
    """Read what `save_head` wrote; the head needs no gradients.

    Raises:
        RewardModelError: no such folder, another format, or weights that do not fit the configuration.
    """
    source = Path(folder)
    try:
        content = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(source / WEIGHTS_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise _not_ours(source, str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("kind") not in KINDS:
        raise _not_ours(source, f"{CONFIG_FILE} is not in the format '{FORMAT}'")
    head_type, config_type = KINDS[content["kind"]]
    given = {name: value for name, value in content.items() if name not in ("format", "kind")}
    if set(given) != {field.name for field in fields(config_type)}:
        raise _not_ours(source, f"keys {sorted(given)}")
    head = head_type(config_type(**{**given, "users": tuple(given["users"])}))
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise _not_ours(source, str(error)) from error
    return head.requires_grad_(False)


def _not_ours(source: Path, found: str) -> RewardModelError:
    return RewardModelError(
        "this folder does not hold a personal reward head", f"{source}: {found}", "pass a folder written by save_head"
    )
