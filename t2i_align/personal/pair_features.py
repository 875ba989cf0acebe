"""Features of all pairs of a source, computed once: every picture and every caption one vector, on disk."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reward_models.files import complete_file
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.reading import undecodable
from t2i_align.personal.features import Extractor

logger = logging.getLogger(__name__)

LOGGED = 5000  # pairs between two messages
CHUNK = 256  # pictures decoded together


@dataclass(frozen=True)
class PairFeatures:
    """Vectors of N pairs.

    Attributes:
        pictures: ``[P, F]`` float32, of the P different pictures.
        index: ``[N, 2]`` long, rows of `pictures`: picture 0 and 1 of each pair.
        captions: ``[K, C]`` float32, of the K different captions.
        caption: ``[N]`` long, rows of `captions`.
    """

    pictures: Tensor
    index: Tensor
    captions: Tensor
    caption: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, as stored."""
        return {name: getattr(self, name) for name in ("pictures", "index", "captions", "caption")}

    def pairs_of_pictures(self) -> list[tuple[int, int]]:
        """N times what identifies a pair: its two pictures, whichever stands first and whatever the caption."""
        return [(min(pair), max(pair)) for pair in self.index.tolist()]

    def shown(self, pairs: list[int], first_wins: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Winners ``[S, F]``, losers ``[S, F]`` and captions ``[S, C]`` of some pairs."""
        rows = self.index[pairs]
        turned = torch.where(torch.tensor(first_wins)[:, None], rows, rows.flip(1))
        return self.pictures[turned[:, 0]], self.pictures[turned[:, 1]], self.captions[self.caption[pairs]]


def pair_features(source: PairSource, extractor: Extractor, folder: str | Path | None = None) -> PairFeatures:
    """Features of every pair; with `folder` they are kept there, and found again.

    A picture that several pairs hold, as where many users judge the same ones, is looked at once.

    Args:
        source: the pairs.
        extractor: frozen.
        folder: of the cache; None keeps nothing.

    Raises:
        UserError: a picture cannot be decoded.
    """
    if folder is None:
        return _compute(source, extractor)
    path = Path(folder) / f"features-{_key(source, extractor)}.safetensors"
    if not path.is_file():
        computed = _compute(source, extractor)
        with complete_file(path) as temporary:
            save_file(computed.tensors(), temporary)
    return PairFeatures(**load_file(path))


def _key(source: PairSource, extractor: Extractor) -> str:
    digest = hashlib.blake2b(extractor.fingerprint.encode(), digest_size=12)
    digest.update(source.table.fingerprint.encode())
    digest.update(source.rows.astype(np.int64).tobytes())
    return digest.hexdigest()


def _compute(source: PairSource, extractor: Extractor) -> PairFeatures:
    known: dict[bytes, int] = {}
    index = torch.zeros(len(source), 2, dtype=torch.long)
    rows: list[Tensor] = []
    waiting = []
    for pair in range(len(source)):
        try:
            for side, data in enumerate(source.images(pair)):
                key = hashlib.blake2b(data, digest_size=16).digest()
                if key not in known:
                    known[key] = len(known)
                    waiting.append(decode(data))
                index[pair, side] = known[key]
        except UndecodableImage as error:
            raise undecodable(source, [(pair, str(error))]) from error
        if len(waiting) >= CHUNK:
            rows.append(extractor.pictures(waiting))
            waiting = []
        if (pair + 1) % LOGGED == 0:
            logger.info("features: %d of %d pairs", pair + 1, len(source))
    rows.append(extractor.pictures(waiting))
    position: dict[str, int] = {}
    caption = [position.setdefault(text, len(position)) for text in source.captions()]
    return PairFeatures(torch.cat(rows), index, extractor.captions(list(position)), torch.tensor(caption))
