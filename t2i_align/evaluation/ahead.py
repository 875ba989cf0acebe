"""What can be found out before the first picture: models, weights of scorers and output folders that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from t2i_align.backbones.folders import BUILT_IN as ADDRESSES
from t2i_align.backbones.folders import HUB_ID, MODEL_INDEX
from t2i_align.errors import UserError
from t2i_align.evaluation.scorers import BUILT_IN, Scorer
from t2i_align.paths import beside, check_writable

OF_A_RUN = ("config.yaml", "metrics.jsonl")


def check_output_folder(folder: str | Path) -> None:
    """Whether pictures and scores may be written into a folder.

    Raises:
        UserError: it is a file, cannot be written to, or is the folder of a model or of a training run.
    """
    folder = Path(folder)
    check_writable(folder)
    if (folder / MODEL_INDEX).is_file():
        found = f"{folder} is a model: it holds {MODEL_INDEX}"
    elif all((folder / name).is_file() for name in OF_A_RUN):
        found = f"{folder} is a training run: it holds {' and '.join(OF_A_RUN)}"
    else:
        return
    raise UserError("The output folder holds other results.", found, f"name a folder of its own, such as {folder}/eval")


def check_models(models: Iterable[str | Path], base: str | Path | None = None) -> None:
    """Whether there are such models, before the first of them draws; no weights are loaded or fetched.

    Of a hub id that is not in the cache yet no more than its index is fetched.

    Args:
        models: see ``generate.run``.
        base: base model of entries that are only adapters.

    Raises:
        UserError: no such path, with the nearest that there is; no model in it; an unknown base; or nothing on the hub.
    """
    from t2i_align.backbones import identify_model
    from t2i_align.backbones.folders import check_pipeline
    from t2i_align.backbones.loading import BACKBONES

    for model in map(str, models):
        check_path(model, "model", "a folder, a hub id (owner/name) or shapes:base")
        config = identify_model(model, None if base is None else str(base)).base
        check_path(config.pretrained_model_name_or_path, "base model", "--base with a folder or a hub id (owner/name)")
        check_pipeline(config.pretrained_model_name_or_path, tuple(BACKBONES), config.revision)


def check_checkpoints(scorers: Iterable[str | Scorer]) -> None:
    """Whether the weights that scorers are given by path are there; what the hub is to deliver is not asked for.

    Raises:
        UserError: no such path, with the nearest that there is.
    """
    from t2i_align.rewards.scorers import parse

    for word in scorers:
        if not isinstance(word, str) or word in BUILT_IN:
            continue
        for spec in parse(word):
            if isinstance(checkpoint := spec.options.get("checkpoint"), str | Path):
                check_path(
                    str(checkpoint), f"checkpoint of the scorer {spec.name}", "a file, a folder or a hub reference"
                )


def check_path(name: str, what: str, wanted: str) -> None:
    """Whether a name is a path that exists, a built-in address, or can be one of the hub.

    ``runs/mini`` has the form of a hub id. Where there is a folder ``runs`` here it is a path, unless the cache holds a
    repository of this name.

    Raises:
        UserError: it is a path, and nothing is there.
    """
    path = Path(name).expanduser()
    if name.startswith(ADDRESSES) or path.exists():
        return
    repository = name.partition(":")[0].partition("@")[0]
    if HUB_ID.fullmatch(repository) and (not path.parent.is_dir() or _is_cached(repository)):
        return
    hub = "; the hub's repository of this name must be downloaded first" if HUB_ID.fullmatch(repository) else ""
    raise UserError(f"The {what} does not exist.", name, f"{beside(path)}give {wanted}{hub}")


def _is_cached(repository: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")).is_dir()
