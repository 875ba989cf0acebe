"""Batches of whole lists for objectives that compare more than two pictures; see `lists`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from t2i_align.config.schema import RunConfig
from t2i_align.data.batch import ListBatch
from t2i_align.data.lists import Layout, PictureList, open_lists
from t2i_align.data.pair_source import PairSource
from t2i_align.data.provider import PairProvider
from t2i_align.data.reading import Side
from t2i_align.transfer import send

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

logger = logging.getLogger(__name__)


class ListProvider(PairProvider):
    """Lists of one process, by optimiser step; held-out data are judged pair by pair.

    Args:
        config: the run; ``data.list_size`` is read beside what `PairProvider` reads.
        backbone: encodes.
        layout: ranked or group.

    The other arguments are those of `PairProvider`, counted in lists.

    Raises:
        UserError: the source holds no such lists, or what `PairProvider` raises.
    """

    def __init__(
        self,
        config: RunConfig,
        backbone: Backbone,
        layout: Layout,
        *,
        batch_size: int,
        accumulation: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        distinct_passes: int | None = None,
    ) -> None:
        super().__init__(
            config,
            backbone,
            batch_size=batch_size,
            accumulation=accumulation,
            device=device,
            rank=rank,
            world_size=world_size,
            distinct_passes=distinct_passes,
        )
        data = config.data
        self._lists = open_lists(self.source, layout, data.list_size, data.shuffle_labels, config.seed)
        if self._lists.left_out and rank == 0:
            logger.info("%d lists of fewer than %d pictures are left out", self._lists.left_out, self._lists.size)

    items = "lists"

    @property
    def list_size(self) -> int:
        """Pictures in every list."""
        return self._lists.size

    @property
    def num_pairs(self) -> int:
        """Number of lists: what a pass over the data counts here."""
        return len(self._lists.items)

    @property
    def fingerprint(self) -> str:
        """Of the pairs behind the lists, and of the lists' size."""
        return list_fingerprint(self.source, self._lists.size)

    def batch(self, step: int, micro_step: int) -> ListBatch:  # type: ignore[override]
        """This process's lists of one micro-step, on the device; see `PairProvider.batch`."""
        indices, epochs = self._work(step, micro_step)
        pictures = self._pictures.get((step, micro_step))
        lists = [self._list(index, epoch) for index, epoch in zip(indices, epochs, strict=True)]
        records = [[self.source.describe(pair) for pair, _ in one.pictures] for one in lists]
        sides = [row[picture] for picture in range(self._lists.size) for row in pictures]
        data = send(torch.stack([side.data for side in sides]), self._device)
        dropped = self._dropped([one.list_id for one in lists], epochs)
        captions = [
            _caption(records[item][picture], lists[item].pictures[picture][1])
            for picture in range(self._lists.size)
            for item in range(len(lists))
        ]
        return ListBatch(
            ids=[one.list_id for one in lists],
            epochs=epochs,
            latents=self._training.latents(data).to(self._device),
            prompt=self._prompt(self._training, captions, dropped * self._lists.size),
            time_ids=self._time_ids(sides),
            scores=send(torch.tensor([one.scores for one in lists], dtype=torch.float32), self._device),
            weights=self._column([one.weight for one in lists]),
        )

    def _item_id(self, index: int) -> str:
        return self._lists.items[index].list_id

    def _list(self, index: int, epoch: int) -> PictureList:
        return self._lists.items[index].subset(self._lists.size, self._seed, epoch)

    def _load(self, key: tuple[int, int]) -> list[tuple[Side, ...]]:  # type: ignore[override]
        """Pictures of every list of a micro-step; runs in a worker thread."""
        loaded = []
        for index, epoch in zip(*self._work(*key), strict=True):
            one = self._list(index, epoch)
            geometry = self._transform.geometry(one.list_id, epoch)
            pairs = {pair: self._training.read(pair, geometry) for pair in dict.fromkeys(p for p, _ in one.pictures)}
            loaded.append(tuple(pairs[pair][side] for pair, side in one.pictures))
        return loaded


def list_fingerprint(source: PairSource, size: int) -> str:
    """Of lists of `size` pictures made from a source's pairs."""
    return f"{source.fingerprint}-{size}"


def _caption(record, side: int) -> str:
    return record.caption_1 if side == 1 and record.caption_1 is not None else record.caption
