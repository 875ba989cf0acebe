"""From what the user wrote (folder, hub id, built-in address) to a local folder in the diffusers layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from t2i_align.backbones.weight_files import weight_files
from t2i_align.errors import UserError

BUILT_IN = "shapes:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MODEL_INDEX = "model_index.json"
USUAL_VARIANT = "fp16"  # of repositories that have one variant and no plain weights


def resolve_folder(
    name: str, supported: tuple[str, ...], revision: str | None = None, variant: str | None = None
) -> Path:
    """The local folder of a pipeline, downloaded from the hub if it is not there yet.

    Args:
        name: folder, hub id, or a built-in address such as ``shapes:base``.
        supported: pipeline class names; anything else is refused before it is downloaded.
        revision: hub revision.
        variant: file variant, such as fp16, to download.

    Raises:
        UserError: no such folder, not a diffusers folder, unsupported class, or the hub did not deliver.
    """
    if name.startswith(BUILT_IN):
        from t2i_align.shapes.assets import resolve

        name = str(resolve(name))
    folder = Path(name).expanduser()
    if folder.exists():
        check_pipeline_class(read_model_index(folder), supported, name)
        return folder
    if not HUB_ID.fullmatch(name):
        raise UserError(
            "The model folder does not exist.",
            str(folder),
            "give a folder with a model_index.json, a hub id (owner/name), or shapes:base",
        )
    return _download(name, supported, revision, variant)


def check_pipeline(name: str, supported: tuple[str, ...], revision: str | None = None) -> None:
    """Whether `resolve_folder` will find a pipeline, for no more than its index from the hub.

    Raises:
        UserError: no such folder, not a diffusers folder, unsupported class, or the hub does not have it.
    """
    if name.startswith(BUILT_IN) or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
        resolve_folder(name, supported, revision)
        return
    with _of_the_hub(name, revision):
        _index_on_hub(name, supported, revision)


def read_model_index(folder: Path) -> dict[str, Any]:
    """The parsed ``model_index.json`` of a pipeline folder.

    Raises:
        UserError: the path is a file, or the folder is not in the diffusers layout.
    """
    if folder.is_file():
        raise UserError(
            "The model is a file; a folder in the diffusers layout is needed.",
            str(folder),
            "convert it once: StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(FOLDER)",
        )
    path = folder / MODEL_INDEX
    if not path.is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"The model folder has no {MODEL_INDEX}, so it is not a diffusers pipeline.",
            f"{folder} holds {inside}",
            "point to the folder that pipe.save_pretrained wrote",
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: unreadable or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("A model configuration file cannot be read.", f"{path}: {error}", "copy it again") from error
    if not isinstance(value, dict):
        raise UserError("A model configuration file is not a JSON object.", str(path), "copy it again")
    return value


def check_pipeline_class(model_index: dict[str, Any], supported: tuple[str, ...], name: str) -> str:
    """The pipeline class name of a model, if it is one of `supported`.

    Raises:
        UserError: another class.
    """
    found = str(model_index.get("_class_name"))
    if found not in supported:
        raise UserError(
            f"The pipeline class {found} is not supported.",
            name,
            f"use a checkpoint of one of: {', '.join(supported)}",
        )
    return found


def _download(name: str, supported: tuple[str, ...], revision: str | None, variant: str | None) -> Path:
    from diffusers import DiffusionPipeline

    with _of_the_hub(name, revision, variant):
        _index_on_hub(name, supported, revision)
        folder = Path(DiffusionPipeline.download(name, revision=revision, variant=variant))
        if variant is None and not weight_files(folder / "unet"):  # without a variant its files are left out
            folder = Path(DiffusionPipeline.download(name, revision=revision, variant=USUAL_VARIANT))
        return folder


def _index_on_hub(name: str, supported: tuple[str, ...], revision: str | None) -> None:
    from diffusers import DiffusionPipeline

    check_pipeline_class(dict(DiffusionPipeline.load_config(name, revision=revision)), supported, name)


@contextmanager
def _of_the_hub(name: str, revision: str | None, variant: str | None = None) -> Iterator[None]:
    """Say what a failed download means."""
    try:
        yield
    except (OSError, ValueError) as error:  # every hub error is one of the two
        place = f"{name}{f' at {revision}' if revision else ''}{f', variant {variant}' if variant else ''}"
        raise hub_error("base model", "model.pretrained_model_name_or_path=FOLDER", place, error) from error


def hub_error(what: str, override: str, name: str, error: Exception) -> UserError:
    """What a failed download means: no network, which diffusers reports as a missing file; or nothing for this user.

    Args:
        what: the part of the model.
        override: the key, with what to set it to, that does without the hub.
        name: the hub id, revision and variant that were asked for.
        error: what diffusers raised.
    """
    if _is_network(error):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub does not answer"
        return UserError(
            f"The {what} is not on this machine, and the network is needed to fetch it.",
            f"{name}: {offline}, and the local cache does not hold it",
            f"go online once, or download it elsewhere and set {override}",
        )
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(
        f"The {what} is neither a local folder nor available from the hub.",
        f"{name}: {reason}",
        f"check the spelling and your access rights, or download it and set {override}",
    )


def _is_network(error: BaseException | None) -> bool:
    """Whether the hub could not be asked, by the chain of what was raised."""
    while error is not None:
        transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)  # of httpx, whichever it is
        if transport or isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False
