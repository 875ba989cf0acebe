"""Finding, reading and checking weight files; the only place of the package that opens one.

Weights come from safetensors or from `torch.load(weights_only=True)`. A pickle that names classes of its own is
refused, never executed. `version` strings carry the SHA-256 of the files, so a score can be traced to its weights.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.inert_pickle import read_inert

# The training state beside the weights of HPS_v2.pt holds numpy numbers; they are dropped, not built.
_NUMPY_NUMBERS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "numpy": ("dtype",),
        "numpy.core.multiarray": ("scalar",),
        "numpy._core.multiarray": ("scalar",),
        "numpy.dtypes": ("Float64DType", "Float32DType", "Int64DType"),
        "_codecs": ("encode",),
    }.items()
    for name in names
)
# Buffers that old checkpoints store and current classes derive; see also the official CLIP archive's three
# numbers.
_DERIVED = re.compile(r"(^|\.)position_ids$|^(input_resolution|context_length|vocab_size)$")
_HUB_ID = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./+-]+))?$")
TRUSTED_FIX = "get the weights as safetensors, or have their owner save model.state_dict() alone"


def resolve_file(checkpoint: str | Path) -> Path:
    """A local weight file from a path or a hub reference `owner/repo[@revision]:file`."""
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    match = _HUB_ID.match(str(checkpoint))
    if path.exists() or match is None or match["file"] is None:
        raise RewardModelError(
            "the checkpoint file does not exist" if not path.exists() else "the checkpoint must be a file",
            found=str(checkpoint),
            fix="pass a file, or owner/repo:file for the Hugging Face hub",
        )
    from huggingface_hub import hf_hub_download

    return Path(_from_hub(hf_hub_download, str(checkpoint), match, filename=match["file"]))


def resolve_folder(checkpoint: str | Path, weights: bool = True) -> Path:
    """A local model folder from a path or a hub id `owner/repo[@revision]`, optionally without weights."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    match = _HUB_ID.match(str(checkpoint))
    if path.exists() or match is None or match["file"] is not None:
        raise RewardModelError(
            "the model folder does not exist" if not path.exists() else "this must be a folder, not a file",
            found=str(checkpoint),
            fix="pass a folder, or owner/repo for the Hugging Face hub",
        )
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.txt", "*.model"]
    patterns = [*small, "model.safetensors"] if weights else small
    folder = Path(_from_hub(snapshot_download, str(checkpoint), match, allow_patterns=patterns))
    if weights and not (folder / "model.safetensors").is_file():
        patterns = [*small, "pytorch_model.bin"]
        folder = Path(_from_hub(snapshot_download, str(checkpoint), match, allow_patterns=patterns))
    return folder


def _from_hub(download: Callable[..., str], reference: str, match: re.Match[str], **arguments: Any) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return download(repo_id=match["repo"], revision=match["revision"], **arguments)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RewardModelError(
            "neither a local path nor reachable on the Hugging Face hub",
            found=f"{reference}: {str(error).splitlines()[0]}",
            fix="check the spelling, or download the files and pass their path",
        ) from error


def folder_weights(folder: Path) -> Path:
    """The weight file of a model folder: `model.safetensors`, else `pytorch_model.bin`."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise RewardModelError(
        "the folder holds no weights",
        found=f"{folder}: {sorted(p.name for p in folder.iterdir())[:10]}",
        fix="it needs model.safetensors (or pytorch_model.bin)",
    )


def read_state_dict(path: Path, refusal_fix: str = TRUSTED_FIX) -> dict[str, Tensor]:
    """Read a state dict on the CPU, without its `state_dict` wrapping and any `module.` prefix.

    Args:
        path: `.safetensors`, or any file of `torch.save`.
        refusal_fix: what to tell the user when the file is a pickle of more than plain tensors.

    Raises:
        RewardModelError: missing, empty, truncated, or refused because it would run code.
    """
    if path.stat().st_size == 0:
        raise RewardModelError("the weight file is empty", found=f"{path}: 0 bytes", fix="download it again")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, refusal_fix)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise RewardModelError(
            f"{path} is not a state dict", found=f"an object of {type(content).__name__}", fix=refusal_fix
        )
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise RewardModelError(f"{path} is not a state dict", found=f"entries without a tensor: {odd[:5]}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RewardModelError(
            f"{path} is not a complete safetensors file",
            found=f"{path.stat().st_size:,} bytes; {error}",
            fix="the download was probably cut off; fetch it again",
        ) from error


def _read_torch(path: Path, refusal_fix: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        return _read_with_numbers(path, error, refusal_fix)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RewardModelError(
            f"{path} cannot be read as weights",
            found=f"{path.stat().st_size:,} bytes; {str(error).splitlines()[0]}",
            fix="the file is truncated or of another format; fetch it again",
        ) from error


def _read_with_numbers(path: Path, refusal: pickle.UnpicklingError, refusal_fix: str) -> Any:
    """Second chance for a training checkpoint: plain weights with numpy numbers beside them, nothing else."""
    try:
        return read_inert(path, allowed=_NUMPY_NUMBERS)
    except RewardModelError as error:
        raise RewardModelError(
            f"{path} is a pickle of more than tensors: loading it could run code, so it was refused",
            found=error.found or str(refusal).splitlines()[0],
            fix=refusal_fix,
        ) from error


def fit_state_dict(module: nn.Module, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Put a state dict into a module built without memory, after checking every name and shape.

    Parameters take `dtype`; buffers keep the module's own. Derived buffers of older checkpoints are ignored.

    Raises:
        RewardModelError: names are missing or left over, or a shape differs.
    """
    own = module.state_dict()
    given = {name: value for name, value in state.items() if name in own or not _DERIVED.search(name)}
    problems = _differences(own, given)
    if problems:
        raise RewardModelError(
            f"the weights in {source} do not fit this model",
            found="; ".join(problems),
            fix="check the scorer's name and model_config; the file belongs to another architecture or size",
        )
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    fitted = {
        name: value.to(dtype if name in parameters else own[name].dtype).contiguous() for name, value in given.items()
    }
    module.load_state_dict(fitted, strict=True, assign=True)


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in own if name not in given]
    extra = [name for name in given if name not in own]
    sizes = [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = []
    for kind, names in (("missing", missing), ("unexpected", extra), ("of another size", sizes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} {kind}: {', '.join(names[:3])}{more}")
    return problems


def read_json(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration from a JSON file, or a mapping as it is."""
    if isinstance(source, Mapping):
        return dict(source)
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardModelError("the configuration cannot be read", found=f"{source}: {error}") from error
    if not isinstance(content, dict):
        raise RewardModelError("the configuration must be a JSON object", found=f"{source}: {type(content).__name__}")
    return content


def weights_digest(files: Iterable[Path]) -> str:
    """`sha256:` and the first 12 hex digits; of one file it is the digest that `sha256sum` prints."""
    paths = list(files)
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"sha256:{joined[:12]}"
