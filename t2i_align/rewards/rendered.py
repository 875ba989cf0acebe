"""Drawn pairs of the shapes world: what a head learns words and shapes from before it sees samples of a model.

A caption asks for a random scene; each of its two pictures is rendered with some attributes missed and some flaws, and
the oracle says which is better. They cost milliseconds, where samples cost a pipeline.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from reward_models.files import complete_file
from t2i_align.data.convert import new_parquet
from t2i_align.shapes.assets import prompts
from t2i_align.shapes.oracle import DIMENSIONS, Oracle
from t2i_align.shapes.pairs import TIE_MARGIN, encode_jpeg, preference
from t2i_align.shapes.render import render
from t2i_align.shapes.world import ATTRIBUTES, IMAGE_SIZE, Scene, caption, sample_scene

ROWS_PER_GROUP = 64
MISSED = (0.0, 0.15, 0.35)  # probability that an attribute is missed; one of them per picture
DROPPED = 0.2  # probability that the caption leaves an attribute open
FLAW_RATE = 0.4
WARPED = 0.5  # share of pictures with a bent outline, as a weak model draws them
WARP = 2.5  # pixels, standard deviation of the coarse displacement field
SCHEMA = pa.schema(
    [
        ("ranking_id", pa.int64()),
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("margins", pa.struct([(f"oracle:{name}", pa.float64()) for name in DIMENSIONS])),
    ]
)


def run(
    output: str | Path, count: int = 6000, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Write `count` pairs, with the margins of every dimension; returns the file.

    No caption is one of the packaged held-out prompts. Deterministic in `seed`; pair i does not depend on `count`.

    Raises:
        UserError: the output exists, or is no ``.parquet`` file.
    """
    output = new_parquet(Path(output))
    excluded = frozenset(prompts("heldout"))
    with complete_file(output) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(0, count, ROWS_PER_GROUP):
            rows = range(start, min(start + ROWS_PER_GROUP, count))
            drawn = [draw(np.random.default_rng([seed, 6, row]), excluded) for row in rows]
            writer.write_table(pa.Table.from_pylist(list(_judged(rows, drawn)), schema=SCHEMA))
            if progress is not None:
                progress("pairs", rows.stop, count)
    return output


def draw(rng: np.random.Generator, excluded: frozenset[str] = frozenset()) -> tuple[str, bytes, bytes]:
    """A caption and two pictures of it, as JPEG."""
    while True:
        asked, text = _ask(rng)
        if text not in excluded:
            break
    first, second = (encode_jpeg(_picture(asked, rng)) for _ in range(2))
    return text, first, second


def draw_scene(rng: np.random.Generator) -> tuple[str, Image.Image]:
    """A caption and one picture of it."""
    asked, text = _ask(rng)
    return text, _picture(asked, rng)


def _ask(rng: np.random.Generator) -> tuple[Scene, str]:
    asked = sample_scene(rng)
    return asked, caption(asked, [name for name in ATTRIBUTES if rng.random() >= DROPPED])


def _picture(asked: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene with some attributes missed, flaws, and perhaps a bent outline."""
    missed = rng.choice(MISSED)
    kept = {name: value for name, value in asked.attributes().items() if rng.random() >= missed}
    drawn = sample_scene(rng, FLAW_RATE, **kept)
    picture = render(drawn)
    if rng.random() < WARPED:
        picture = _warp(picture, rng)
    if rng.random() < FLAW_RATE:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    return picture


def _warp(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture under a smooth random displacement."""
    strength = WARP * rng.random()
    x, y = np.meshgrid(np.arange(IMAGE_SIZE), np.arange(IMAGE_SIZE))
    fields = []
    for _ in range(2):
        coarse = Image.fromarray(rng.normal(0.0, strength, (8, 8)).astype(np.float32))
        fields.append(np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))
    pixels = np.asarray(picture)
    columns = np.clip(np.rint(x + fields[0]), 0, IMAGE_SIZE - 1).astype(int)
    lines = np.clip(np.rint(y + fields[1]), 0, IMAGE_SIZE - 1).astype(int)
    return Image.fromarray(pixels[lines, columns])


def _judged(rows: range, drawn: list[tuple[str, bytes, bytes]]) -> Iterator[dict[str, Any]]:
    """Rows with labels: the oracle sees the pictures as they are stored."""
    captions = [text for text, _, _ in drawn]
    sides = zip(*[pair[1:] for pair in drawn], strict=True)
    first, second = (Oracle().score(captions, [Image.open(io.BytesIO(data)) for data in side]) for side in sides)
    for index, (row, (text, jpg_0, jpg_1)) in enumerate(zip(rows, drawn, strict=True)):
        label = preference(first["overall"][index], second["overall"][index], TIE_MARGIN)
        sign = 1.0 if label >= 0.5 else -1.0
        gaps = {f"oracle:{name}": sign * float(first[name][index] - second[name][index]) for name in DIMENSIONS}
        yield {"ranking_id": row, "caption": text, "jpg_0": jpg_0, "jpg_1": jpg_1, "label_0": label, "margins": gaps}
