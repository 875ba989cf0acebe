"""Encode pictures and prompts once, and read them back while training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reward_models.files import remove_leftovers
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.config.schema import DataConfig, RunConfig
from t2i_align.data.cache_build import CacheReport, Progress, Share, encode_missing, pair_keys, unique_captions
from t2i_align.data.cache_key import CacheKey
from t2i_align.data.cache_plan import PREFIX as PLAN_PREFIX
from t2i_align.data.cache_plan import plan_file, read_plan, write_plan
from t2i_align.data.cache_store import CacheStore, key_of
from t2i_align.data.pair_source import PairSource
from t2i_align.data.reading import Side
from t2i_align.data.selection import Which
from t2i_align.data.sources import has_heldout, open_source
from t2i_align.data.transform import Geometry, check_resolution
from t2i_align.errors import UserError
from t2i_align.processes import Processes

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

SHARD_PAIRS = 256


class CachedReader:
    """Pairs whose latents and prompts are on disk; see `reading.Reader`.

    Args:
        store: the cache.
        source: pairs that are all in it.
        keys: ``[N]`` of the pairs there.
    """

    def __init__(self, store: CacheStore, source: PairSource, keys: np.ndarray) -> None:
        self._store, self.source, self.keys = store, source, keys

    @classmethod
    def of(cls, store: CacheStore, source: PairSource) -> CachedReader:
        """Look every pair up; those with a picture that could not be decoded are left out.

        Raises:
            UserError: the cache is incomplete, or nothing is left.
        """
        keys = pair_keys(source)
        rejected = np.isin(keys, list(store.rejected))
        missing = ~rejected & ~store.pairs.has(keys)
        captions = np.array([key_of(caption) for caption in unique_captions(source)], dtype=np.int64)
        if missing.any() or not store.captions.has(captions).all():
            raise _incomplete(store.folder, int(missing.sum()), len(source))
        if rejected.all():
            raise UserError(
                f"No pair of {source.table.address} can be decoded.",
                next(iter(store.rejected.values())),
                "repair the pictures; t2i-align data check lists them",
            )
        left = source.without(np.flatnonzero(rejected).tolist(), "picture that cannot be decoded")
        return cls(store, left, keys[~rejected])

    def read(self, index: int, geometry: Geometry) -> tuple[Side, Side]:
        """Latents of both pictures."""
        first, second = self._store.pair(int(self.keys[index]))
        return Side(*self._store.picture(first, geometry.flip)), Side(*self._store.picture(second, geometry.flip))

    def latents(self, data: Tensor) -> Tensor:
        """What was read are latents already."""
        return data

    def prompts(self, captions: list[str]) -> PromptEmbeddings:
        """Embeddings as the text encoders gave them."""
        rows = [self._store.prompt(key_of(caption)) for caption in captions]
        pooled = [row[1] for row in rows if row[1] is not None]
        return PromptEmbeddings(torch.stack([row[0] for row in rows]), torch.stack(pooled) if pooled else None)


def build_cache(
    config: DataConfig,
    backbone: Backbone,
    *,
    rank: int = 0,
    world_size: int = 1,
    shard_pairs: int = SHARD_PAIRS,
    progress: Progress | None = None,
) -> CacheReport:
    """Encode whatever a run with this data section needs and the cache lacks.

    Killed builds resume: at most ``shard_pairs`` pairs are encoded again. Several processes may share the
    work: each takes the prompts whose hash is its rank.

    Args:
        config: the data section; ``cache_dir`` is set.
        backbone: encodes.
        rank, world_size: this builder among all.
        shard_pairs: pairs per file.
        progress: called with what is encoded, the number done and the total.

    Raises:
        UserError: the cache is stale, or the data cannot be used.
    """
    folder = _cache_dir(config)
    check_resolution(config.resolution, backbone)
    encoder, started = backbone.encoder_fingerprint(), time.perf_counter()
    ready = _planned(folder, config, encoder, seed=0)
    if ready is not None:
        return CacheReport.of(ready.store, Share(0, time.perf_counter() - started))
    sources = _sources(config)
    wanted = CacheKey.of(config, encoder, [source.table for source in sources])
    found = CacheKey.read(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found is not None:
        found.require(wanted, folder)
        wanted.flips, wanted.sources = found.flips, {**found.sources, **wanted.sources}
    if wanted != found:
        wanted.write(folder)
    remove_leftovers(folder)
    share = encode_missing(
        folder,
        sources,
        backbone,
        resolution=config.resolution,
        flips=wanted.flips,
        mine=lambda caption: key_of(caption) % world_size == rank,
        shard_pairs=shard_pairs,
        workers=config.dataloader_num_workers,
        progress=progress,
    )
    return CacheReport.of(CacheStore(folder), share)


def open_cache(config: DataConfig, backbone: Backbone, sources: list[PairSource]) -> list[CachedReader]:
    """Readers of a finished cache, one per source that was opened.

    Raises:
        UserError: it is missing, stale or incomplete.
    """
    folder = _cache_dir(config)
    found = _key(folder)
    found.require(CacheKey.of(config, backbone.encoder_fingerprint(), [source.table for source in sources]), folder)
    store = CacheStore(folder)
    return [CachedReader.of(store, source) for source in sources]


def open_readers(config: DataConfig, backbone: Backbone, seed: int) -> list[CachedReader]:
    """Readers of the training and, where there are any, the held-out pairs of a run with a finished cache.

    The first start with these pairs opens their source and looks every pair up; later ones map what it found.

    Raises:
        UserError: the cache is missing, stale or incomplete, or the source cannot be used.
    """
    folder = _cache_dir(config)
    ready = _planned(folder, config, backbone.encoder_fingerprint(), seed)
    if ready is not None:
        return ready.readers
    readers = open_cache(config, backbone, _sources(config, seed))
    store = CacheStore(folder)
    for which, reader in zip(_sides(config), readers, strict=True):
        file = plan_file(folder, store.identity, config, which, seed)
        if file is not None:
            write_plan(file, reader.source, reader.keys)
    return readers


@dataclass(frozen=True)
class _Ready:
    """A cache that is known to hold everything a run needs."""

    store: CacheStore
    readers: list[CachedReader]


def _planned(folder: Path, config: DataConfig, encoder: str, seed: int) -> _Ready | None:
    """What earlier starts wrote down about the same files, settings and cache; None where something is new.

    Raises:
        UserError: the cache was made by another encoder or for another resolution.
    """
    found = CacheKey.read(folder)
    if found is None or not any(folder.glob(f"{PLAN_PREFIX}*")):
        return None
    store = CacheStore(folder, keep_index=False)
    readers = []
    for which in _sides(config):
        file = plan_file(folder, store.identity, config, which, seed)
        if file is None or not file.is_file():
            return None
        readers.append(CachedReader(store, *read_plan(file, config, which)))
    found.require(CacheKey.of(config, encoder, [reader.source.table for reader in readers]), folder)
    return _Ready(store, readers)


def ensure_cache(
    config: RunConfig,
    backbone: Backbone,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
) -> CacheReport | None:
    """Build what is missing of the run's cache; None without ``data.cache_dir``. A finished cache costs a
    look.

    Raises:
        UserError: see `build_cache`.
    """
    if config.data.cache_dir is None:
        return None
    return build_cache(config.data, backbone, rank=rank, world_size=world_size, progress=progress)


def run(config: RunConfig, progress: Progress | None = None) -> CacheReport:
    """``t2i-align data cache CONFIG``: load the model and build the cache; several processes share the prompts.

    Raises:
        UserError: ``data.cache_dir`` is not set; see `build_cache`.
    """
    from t2i_align.backbones.loading import load_backbone, weight_dtype

    _cache_dir(config.data)
    processes = Processes.here()
    device = torch.device(processes.device(None) or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = weight_dtype(config.training.mixed_precision)  # encodings must be those of the run
    backbone = load_backbone(config.model, device, dtype, encoders_only=True)
    own = progress if processes.is_main else None
    report = build_cache(config.data, backbone, rank=processes.rank, world_size=processes.count, progress=own)
    processes.wait()
    if processes.count == 1:
        return report
    return CacheReport.of(CacheStore(_cache_dir(config.data)), Share(report.encoded_pairs, report.seconds))


def _cache_dir(config: DataConfig) -> Path:
    if config.cache_dir is None:
        raise UserError("data.cache_dir is not set.", "null", "set it to the folder the cache should be in")
    if not config.center_crop:
        raise UserError(
            "A cache cannot hold random crops, which are new in every pass over the data.",
            "data.cache_dir with data.center_crop=false",
            "set data.center_crop to true, or data.cache_dir to null",
        )
    return Path(config.cache_dir).expanduser()


def _key(folder: Path) -> CacheKey:
    found = CacheKey.read(folder)
    if found is None:
        raise UserError(
            "data.cache_dir holds no cache.",
            f"{folder} is {'empty' if folder.is_dir() else 'not there'}",
            "build it with t2i-align data cache CONFIG",
        )
    return found


def _sides(config: DataConfig) -> list[Which]:
    return ["train", "heldout"] if has_heldout(config) else ["train"]


def _sources(config: DataConfig, seed: int = 0) -> list[PairSource]:
    return [open_source(config, which, seed) for which in _sides(config)]


def _incomplete(folder: Path, missing: int, total: int) -> UserError:
    return UserError(
        f"The cache in {folder} is incomplete.",
        f"{missing} of {total} pairs are missing" if missing else "captions are missing",
        "run t2i-align data cache CONFIG; it encodes only what is missing",
    )
