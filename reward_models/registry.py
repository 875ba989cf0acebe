"""The scorers by name, and the one way to load them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from reward_models.addresses import named_model, resolved
from reward_models.aesthetic import load_aesthetic
from reward_models.clip_score import load_clip_score
from reward_models.ensemble import load_ensemble
from reward_models.errors import RewardModelError, unknown_name
from reward_models.hps import load_hps_v1, load_hpsv2, load_hpsv21
from reward_models.image_reward import load_image_reward
from reward_models.images import DECODINGS, SHOWN
from reward_models.mps import load_mps
from reward_models.network import NetworkScorer
from reward_models.own import check_own, load_own, own_name
from reward_models.pickscore import load_pickscore
from reward_models.scorer import BaseScorer, torch_device, torch_dtype

SCORERS: dict[str, Callable[..., BaseScorer]] = {
    "clip_score": load_clip_score,
    "aesthetic": load_aesthetic,
    "pickscore": load_pickscore,
    "hps_v1": load_hps_v1,
    "hpsv2": load_hpsv2,
    "hpsv2.1": load_hpsv21,
    "mps": load_mps,
    "image_reward": load_image_reward,
    "ensemble": load_ensemble,
}


def load(
    name: str,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> BaseScorer:
    """Load a scorer.

    Args:
        name: a key of `SCORERS`; `mps:aesthetic` is short for `mps` with `condition="aesthetic"`; `file.py:function` is
            a scorer of your own (`reward_models.own`), whose file is run; `shapes:pickscore` is a model that t2i_align
            brings, short for `pickscore` with `checkpoint="shapes:pickscore"`.
        checkpoint: path of the weights in their published layout, or a Hugging Face reference (`owner/repo`
            for a folder, `owner/repo:file` for a file, `@revision` after the repository), or an address of
            `reward_models.addresses`. None takes the published weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype: precision of the towers: float32, float16, bfloat16 (or float64 for gradient checks).
            Normalisation and dot products stay in float32.
        tokenizer: folder or hub id, where the checkpoint carries none.
        model_config: JSON file or mapping of another size than the published one.
        **options: options of this scorer alone, see its `load_...` function; and of all but ensembles `decoding`:
            `shown` (default), or `published` for pictures neither turned by EXIF nor composited, as the official codes
            read them.

    Raises:
        RewardModelError: unknown name or option, or a checkpoint that is missing, damaged, unsafe or of
            another size.
    """
    given = {"checkpoint": checkpoint, "tokenizer": tokenizer, "model_config": model_config}
    options.update({key: value for key, value in given.items() if value is not None})
    check(name, options)
    if own := own_name(name):
        return load_own(own)
    name, address = named_model(name)
    name, _, condition = name.partition(":")
    if condition:
        options["condition"] = condition
    decoding = options.pop("decoding", SHOWN)
    options = {key: resolved(value) for key, value in ({"checkpoint": address} | options).items()}
    scorer = SCORERS[name](device=torch_device(device), dtype=torch_dtype(dtype), **options)
    if decoding != SHOWN and isinstance(scorer, NetworkScorer):
        scorer.read_as(decoding)
    return scorer


def check(name: str, options: Mapping[str, Any]) -> None:
    """Whether `load` knows the name and the options; nothing is loaded, opened or run but for the text of an own file.

    Args:
        name: as for `load`.
        options: keywords of `load`, `checkpoint` among them.

    Raises:
        RewardModelError: unknown name or option with the nearest valid one, or a scorer of one's own that is not there.
    """
    asked = [option for option in options if option not in ("device", "dtype")]
    if own := own_name(name):
        if asked:
            raise RewardModelError(
                "a scorer of your own takes no checkpoint and no options", found=f"{name}: {', '.join(asked)}"
            )
        check_own(own)
        return
    name, address = named_model(name)
    if address is not None and options.get("checkpoint") is not None:
        raise RewardModelError(
            "an address is a name and its checkpoint; it takes no other checkpoint",
            found=f"{address} and {options['checkpoint']}",
            fix=f"write {name} with the checkpoint",
        )
    name, _, condition = name.partition(":")
    if name not in SCORERS:
        raise unknown_name("scorer", name, SCORERS)
    known = [key for key in inspect.signature(SCORERS[name]).parameters if key not in ("device", "dtype")]
    if name != "ensemble":  # whose members have it each
        known.append("decoding")
    for option in [*asked, *(["condition"] if condition else [])]:
        if option not in known:
            raise unknown_name(f"option of {name}", option, [key for key in known if key != "checkpoint"])
    if options.get("decoding", SHOWN) not in DECODINGS:
        raise unknown_name("decoding", str(options["decoding"]), DECODINGS)
    if options.get("checkpoint") is not None and not str(options["checkpoint"]):
        raise RewardModelError("checkpoint is an empty string", fix="leave it out for the published weights")
