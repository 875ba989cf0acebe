"""What a user should know about data before a GPU does: counts, defects, and whether it can train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from t2i_align.config.schema import DataConfig
from t2i_align.data.cache_store import key_of
from t2i_align.data.check_report import CaptionLengths, DataReport, PictureSummary
from t2i_align.data.pair_source import PairSource
from t2i_align.data.pictures import UndecodableImage, decode
from t2i_align.data.prefetch import map_ahead
from t2i_align.data.selection import normalise
from t2i_align.data.sources import has_heldout, heldout_table, open_source, training_table
from t2i_align.data.tables import PairTable
from t2i_align.errors import UserError

Progress = Callable[[str, int, int], None]


class Tokenizer(Protocol):
    """What `check` needs to know of a model's tokenizer; `backbones.tokenizers.PromptLength` is one."""

    @property
    def name(self) -> str:
        """For the report."""

    @property
    def limit(self) -> int:
        """Tokens that are read."""

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of every text, uncut."""


def check(
    config: DataConfig, progress: Progress | None = None, tokenizers: Sequence[Tokenizer] | None = None
) -> DataReport:
    """Read everything a run would use, decoding every picture once.

    Defects are reported, not raised; `DataReport.require_trainable` refuses.

    Args:
        config: the data section.
        progress: called with what is read, the number done and the total.
        tokenizers: of the model that will be trained; None where it is not known.

    Raises:
        UserError: the source cannot be opened at all.
    """
    table = training_table(config)
    errors: list[UserError] = []
    training = _open(config, "train", errors)
    held_out = _open(config, "heldout", errors) if has_heldout(config) and training is not None else None
    tally = _look(training, config, progress, "training pictures")
    held_out_tally = _look(held_out, config, progress, "held-out pictures")
    return DataReport(
        address=table.address,
        read_as="" if table.layout is None else table.layout.described(),
        not_read="" if table.layout is None else table.layout.described_unread(),
        rows=len(table) + sum(table.columns.skipped.values()),
        usable=0 if training is None else len(training),
        left_out=table.columns.skipped if training is None else training.left_out,
        row_problems=[f"{table.location(row)}: {reason}" for row, reason in table.columns.problems],
        labels=label_histogram(table.columns.labels),
        prompts=len({normalise(caption) for caption in table.columns.captions}),
        pairs_per_user=_pairs_per_user(table),
        heldout_pairs=None if held_out is None else len(held_out),
        heldout_left_out={} if held_out is None else held_out.left_out,
        shared_prompts=_shared_prompts(table, config),
        shared_pictures=len(tally.occurrences.keys() & held_out_tally.occurrences.keys()),
        pictures=tally.summary(config.resolution),
        undecodable=tally.undecodable + held_out_tally.undecodable,
        leaves_out_undecodable=config.cache_dir is not None,
        errors=errors,
        captions=None if tokenizers is None else _caption_lengths(training, tokenizers),
    )


def _caption_lengths(source: PairSource | None, tokenizers: Sequence[Tokenizer]) -> list[CaptionLengths]:
    """How many of the different training captions each tokenizer cuts."""
    if source is None:
        return []
    texts = list(dict.fromkeys([*source.captions(), *(source.captions_1() or [])]))
    found = []
    for tokenizer in tokenizers:
        lengths = tokenizer.lengths(texts)
        cut = sum(length > tokenizer.limit for length in lengths)
        found.append(CaptionLengths(tokenizer.name, tokenizer.limit, len(texts), cut, max(lengths, default=0)))
    return found


def label_histogram(labels: np.ndarray) -> dict[str, int]:
    """Pairs by what their label says."""
    return {
        "picture 0 preferred": int((labels == 1).sum()),
        "picture 1 preferred": int((labels == 0).sum()),
        "tie": int((labels == 0.5).sum()),
        "other probability": int(((labels > 0) & (labels < 1) & (labels != 0.5)).sum()),
        "missing or outside 0 to 1": int((~((labels >= 0) & (labels <= 1))).sum()),
    }


@dataclass(frozen=True)
class _Look:
    """A decoded pair: keys and sizes (width, height) of its pictures, or why it cannot be used."""

    keys: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    problem: str | None = None


@dataclass
class _Tally:
    """What was seen of many pairs; 16 bytes or so per picture."""

    occurrences: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    judgements: dict[tuple[int, int, int], list[float]] = field(default_factory=dict)
    identical: int = 0
    unequal_sizes: int = 0
    undecodable: list[str] = field(default_factory=list)

    def add(self, look: _Look, caption: str, label: float) -> None:
        """Count a pair."""
        if look.problem is not None:
            self.undecodable.append(look.problem)
            return
        first, second = look.keys
        self.occurrences.update(look.keys)
        self.sizes.update(look.sizes)
        self.identical += first == second
        self.unequal_sizes += look.sizes[0] != look.sizes[1]
        # The same judgement whichever picture stands first.
        place = (key_of(caption), min(first, second), max(first, second))
        self.judgements.setdefault(place, []).append(label if first <= second else 1.0 - label)

    def summary(self, resolution: int) -> PictureSummary:
        """The counts a report shows."""
        ratios = sorted(width / height for width, height in self.sizes.elements())
        lost = [1.0 - min(size) / max(size) for size in self.sizes.elements()]
        repeated = [labels for labels in self.judgements.values() if len(labels) > 1]
        return PictureSummary(
            different=len(self.occurrences),
            in_several_pairs=sum(count > 1 for count in self.occurrences.values()),
            most_pairs=max(self.occurrences.values(), default=0),
            identical_pairs=self.identical,
            repeated_pairs=sum(len(labels) - 1 for labels in repeated),
            contradictory_pairs=sum(min(labels) < 0.5 < max(labels) for labels in repeated),
            sizes=self.sizes.most_common(5),
            size_count=len(self.sizes),
            smaller_than_resolution=sum(n for size, n in self.sizes.items() if min(size) < resolution),
            aspect_ratios=(ratios[0], ratios[len(ratios) // 2], ratios[-1]) if ratios else None,
            pairs_of_unequal_size=self.unequal_sizes,
            seen=len(lost),
            cropped=sum(share > 0 for share in lost),
            lost=sum(lost) / len(lost) if lost else 0.0,
            most_lost=max(lost, default=0.0),
        )


def _look(source: PairSource | None, config: DataConfig, progress: Progress | None, what: str) -> _Tally:
    """Decode a source's pictures in threads and count."""
    tally = _Tally()
    if source is None:
        return tally
    labels, captions = source.labels(), source.captions()
    looks = map_ahead(lambda index: _look_at(source, index), range(len(source)), config.dataloader_num_workers)
    for index, look in enumerate(looks):
        tally.add(look, captions[index], float(labels[index]))
        if progress is not None:
            progress(what, index + 1, len(source))
    return tally


