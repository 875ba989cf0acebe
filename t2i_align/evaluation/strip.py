"""A strip of pictures from one user to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_align.backbones import identify_model
from t2i_align.errors import UserError
from t2i_align.evaluation.generate import device_and_dtype, load_model, picture_seed
from t2i_align.evaluation.grids import grid
from t2i_align.evaluation.sampling import sample_images
from t2i_align.personal.mixtures import interpolate
from t2i_align.personal.pipeline import load_personal
from t2i_align.personal.who import tokens_of


def strip(
    model: str,
    start: str,
    end: str,
    prompts: Sequence[str],
    path: str | Path,
    *,
    users: int = 5,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    base: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Write one row of pictures per prompt, `users` from `start` to `end`, same noise along a row; returns the path.

    Args:
        model: run or export folder of a user adapter.
        start, end: users in one word, see ``personal.who``.
        prompts: at least one.
        path: of the PNG.
        users: pictures per row, both ends included.

    The others are those of ``generate.run``.

    Raises:
        UserError: not a user adapter, or a user who cannot be understood.
    """
    source = identify_model(model, base)
    if source.kind != "user" or source.weights is None:
        raise UserError("This run has no user adapter.", model, "give a run of a personal section")
    where, precision = device_and_dtype(device, dtype)
    pipeline = load_model(model, base, precision, where)
    personal = load_personal(pipeline, source.weights)
    walk = interpolate(tokens_of(personal, start), tokens_of(personal, end), users)
    columns = []
    for tokens in walk:
        with personal.user(tokens):
            columns.append(
                sample_images(
                    pipeline,
                    prompts,
                    [picture_seed(seed, index, 0) for index in range(len(prompts))],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    height=height,
                    width=width,
                )
            )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [column[row] for row in range(len(prompts)) for column in columns]
    shares = [f"{index / (users - 1):.2f}" for index in range(users)]
    grid(images, columns=users, captions=[f"{prompt} ({share})" for prompt in prompts for share in shares]).save(path)
    return path
