"""Batches of oriented pairs for the loop: by step, from the cache or from live pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2i_align.backbones.captions import tell_cut
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.config.schema import RunConfig
from t2i_align.data.batch import PairBatch
from t2i_align.data.cache import ensure_cache
from t2i_align.data.cache import open_readers as open_cached
from t2i_align.data.cache_build import unique_captions
from t2i_align.data.derived import derive
from t2i_align.data.pair_source import PairSource
from t2i_align.data.prefetch import Prefetcher
from t2i_align.data.reading import LiveReader, Reader, Side, verify
from t2i_align.data.record import PairRecord, swap
from t2i_align.data.sampler import permutation, step_indices
from t2i_align.data.sources import has_heldout, open_source
from t2i_align.data.transform import Geometry, PairTransform, check_resolution
from t2i_align.randomness import addressed_uniform
from t2i_align.transfer import send

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

__all__ = ["PairProvider", "ensure_cache"]
HELDOUT_ORDER_SEED = 0  # the same held-out pairs whatever the run's seed
Work = tuple[list[int], list[int]]  # indices of pairs, and the epoch of each


class PairProvider:
    """Pairs of one process, by optimiser step.

    A batch is a function of (config, step, micro-step, rank): there is no state to save, and the pairs of a
    step do not depend on the number of processes. With ``data.cache_dir`` latents and prompts are read, else
    pictures are decoded and encoded; the batches are the same.

    Args:
        config: the run; its data section and seed are read.
        backbone: encodes, and says what an empty prompt is.
        batch_size: pairs per process and micro-step.
        accumulation: micro-steps per optimiser step.
        device: where batches go.
        rank, world_size: this process among all.
        needs: what the objective reads from the data, `Objective.data_needs`.
        margin: the reward it reads where the data hold several.
        distinct_passes: after so many passes over the data each item's draws (timestep, noise, flip, crop, dropped
            prompt) begin again with those of the first; only the order is new. None: they are new in every pass.

    Raises:
        UserError: the data or the cache cannot be used, lack what is needed, or the resolution does not fit the model.
    """

    def __init__(
        self,
        config: RunConfig,
        backbone: Backbone,
        *,
        batch_size: int,
        accumulation: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        needs: Collection[str] = (),
        margin: str | None = None,
        distinct_passes: int | None = None,
    ) -> None:
        self._data, self._seed, self._backbone = config.data, config.seed, backbone
        self._batch_size, self._accumulation = batch_size, accumulation
        self._device, self._rank, self._world_size = torch.device(device), rank, world_size
        check_resolution(config.data.resolution, backbone)
        self._transform = PairTransform.of(config.data, config.seed)
        self._training, self._heldout = open_readers(config, backbone)
        self._needs, self._derived = frozenset(needs), derive(self._training.source, needs, margin)
        self._empty, self._distinct_passes = backbone.empty_prompt(1), distinct_passes
        self._pictures: Prefetcher[tuple[int, int], list[tuple[Side, Side]]] = Prefetcher(
            self._load, self._following, config.data.dataloader_num_workers
        )

    items = "pairs"  # what num_pairs counts

    @property
    def source(self) -> PairSource:
        """The training pairs."""
        return self._training.source

    @property
    def fingerprint(self) -> str:
        """Of the training pairs."""
        return self.source.fingerprint

    @property
    def num_pairs(self) -> int:
        """Number of training pairs."""
        return len(self.source)

    @property
    def num_heldout(self) -> int:
        """Number of held-out pairs."""
        return 0 if self._heldout is None else len(self._heldout.source)

    def epoch_of(self, step: int) -> int:
        """Pass over the data in which an optimiser step begins."""
        return step * self._batch_size * self._world_size * self._accumulation // self.num_pairs

    def batch(self, step: int, micro_step: int) -> PairBatch:
        """This process's pairs of one micro-step, on the device.

        Raises:
            UserError: a picture cannot be decoded.
        """
        work = self._work(step, micro_step)
        return self._assemble(self._training, work, self._pictures.get((step, micro_step)), training=True)

    def heldout_batches(self, limit: int, batch_size: int) -> Iterator[PairBatch]:
        """This process's share of the held-out pairs: centre crop, no flip, no caption dropout, always the
        same.

        Args:
            limit: pairs of this process, at most.
            batch_size: pairs per batch; the last may be smaller.
        """
        if self._heldout is None:
            return
        order = permutation(0, self.num_heldout, HELDOUT_ORDER_SEED)
        mine = order[self._rank :: self._world_size][:limit].tolist()
        for start in range(0, len(mine), batch_size):
            indices = mine[start : start + batch_size]
            pictures = [self._heldout.read(index, Geometry()) for index in indices]
            yield self._assemble(self._heldout, (indices, [0] * len(indices)), pictures, training=False)

    def metrics(self) -> dict[str, float]:
        """Nothing: a batch of a dataset says all about itself."""
        return {}

    def totals(self, seconds: float) -> dict[str, float]:
        """Nothing: every step costs the same."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing: a batch is a function of the step."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take."""

    def close(self) -> None:
        """Stop the decoding threads."""
        self._pictures.close()

    def addresses(self, step: int, micro_step: int) -> tuple[list[str], list[int]]:
        """Ids and epochs of the batch of this step, without reading a picture."""
        indices, epochs = self._work(step, micro_step)
        return [self._item_id(index) for index in indices], epochs

    def _item_id(self, index: int) -> str:
        return self.source.describe(index).pair_id

    def _work(self, step: int, micro_step: int) -> Work:
        indices, epochs = step_indices(
            step,
            micro_step,
            self._rank,
            self._world_size,
            self._batch_size,
            self._accumulation,
            self.num_pairs,
            self._seed,
        )
        passes = self._distinct_passes
        return indices, epochs if passes is None else [epoch % passes for epoch in epochs]

    def _following(self, key: tuple[int, int]) -> tuple[int, int]:
        step, micro_step = key
        return (step, micro_step + 1) if micro_step + 1 < self._accumulation else (step + 1, 0)

    def _load(self, key: tuple[int, int]) -> list[tuple[Side, Side]]:
        """Pictures of a micro-step; runs in a worker thread."""
        pairs = []
        for index, epoch in zip(*self._work(*key), strict=True):
            geometry = self._transform.geometry(self.source.describe(index).pair_id, epoch)
            pairs.append(self._training.read(index, geometry))
        return pairs

    def _assemble(self, reader: Reader, work: Work, pictures: list[tuple[Side, Side]], training: bool) -> PairBatch:
        indices, epochs = work
        oriented = [
            orient(reader.source.describe(index), sides, self._seed)
            for index, sides in zip(indices, pictures, strict=True)
        ]
        records = [record for record, _ in oriented]
        winners = [sides[0] for _, sides in oriented]
        losers = [sides[1] for _, sides in oriented]
        data = send(torch.stack([side.data for side in winners + losers]), self._device)
        winner, loser = reader.latents(data).to(self._device).chunk(2)
        ids = [record.pair_id for record in records]
        dropped = self._dropped(ids, epochs) if training else [False] * len(ids)
        return PairBatch(
            ids=ids,
            epochs=epochs,
            winner=winner,
            loser=loser,
            prompt=self._prompt(reader, [record.caption for record in records], dropped),
            prompt_loser=self._prompt(reader, list(map(_other_caption, records)), dropped)
            if reader.source.captions_differ
            else None,
            time_ids_winner=self._time_ids(winners),
            time_ids_loser=self._time_ids(losers),
            preferred=self._column([record.label_0 for record in records]),
            weights=self._column([record.weight for record in records]),
            margins={
                name: self._column([(r.margins or {})[name] for r in records]) for name in reader.source.margin_names
            },
            users=[record.user_id for record in records],
            columns=self._columns(indices, records) if training else {},
        )

    def _columns(self, indices: list[int], records: list[PairRecord]) -> dict[str, Tensor]:
        """What the objective reads beyond labels and margins."""
        columns = {name: self._column(values[indices].tolist()) for name, values in self._derived.items()}
        if "scores" in self._needs:
            scores = torch.tensor([record.scores for record in records], dtype=torch.float32)
            columns["scores"] = send(scores, self._device)
        return columns

    def _column(self, values: list[float]) -> Tensor:
        return send(torch.tensor(values, dtype=torch.float32), self._device)

    def _dropped(self, ids: list[str], epochs: list[int]) -> list[bool]:
        """One draw per item and epoch, so that all its pictures always share their prompt's fate."""
        share = self._data.proportion_empty_prompts
        return [
            share > 0 and addressed_uniform(self._seed, "caption_dropout", epoch, item) < share
            for item, epoch in zip(ids, epochs, strict=True)
        ]

    def _prompt(self, reader: Reader, captions: list[str], dropped: list[bool]) -> PromptEmbeddings:
        prompt = reader.prompts(captions).to(self._device)
        if not any(dropped):
            return prompt
        keep = send(~torch.tensor(dropped), self._device)
        return prompt.where(keep, self._empty.to(self._device, prompt.hidden.dtype))

    def _time_ids(self, sides: list[Side]) -> Tensor | None:
        target = (self._data.resolution, self._data.resolution)
        ids = self._backbone.time_ids(
            [side.original_size for side in sides],
            [side.crop_top_left for side in sides],
            [target] * len(sides),
        )
        return None if ids is None else send(ids, self._device)


