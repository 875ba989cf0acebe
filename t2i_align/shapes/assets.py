"""Where the packaged data of the shapes world lies, and the `shapes:` addresses by which configs name it."""

from __future__ import annotations

from pathlib import Path

from reward_models.text_tables import split_lines

from ..errors import UserError

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "heldout")
HEADS = ("pickscore", "hpsv2.1", "mps")
ADDRESSES = {
    "shapes:base": DATA / "base",
    "shapes:tokenizer": DATA / "base" / "tokenizer",
    "shapes:pairs": DATA / "pairs" / "train.parquet",
    "shapes:pairs/heldout": DATA / "pairs" / "heldout.parquet",
    **{f"shapes:{name}": DATA / "rewards" / name for name in HEADS},
    "shapes:lrm": DATA / "rewards" / "lrm",
}


def base_model_path() -> Path:
    """Folder of the base model, a `StableDiffusionXLPipeline`."""
    path = ADDRESSES["shapes:base"]
    _require(path / "model_index.json", "t2i-align shapes pretrain")
    return path


def pairs_path(split: str = "train") -> Path:
    """Parquet file of the preference pairs of `split`, train or heldout."""
    path = DATA / "pairs" / f"{_checked(split)}.parquet"
    _require(path, "t2i-align shapes pairs")
    return path


def head_path(name: str) -> Path:
    """Folder of a small reward model of the world; `reward_models.load(name, checkpoint=folder)` reads it."""
    path = ADDRESSES[f"shapes:{name}"]
    _require(path / "model.safetensors", f"t2i-align rewards train configs/shapes/rewards/{name}.yaml")
    return path


def latent_reward_path() -> Path:
    """Folder of the latent reward model, the judge of noisy latents; `LatentRewardModel.load` reads it."""
    path = ADDRESSES["shapes:lrm"]
    _require(path / "model.safetensors", "t2i-align rewards train configs/shapes/lrm.yaml")
    return path


def prompts(split: str = "heldout") -> list[str]:
    """The prompts of `split`, train or heldout; the two have none in common."""
    path = DATA / "prompts" / f"{_checked(split)}.txt"
    _require(path, "t2i-align shapes pairs")
    return split_lines(path.read_text(encoding="utf-8"))


def resolve(address: str) -> Path:
    """The path behind an address: one of `ADDRESSES`."""
    if address == "shapes:base":
        return base_model_path()
    if address == "shapes:tokenizer":
        return base_model_path() / "tokenizer"
    if address == "shapes:lrm":
        return latent_reward_path()
    if address in ADDRESSES:
        name = address.removeprefix("shapes:")
        if name in HEADS:
            return head_path(name)
        return pairs_path(ADDRESSES[address].stem)
    raise UserError("no such part of the shapes world", address, f"use one of {', '.join(ADDRESSES)}")


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise UserError("no such split of the shapes world", split, f"use one of {', '.join(SPLITS)}")
    return split


def _require(path: Path, command: str) -> None:
    if not path.is_file():
        raise UserError(
            "packaged data of the shapes world are missing",
            f"no file {path}",
            f"install the package with its data, or make them with `{command}`",
        )
