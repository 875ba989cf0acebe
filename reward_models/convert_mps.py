"""The published MPS checkpoint, a pickled `nn.Module`, to safetensors, without executing anything from it.

`torch.load` of that file would import and run code named by it. Here its tensors are read straight from the zip
archive by `reward_models.inert_pickle`, named by the recorded module tree, checked against the architecture and
written as a folder that `load("mps", checkpoint=FOLDER)` reads. A plain state dict is accepted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.checkpoints import write_network
from reward_models.errors import RewardModelError
from reward_models.inert_pickle import Inert, module_state_dict, read_inert
from reward_models.loading import weights_digest
from reward_models.mps import fill_network, mps_network, network_configs
from reward_models.tokenizers import ClipTokenise, load_hf_tokenizer
from reward_models.towers import without_memory


@dataclass(frozen=True)
class Conversion:
    """What was converted: for the message to the user."""

    folder: Path
    tensors: int
    parameters: int
    source_version: str


def convert_mps(
    source: str | Path,
    folder: str | Path,
    model_config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
) -> Conversion:
    """Extract the weights of `MPS_overall_checkpoint.pth` into `folder`.

    Args:
        source: the downloaded file.
        folder: new or empty folder for `clip_config.json`, `cross_config.json`, `model.safetensors`.
        model_config: `clip` and `cross` configuration of another size than the published one.
        tokenizer: folder or hub id of the tokenizer to put beside the weights; None leaves it to `load`.

    Raises:
        RewardModelError: not a torch zip file, damaged, or not an MPS model.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise RewardModelError("the checkpoint file does not exist", found=str(source))
    state = _tensors(read_inert(path), path)
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    with without_memory():
        network = mps_network(*network_configs(path, model_config))
    fill_network(network, state, path, dtype)
    tokenise = None
    if tokenizer is not None:
        tokenise = ClipTokenise(load_hf_tokenizer(tokenizer), network.tower.context_length)
    written = write_network(network, tokenise, Path(folder), dtype)
    count = sum(value.numel() for value in state.values())
    return Conversion(written, len(state), count, weights_digest([path]))


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = module_state_dict(content) if isinstance(content, Inert) else content
    if isinstance(state, Mapping):
        state = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not isinstance(state, dict) or not any(torch.is_floating_point(value) for value in state.values()):
        raise RewardModelError(
            f"{path} holds no module and no state dict",
            found=f"an object of {content.name if isinstance(content, Inert) else type(content).__name__}",
            fix="nothing in it was executed; get MPS_overall_checkpoint.pth from the authors' page",
        )
    return state
