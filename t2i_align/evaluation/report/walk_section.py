"""The report's pictures between two users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reward_models.errors import RewardModelError
from reward_models.images import decode_image
from t2i_align.evaluation.report.pictures import data_uri
from t2i_align.evaluation.walk import Walk


@dataclass(frozen=True)
class WalkPage:
    """What the template shows of one walk.

    Attributes:
        walk: measured.
        rows: prompt and data URIs, None where a picture cannot be decoded.
        means: score by name, per step; None where nothing could be scored.
        sentence: how the primary score moves.
        kind: colour class of the sentence.
    """

    walk: Walk
    rows: list[tuple[str, list[str | None]]]
    means: list[tuple[str, list[float | None]]]
    sentence: str
    kind: str


def walk_page(walk: Walk, primary: tuple[str, str]) -> WalkPage:
    """Prepare the section."""
    rows = [(prompt, [_uri(file) for file in files]) for prompt, files in zip(walk.prompts, walk.pictures, strict=True)]
    means = [
        (" ".join(score), [None if value != value else value for value in values])
        for score, values in walk.means.items()
    ]
    sentence, kind = _movement(" ".join(primary), walk.means[primary])
    return WalkPage(walk, rows, means, sentence, kind)


def _movement(name: str, values: tuple[float, ...]) -> tuple[str, str]:
    """How a score moves along the way, in words, and its colour class."""
    steps = [after - before for before, after in zip(values, values[1:], strict=False)]
    ends = f"from {values[0]:.3f} to {values[-1]:.3f}"
    if all(step > 0 for step in steps):
        return f"Mean {name} rises at every step, {ends}.", "better"
    if all(step < 0 for step in steps):
        return f"Mean {name} falls at every step, {ends}.", "better"
    return f"Mean {name} goes {ends}, not at every step in one direction.", "inconclusive"


def _uri(file: Path) -> str | None:
    try:
        return data_uri(decode_image(file))
    except (RewardModelError, OSError):
        return None