def _look_at(source: PairSource, index: int) -> _Look:
    try:
        images = source.images(index)
    except UndecodableImage as error:
        return _Look(problem=f"{source.location(index)}: {error}")
    sizes = []
    for number, data in enumerate(images):
        try:
            sizes.append(decode(data).size)
        except UndecodableImage as error:
            return _Look(problem=f"{source.location(index)} picture {number}: {error}")
    return _Look(tuple(key_of(data) for data in images), tuple(sizes))


def _open(config: DataConfig, which: str, errors: list[UserError]) -> PairSource | None:
    try:
        return open_source(config, "train" if which == "train" else "heldout")
    except UserError as error:
        errors.append(error)
        return None


def _pairs_per_user(table: PairTable) -> list[int]:
    """Pairs of each user, most first; empty where nobody is named."""
    users: Iterable[str | None] = table.columns.users or []
    return sorted(Counter(user for user in users if user is not None).values(), reverse=True)


def _shared_prompts(table: PairTable, config: DataConfig) -> int:
    """Prompts that training and held-out source have in common, before such pairs are left out."""
    if config.heldout_source is None:
        return 0
    try:
        held_out = heldout_table(config)
    except UserError:
        return 0  # `_open` has reported it
    prompts = {normalise(caption) for caption in table.columns.captions}
    return len(prompts & {normalise(caption) for caption in held_out.columns.captions})