def orient(record: PairRecord, sides: tuple[Side, Side], seed: int) -> tuple[PairRecord, tuple[Side, Side]]:
    """Put the preferred picture first; a tie is decided by an addressed coin, which only names the sides."""
    if record.is_tie:
        second_wins = addressed_uniform(seed, "orientation", record.pair_id) < 0.5
    else:
        second_wins = record.label_0 < 0.5
    return (swap(record), (sides[1], sides[0])) if second_wins else (record, sides)


def _other_caption(record: PairRecord) -> str:
    return record.caption if record.caption_1 is None else record.caption_1


def open_readers(config: RunConfig, backbone: Backbone) -> tuple[Reader, Reader | None]:
    """Readers of the training and the held-out pairs.

    Raises:
        UserError: see `PairProvider`.
    """
    readers: list[Reader]
    if config.data.cache_dir is not None:
        readers = [*open_cached(config.data, backbone, config.seed)]
    else:
        sources = [open_source(config.data, "train", config.seed)]
        if has_heldout(config.data):
            sources.append(open_source(config.data, "heldout", config.seed))
        for source in sources:
            verify(source, config.data.dataloader_num_workers)
        transform = PairTransform.of(config.data, config.seed)
        tell_cut(backbone, unique_captions(sources[0]))
        readers = [LiveReader(source, transform, backbone) for source in sources]
    return readers[0], readers[1] if len(readers) > 1 else None
