"""Pictures and prompts of a pair, live: decoded from the source and encoded by the model at every step.

`cache.CachedReader` answers the same questions from disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.prefetch import map_ahead
from t2i_align.data.transform import Geometry, PairTransform
from t2i_align.errors import UserError

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

VERIFIED_PAIRS = 2048


@dataclass(frozen=True)
class Side:
    """One picture of a pair on the CPU.

    Attributes:
        data: pixels ``[3, R, R]`` in [-1, 1], or latents ``[C, h, w]``.
        original_size: (height, width) before scaling.
        crop_top_left: (top, left) of the crop after scaling.
    """

    data: Tensor
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]


class Reader(Protocol):
    """Where a provider gets pictures and prompts from."""

    source: PairSource

    def read(self, index: int, geometry: Geometry) -> tuple[Side, Side]:
        """Pictures 0 and 1 of a pair; called from several threads."""

    def latents(self, data: Tensor) -> Tensor:
        """``[B, C, h, w]`` float32 latents of stacked `Side.data` on the training device."""

    def prompts(self, captions: list[str]) -> PromptEmbeddings:
        """Embeddings of B captions."""


class LiveReader:
    """Decodes with the CPU, encodes with the model.

    Args:
        source: the pairs.
        transform: geometry to squares.
        backbone: encodes pictures and prompts.
    """

    def __init__(self, source: PairSource, transform: PairTransform, backbone: Backbone) -> None:
        self.source, self._transform, self._backbone = source, transform, backbone

    def read(self, index: int, geometry: Geometry) -> tuple[Side, Side]:
        """Decode both pictures.

        Raises:
            UserError: one of them cannot be decoded.
        """
        try:
            first, second = (self._transform(decode(data), geometry) for data in self.source.images(index))
        except UndecodableImage as error:
            raise undecodable(self.source, [(index, str(error))]) from error
        return (
            Side(first.pixels, first.original_size, first.crop_top_left),
            Side(second.pixels, second.original_size, second.crop_top_left),
        )

    def latents(self, data: Tensor) -> Tensor:
        """Encode stacked pixels."""
        return self._backbone.encode_image(data)

    def prompts(self, captions: list[str]) -> PromptEmbeddings:
        """Encode captions."""
        return self._backbone.encode_prompt(captions)


def verify(source: PairSource, workers: int = 0, limit: int = VERIFIED_PAIRS) -> None:
    """Decode pictures before training starts: all of a small source, ``limit`` pairs spread over a large one.

    Raises:
        UserError: names the pictures that cannot be decoded.
    """
    count = min(limit, len(source))
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    problems = list(find_undecodable(source, indices, workers))
    if problems:
        raise undecodable(source, problems)


def find_undecodable(source: PairSource, indices: Iterable[int], workers: int = 0) -> list[tuple[int, str]]:
    """(index, reason) of pairs with a picture that cannot be decoded, in order."""

    def reason(index: int) -> tuple[int, str | None]:
        try:
            for number, data in enumerate(source.images(index)):
                try:
                    decode(data)
                except UndecodableImage as error:
                    return index, f"picture {number}: {error}"
        except UndecodableImage as error:
            return index, str(error)
        return index, None

    found = map_ahead(reason, indices, workers)
    return [(index, text) for index, text in found if text is not None]


def undecodable(source: PairSource, problems: list[tuple[int, str]]) -> UserError:
    """The complaint about pictures that cannot be decoded."""
    shown = "; ".join(f"{source.location(index)}: {reason}" for index, reason in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return UserError(
        f"{len(problems)} of the pairs in {source.table.address} cannot be decoded.",
        shown + more,
        "repair or remove the rows (t2i-align data convert can leave them out), or set data.cache_dir: "
        "a cache leaves them out and says how many",
    )
