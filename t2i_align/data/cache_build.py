"""The work of building a cache: which prompts and pairs are missing, and encoding them shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from t2i_align.backbones.captions import tell_cut
from t2i_align.data.cache_pictures import PictureBuilder
from t2i_align.data.cache_store import CacheStore, key_of, write_shard
from t2i_align.data.pair_source import PairSource
from t2i_align.data.prefetch import map_ahead
from t2i_align.data.wording import counted

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

Progress = Callable[[str, int, int], None]
PROMPT_BATCH = 32
SHARD_PROMPTS = 256


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds after a build.

    Attributes:
        pairs, pictures, prompts: in the cache; a picture or prompt that occurs in many pairs counts once.
        encoded_pairs: encoded by this build; the others were there.
        rejected: "where: reason" of pairs left out because a picture cannot be decoded.
        bytes: size on disk.
        seconds: time this build took.
    """

    pairs: int
    pictures: int
    prompts: int
    encoded_pairs: int
    rejected: list[str]
    bytes: int
    seconds: float

    @classmethod
    def of(cls, store: CacheStore, share: Share) -> CacheReport:
        """Describe a cache after a build."""
        return cls(
            pairs=len(store.pairs),
            pictures=len(store.pictures),
            prompts=len(store.captions),
            encoded_pairs=share.pairs,
            rejected=sorted(store.rejected.values()),
            bytes=store.bytes,
            seconds=share.seconds,
        )

    def render(self) -> str:
        """A few lines of plain text."""
        lines = [
            f"{counted(self.pairs, 'pair')}, {counted(self.pictures, 'different picture')}, "
            f"{counted(self.prompts, 'different prompt')}, "
            f"{self.bytes / 1e6:.1f} MB",
            f"{counted(self.encoded_pairs, 'pair')} encoded now in {self.seconds:.1f} s",
        ]
        if self.rejected:
            lines.append(f"{counted(len(self.rejected), 'pair')} left out because a picture cannot be decoded:")
            lines += [f"  {text}" for text in self.rejected[:20]]
            lines += [f"  and {len(self.rejected) - 20} more"] if len(self.rejected) > 20 else []
        return "\n".join(lines)


@dataclass
class Share:
    """What one builder did."""

    pairs: int = 0
    seconds: float = 0.0


def encode_missing(
    folder: Path,
    sources: list[PairSource],
    backbone: Backbone,
    *,
    resolution: int,
    flips: bool,
    mine: Callable[[str], bool],
    shard_pairs: int,
    workers: int,
    progress: Progress | None,
) -> Share:
    """Encode the prompts and pictures that the folder lacks.

    Args:
        folder: of the cache.
        sources: pairs that must be there afterwards.
        backbone: encodes.
        resolution: side in pixels.
        flips: encode mirrored pictures too.
        mine: whether this builder takes the pairs of a prompt.
        shard_pairs: pairs per file.
        workers: decoding threads.
        progress: see `cache.build_cache`.
    """
    started, store = time.perf_counter(), CacheStore(folder, keep_index=False)
    report = progress or (lambda what, done, total: None)
    _encode_prompts(folder, store, sources, backbone, mine, report)
    builder = PictureBuilder(folder, store, backbone, resolution, flips, shard_pairs)
    todo = [(source, index) for source in sources for index in _missing(store, source, mine)]
    decoded = map_ahead(lambda job: builder.decode(*job), todo, workers)
    for done, pair in enumerate(decoded, start=1):
        builder.add(pair)
        report("pairs", done, len(todo))
    builder.flush()
    return Share(len(todo), time.perf_counter() - started)


def pair_keys(source: PairSource) -> np.ndarray:
    """``[N]`` keys of the source's pairs."""
    fingerprint = source.table.fingerprint
    return np.array([key_of(fingerprint, pair_id) for pair_id in source.pair_ids()], dtype=np.int64)


def unique_captions(source: PairSource) -> list[str]:
    """Different captions of either picture, in order of occurrence."""
    return list(dict.fromkeys([*source.captions(), *(source.captions_1() or [])]))


def _missing(store: CacheStore, source: PairSource, mine: Callable[[str], bool]) -> list[int]:
    """Indices of the builder's pairs that are neither cached nor known to be undecodable."""
    keys = pair_keys(source)
    missing = ~store.pairs.has(keys) & ~np.isin(keys, list(store.rejected))
    captions = source.captions()
    return [index for index in np.flatnonzero(missing).tolist() if mine(captions[index])]


def _encode_prompts(
    folder: Path,
    store: CacheStore,
    sources: list[PairSource],
    backbone: Backbone,
    mine: Callable[[str], bool],
    report: Progress,
) -> None:
    """Encode the builder's captions that are not cached, a shard at a time."""
    captions = list(dict.fromkeys(caption for source in sources for caption in unique_captions(source)))
    cached = store.captions.has(np.array([key_of(caption) for caption in captions], dtype=np.int64))
    new = [caption for caption, there in zip(captions, cached, strict=True) if not there]
    tell_cut(backbone, new)
    todo = [caption for caption in new if mine(caption)]
    for start in range(0, len(todo), SHARD_PROMPTS):
        shard = todo[start : start + SHARD_PROMPTS]
        batches = [shard[at : at + PROMPT_BATCH] for at in range(0, len(shard), PROMPT_BATCH)]
        first, *rest = (backbone.encode_prompt(batch).to("cpu") for batch in batches)
        encoded = first.cat(*rest)
        tensors = {"captions": torch.tensor([key_of(caption) for caption in shard]), "hidden": encoded.hidden}
        if encoded.pooled is not None:
            tensors["pooled"] = encoded.pooled
        write_shard(folder, "prompts", tensors, {})
        report("prompts", start + len(shard), len(todo))
