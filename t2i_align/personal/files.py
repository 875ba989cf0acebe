"""A user adapter as a folder: ``personal_config.json`` and ``personal_weights.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reward_models.files import complete_file
from t2i_align.errors import UserError
from t2i_align.personal.adapter import UserAdapter
from t2i_align.personal.config import NULL_USER, PersonalConfig

CONFIG_FILE = "personal_config.json"
WEIGHTS_FILE = "personal_weights.safetensors"
ADAPTER, USER = "adapter.", "user."


@dataclass(frozen=True)
class SavedPersonal:
    """Contents of a folder: an adapter that is in no UNet yet, and tokens ``[M, W]`` by user name."""

    adapter: UserAdapter
    users: dict[str, Tensor]


def save_personal(
    adapter: UserAdapter,
    folder: str | Path,
    users: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the adapter, and the tokens of named users if given; returns the folder.

    Args:
        adapter: trained.
        folder: made if missing; files of an earlier adapter are replaced.
        users: tokens ``[M, W]`` that `load_personal` will know by name.
        dtype: of the stored weights.
        weights: stored instead of the adapter's own, by the names of its state (an average of the training).

    Raises:
        UserError: a user called null, or tokens of a wrong shape.
    """
    width = adapter.config.token_width
    named = {**(users or {})}
    for name, tokens in named.items():
        if name == NULL_USER or tokens.ndim != 2 or tokens.shape[1] != width:
            found = f"{name}: {list(tokens.shape)}, width {width}"
            raise UserError(f"A saved user has tokens [M, W] and another name than '{NULL_USER}'.", found)
    tensors = {ADAPTER + name: value for name, value in (weights or adapter.state_dict()).items()}
    tensors.update({USER + name: value for name, value in named.items()})
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in tensors.items()}
    with complete_file(target / WEIGHTS_FILE) as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})
    return write_config(adapter, target)


def write_config(adapter: UserAdapter, folder: str | Path) -> Path:
    """Write ``personal_config.json`` alone: what an adapter is but for its weights; returns the folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    content = {**adapter.config.to_json(), "layers": adapter.channels()}
    (target / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return target


def read_config(folder: str | Path) -> PersonalConfig:
    """The configuration in a folder.

    Raises:
        UserError: there is none, or it is of another version.
    """
    return _read_config(Path(folder))[0]


def _read_config(source: Path) -> tuple[PersonalConfig, dict[str, int]]:
    """Configuration, and channels of each layer."""
    try:
        content = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise _nothing_here(source, error) from error
    layers = content.pop("layers", None) if isinstance(content, dict) else None
    if not isinstance(layers, dict):
        raise UserError("This is not the configuration of a user adapter.", str(source / CONFIG_FILE))
    return PersonalConfig.from_json(content, str(source)), layers


def _nothing_here(source: Path, error: Exception) -> UserError:
    return UserError(
        "There is no user adapter in this folder.", f"{source}: {error}", "give a folder that save_personal wrote"
    )


def read_personal(folder: str | Path) -> SavedPersonal:
    """Read what `save_personal` wrote, in float32.

    Raises:
        UserError: no such folder, damaged files, or weights that do not fit the configuration.
    """
    source = Path(folder)
    config, layers = _read_config(source)
    try:
        tensors = {name: value.float() for name, value in load_file(source / WEIGHTS_FILE).items()}
    except (OSError, SafetensorError) as error:
        raise _nothing_here(source, error) from error
    adapter = UserAdapter(config, layers)
    weights = {name.removeprefix(ADAPTER): value for name, value in tensors.items() if name.startswith(ADAPTER)}
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError("Weights and configuration of the user adapter do not fit.", f"{source}: {error}") from error
    users = {name.removeprefix(USER): value for name, value in tensors.items() if name.startswith(USER)}
    return SavedPersonal(adapter, users)
