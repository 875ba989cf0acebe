"""Encoding the pictures of pairs into shards of a cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2i_align.data.cache_store import CacheStore, key_of, write_shard
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.transform import Geometry, PairTransform, TransformedImage

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

PICTURE_BATCH = 8


@dataclass(frozen=True)
class DecodedPair:
    """A pair on its way into a cache.

    Attributes:
        key: of the pair.
        pictures: keys of its two pictures.
        variants: picture key -> the picture in each geometry, for pictures that are not in the cache yet.
        rejected: where and why, if a picture cannot be decoded.
    """

    key: int
    pictures: tuple[int, ...] = ()
    variants: dict[int, list[TransformedImage]] = field(default_factory=dict)
    rejected: str | None = None


@dataclass
class _Shard:
    """What the next file will hold; sizes and crops belong to the rows of ``latents``."""

    pairs: list[DecodedPair] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    pictures: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    crops: list[list[tuple[int, int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs) + len(self.rejected)

    def tensors(self) -> dict[str, Tensor]:
        """Content of the file; see `cache_store`."""
        tensors = {
            "pairs": torch.tensor([pair.key for pair in self.pairs], dtype=torch.int64),
            "pair_pictures": torch.tensor([p.pictures for p in self.pairs], dtype=torch.int64).reshape(-1, 2),
            "pictures": torch.tensor(self.pictures, dtype=torch.int64),
        }
        if self.pictures:
            tensors["latents"] = torch.cat(self.latents)
            tensors["original_size"] = torch.tensor(self.sizes, dtype=torch.int32)
            tensors["crop"] = torch.tensor(self.crops, dtype=torch.int32)
        return tensors


class PictureBuilder:
    """Collects pairs until a shard is full. A picture that occurs in several pairs is encoded once.

    Held in memory: the latents of one shard, the pixels of one batch, and the key of every picture in the
        cache.

    Args:
        folder: of the cache.
        store: what is there already.
        backbone: encodes.
        resolution: side in pixels.
        flips: encode the mirrored picture too.
        shard_pairs: pairs per file.
    """

    def __init__(
        self,
        folder: Path,
        store: CacheStore,
        backbone: Backbone,
        resolution: int,
        flips: bool,
        shard_pairs: int,
    ) -> None:
        self._folder, self._backbone, self._shard_pairs = folder, backbone, shard_pairs
        self._transform = PairTransform(resolution)
        self._geometries = [Geometry(flip=flip) for flip in ((False, True) if flips else (False,))]
        self._known = set(store.pictures.keys.tolist())
        self._waiting: list[tuple[int, list[TransformedImage]]] = []
        self._shard = _Shard()

    def decode(self, source: PairSource, index: int) -> DecodedPair:
        """Decode what is new of a pair; runs in worker threads."""
        key = key_of(source.table.fingerprint, source.describe(index).pair_id)
        pictures, variants = [], {}
        try:
            for data in source.images(index):
                pictures.append(key_of(data))
                if pictures[-1] not in self._known:
                    image = decode(data)
                    variants[pictures[-1]] = [self._transform(image, geometry) for geometry in self._geometries]
        except UndecodableImage as error:
            return DecodedPair(key, rejected=f"{source.location(index)}: {error}")
        return DecodedPair(key, tuple(pictures), variants)

    def add(self, pair: DecodedPair) -> None:
        """Take a pair in; encodes when a batch is full, writes when a shard is."""
        if pair.rejected is not None:
            self._shard.rejected[pair.key] = pair.rejected
        else:
            self._shard.pairs.append(pair)
        for key, variants in pair.variants.items():
            if key not in self._known:  # another pair may have brought it since this one was decoded
                self._known.add(key)
                self._waiting.append((key, variants))
        pair.variants.clear()
        if len(self._waiting) >= PICTURE_BATCH:
            self._encode()
        if len(self._shard) >= self._shard_pairs:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if len(self._shard) == 0:
            return
        self._encode()
        rejected = {str(key): reason for key, reason in self._shard.rejected.items()}
        write_shard(self._folder, "pictures", self._shard.tensors(), {"rejected": json.dumps(rejected)})
        self._shard = _Shard()

    def _encode(self) -> None:
        """Encode the waiting pictures in all geometries."""
        if not self._waiting:
            return
        pixels = torch.stack([variant.pixels for _, variants in self._waiting for variant in variants])
        latents = self._backbone.encode_image(pixels).cpu()
        self._shard.latents.append(latents.unflatten(0, (len(self._waiting), len(self._geometries))))
        for key, variants in self._waiting:
            self._shard.pictures.append(key)
            self._shard.sizes.append(variants[0].original_size)
            self._shard.crops.append([variant.crop_top_left for variant in variants])
        self._waiting = []
