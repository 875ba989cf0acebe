"""Records to batches, in an order that is a function of (seed, position) and nothing else.

Position p of the run is record `permutation(seed, epoch)[p mod n]` with epoch = p div n. Micro-step m of the process
with rank r takes the B positions from m * G + r * B on, B pairs per device and G = B * processes. So a resumed run
sees what the uninterrupted one would have seen, and the number of processes only changes who reads which pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from reward_models.errors import RewardModelError
from reward_models.preprocess import Preprocessor
from reward_models.training.pair_model import PairTensors
from reward_models.training.records import PreferenceRecord


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation of one epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)


@dataclass
class PreparedPair:
    """One pair after decoding and preprocessing."""

    prompt: str
    inputs: Tensor  # [2, 3, S, S]
    labels_a: list[float]
    weight: float


class PairDataset(Dataset["PreparedPair | RewardModelError"]):
    """Decodes and preprocesses records by index.

    A broken pair is a value, not an exception: worker processes would turn the latter into a traceback.
    """

    def __init__(
        self, records: Sequence[PreferenceRecord], preprocessor: Preprocessor, dimensions: Sequence[str]
    ) -> None:
        if len(records) == 0:
            raise RewardModelError("there are no pairs to read")
        self.records, self.preprocessor, self.dimensions = records, preprocessor, tuple(dimensions)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> PreparedPair | RewardModelError:
        try:
            record = self.records[index]
            inputs = torch.stack([self.preprocessor(record.image_a), self.preprocessor(record.image_b)])
        except RewardModelError as error:
            return RewardModelError(f"pair {index}: {error.what}", error.found, error.fix)
        labels = [record.label(dimension) for dimension in self.dimensions]
        if all(math.isnan(label) for label in labels):
            return RewardModelError(
                f"pair {index} has no label for any trained dimension",
                found=f"labels {sorted(record.dimension_labels)}, trained {list(self.dimensions)}",
                fix="leave such pairs out, or train on the dimensions that the data has",
            )
        return PreparedPair(record.prompt, inputs, labels, record.weight)


class AddressedBatches(Sampler[list[int]]):
    """Record indices of each micro-step from `start` to `stop` for one process (see module docstring)."""

    def __init__(
        self, count: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop, self.rank, self.processes = start, stop, rank, processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            first = (step * self.processes + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = epoch_order(self.count, self.seed, epoch)
                batch.append(int(order[position % self.count]))
            yield batch


class Collate:
    """Stacks prepared pairs and tokenises their prompts."""

    def __init__(self, tokenise: Callable[[list[str]], Tensor]) -> None:
        self.tokenise = tokenise

    def __call__(self, items: list[PreparedPair | RewardModelError]) -> PairTensors | RewardModelError:
        for item in items:
            if isinstance(item, RewardModelError):
                return item
        pairs = [item for item in items if isinstance(item, PreparedPair)]
        return PairTensors(
            ids=self.tokenise([pair.prompt for pair in pairs]),
            inputs=torch.cat([torch.stack([pair.inputs[side] for pair in pairs]) for side in (0, 1)]),
            labels_a=torch.tensor([pair.labels_a for pair in pairs], dtype=torch.float32),
            weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        )


def pair_batches(
    dataset: PairDataset,
    batches: Sampler[list[int]] | list[list[int]],
    tokenise: Callable[[list[str]], Tensor],
    workers: int,
) -> Iterator[PairTensors]:
    """Batches of explicit indices.

    Raises:
        RewardModelError: a picture cannot be decoded, or a pair has no label that is trained on.
    """
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=Collate(tokenise))
    for batch in loader:
        if isinstance(batch, RewardModelError):
            raise batch
        yield batch


def to_device(batch: PairTensors, device: torch.device) -> PairTensors:
    """Move a batch."""
    return PairTensors(
        *(t.to(device, non_blocking=True) for t in (batch.ids, batch.inputs, batch.labels_a, batch.weights))
    )
