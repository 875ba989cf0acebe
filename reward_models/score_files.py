"""Scoring many pictures with several scorers into a parquet file: decoded in workers, resumable, nothing lost.

    items ──workers: decode once, preprocess per pipeline──> batches ──scorers──> part files ──> scores.parquet

One row per picture and scorer, with everything needed to trust the number later:

    id, prompt, scorer, version, preprocessing, score

Pictures that cannot be decoded are skipped, counted and listed in `<out>.failures.jsonl`. Finished batches lie in
`<out>.parts/` until the end, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from reward_models.errors import RewardModelError
from reward_models.files import complete_file, write_text
from reward_models.images import ImageSource
from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, prepare_image, stack_prepared
from reward_models.text_tables import split_lines

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("scorer", pa.string()),
        ("version", pa.string()),
        ("preprocessing", pa.string()),
        ("score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ScoreItem:
    """One picture to score.

    Attributes:
        id: unique name, the key of the result rows and of resuming.
        prompt: text to score against.
        image: anything `decode_image` reads, or a function that returns it, called in the worker.
    """

    id: str
    prompt: str
    image: ImageSource | Callable[[], ImageSource]


@dataclass(frozen=True)
class ScoreReport:
    """Outcome of `score_files`: pictures scored in total, of those before this run, and failures (id, reason)."""

    scored: int
    resumed: int
    failures: list[tuple[str, str]]


@dataclass
class _Decoded:
    """What a worker sends back: the prepared picture, or why there is none."""

    index: int
    prepared: Prepared | None
    reason: str = ""


class _Items(Dataset[_Decoded]):
    """Decodes and preprocesses items by position; a failure is a value, so that workers survive it."""

    def __init__(self, items: Sequence[ScoreItem], positions: list[int], preprocessors: list[Preprocessor]) -> None:
        self.items, self.positions, self.preprocessors = items, positions, preprocessors

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> _Decoded:
        index = self.positions[number]
        try:
            image = self.items[index].image
            return _Decoded(index, prepare_image(image() if callable(image) else image, self.preprocessors))
        except RewardModelError as error:
            return _Decoded(index, None, f"{error.what} ({error.found})" if error.found else error.what)


def score_files(
    scorers: Sequence[BaseScorer],
    items: Sequence[ScoreItem],
    out: str | Path,
    batch_size: int = 32,
    workers: int = 4,
    part_rows: int = 2048,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> ScoreReport:
    """Score every item with every scorer and write `out`.

    Args:
        scorers: loaded scorers with distinct names.
        items: indexable; an item may read its picture lazily.
        out: the parquet file.
        batch_size: pictures per forward pass.
        workers: decoding processes, 0 decodes in this one.
        part_rows: pictures per part file, the most that an interruption loses.
        resume: continue after the part files of an interrupted run.
        progress: called with (pictures done, pictures in all).
        share: (rank, number) of the processes that share the items, by whole batches; the other arguments are the same.
        wait: returns when all processes have called it; the first process joins the parts then.

    Raises:
        RewardModelError: duplicate ids or scorers, an existing result, or parts of other scorers or versions.
    """
    rank, count = share
    if rank == 0:
        _Run(list(scorers), items, Path(out), resume)
    wait()
    run = _Run(list(scorers), items, Path(out), True, share, batch_size)
    wait()  # nobody may have written a part before all have seen what is left
    done = run.resumed
    for part in _parts(run, batch_size, workers, part_rows):
        run.write_part(*part)
        done += len(part[0]) // len(run.scorers) + len(part[1])
        if progress:
            progress(done, len(items))
    wait()
    report = run.finish() if rank == 0 else None
    wait()
    return report or run.read_report()


def finished_report(scorers: Sequence[BaseScorer], items: Sequence[ScoreItem], out: str | Path) -> ScoreReport | None:
    """The report of a complete result of exactly these scorers, versions, items and prompts; None where there is none.

    Pictures are taken as unchanged.
    """
    out = Path(out)
    if not out.is_file():
        return None
    columns = ["id", "prompt", "scorer", "version", "preprocessing"]
    found = pq.read_table(out, columns=columns).to_pylist()
    failures = _read_failures(_failures_file(out))
    identities = {(row["scorer"], row["version"], row["preprocessing"]) for row in found}
    wanted = {(scorer.name, scorer.version, scorer.preprocessing) for scorer in scorers}
    prompts = {row["id"]: row["prompt"] for row in found}
    failed = {failure["id"] for failure in failures}
    same = all(prompts.get(item.id) == item.prompt or item.id in failed for item in items)
    if not same or len(prompts) + len(failed) != len(items) or (found and identities != wanted):
        return None
    return ScoreReport(len(prompts), len(items), [(failure["id"], failure["reason"]) for failure in failures])


def _failures_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.failures.jsonl")


def _read_failures(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in split_lines(path.read_text(encoding="utf-8"))] if path.is_file() else []


class _Run:
    """Files and bookkeeping of one output."""

    def __init__(
        self,
        scorers: list[BaseScorer],
        items: Sequence[ScoreItem],
        out: Path,
        resume: bool,
        share: tuple[int, int] = (0, 1),
        block: int = 1,
    ) -> None:
        self.scorers, self.items, self.out = scorers, items, out
        self.rank, count = share
        self._order = {item.id: index for index, item in enumerate(items)}
        self.parts = out.with_name(f"{out.name}.parts")
        names = [scorer.name for scorer in scorers]
        if not scorers or len(set(names)) != len(names):
            raise RewardModelError("give at least one scorer, each name once", found=f"{names}")
        if out.exists():
            raise RewardModelError("the result exists already", found=str(out), fix="choose another name or remove it")
        if not resume:
            shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        self._same_scorers()
        finished = self._finished()
        left = [index for index, item in enumerate(items) if item.id not in finished]
        self.positions = [index for index in left if index // block % count == self.rank]
        if len(self._order) != len(items):
            raise RewardModelError("ids must be unique", fix="use the path, or a uid of the data set")
        self.resumed = len(items) - len(left)
        self.next_part = len(list(self.parts.glob(f"part-{self.rank:03d}-*.parquet")))

    @property
    def preprocessors(self) -> list[Preprocessor]:
        """Every pipeline once, however many scorers share it."""
        return list(dict.fromkeys(p for scorer in self.scorers for p in scorer.preprocessors))

    def _same_scorers(self) -> None:
        identity = [[scorer.name, scorer.version, scorer.preprocessing] for scorer in self.scorers]
        file = self.parts / "scorers.json"
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != identity:
            raise RewardModelError(
                "an interrupted run with other scorers or versions left its parts here",
                found=f"{file}: {file.read_text(encoding='utf-8').strip()}",
                fix="finish it with the same scorers, or start again with resume=False",
            )
        write_text(file, json.dumps(identity))

    def _finished(self) -> set[str]:
        done: set[str] = set()
        for part in self.parts.glob("part-*.parquet"):
            done.update(pq.read_table(part, columns=["id"])["id"].to_pylist())
        return done | {failure["id"] for failure in self._failures()}

    def _failures(self) -> list[dict[str, str]]:
        """Failures of complete parts; the parquet file is what makes a part complete."""
        files = [part.with_suffix(".failures") for part in sorted(self.parts.glob("part-*.parquet"))]
        failures = [failure for file in files for failure in _read_failures(file)]
        return sorted(failures, key=lambda failure: self._place(failure["id"]))

    def write_part(self, rows: list[dict[str, Any]], failures: list[dict[str, str]]) -> None:
        """One part: failures first, then the rows under their final name, which completes it."""
        stem = self.parts / f"part-{self.rank:03d}-{self.next_part:06d}"
        write_text(stem.with_suffix(".failures"), "".join(json.dumps(failure) + "\n" for failure in failures))
        with complete_file(stem.with_suffix(".parquet")) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
        self.next_part += 1

    def finish(self) -> ScoreReport:
        """Join the parts in the order of the items and remove them."""
        tables = [pq.read_table(part) for part in sorted(self.parts.glob("part-*.parquet"))]
        table = self._in_order(pa.concat_tables(tables)) if tables else SCHEMA.empty_table()
        failures = self._failures()
        with complete_file(self.out) as temporary:
            pq.write_table(table, temporary)
            if failures:  # in place before the scores, which say that all is done
                write_text(_failures_file(self.out), "".join(json.dumps(failure) + "\n" for failure in failures))
        shutil.rmtree(self.parts)
        scored = len(table) // len(self.scorers)
        return self._report(scored, failures)

    def read_report(self) -> ScoreReport:
        """What `finish` returned in the first process."""
        scored = pq.read_metadata(self.out).num_rows // len(self.scorers)
        return self._report(scored, _read_failures(_failures_file(self.out)))

    def _in_order(self, table: pa.Table) -> pa.Table:
        """Rows in the order of the items, whichever process scored them; a stable sort keeps the scorers' order."""
        places = np.array([self._place(name) for name in table["id"].to_pylist()])
        return table.take(pa.array(np.argsort(places, kind="stable")))

    def _place(self, name: str) -> int:
        return self._order.get(name, len(self._order))

    def _report(self, scored: int, failures: list[dict[str, str]]) -> ScoreReport:
        return ScoreReport(scored, self.resumed, [(failure["id"], failure["reason"]) for failure in failures])


def _parts(
    run: _Run, batch_size: int, workers: int, part_rows: int
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, str]]]]:
    """Result rows and failures of about `part_rows` pictures at a time."""
    data = _Items(run.items, run.positions, run.preprocessors)
    loader = DataLoader(data, batch_size=batch_size, num_workers=workers, collate_fn=list)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    pictures = 0
    for decoded in loader:
        good = [one for one in decoded if one.prepared is not None]
        failures += [{"id": run.items[d.index].id, "reason": d.reason} for d in decoded if d.prepared is None]
        if good:
            rows += _score_batch(run, good)
        pictures += len(decoded)
        if pictures >= part_rows:
            yield rows, failures
            rows, failures, pictures = [], [], 0
    if pictures:
        yield rows, failures


@torch.no_grad()
def _score_batch(run: _Run, decoded: list[_Decoded]) -> list[dict[str, Any]]:
    items = [run.items[one.index] for one in decoded]
    prepared = stack_prepared([one.prepared for one in decoded if one.prepared is not None])
    columns = []
    for scorer in run.scorers:
        scores = scorer.score_prepared([item.prompt for item in items], prepared).float().cpu().tolist()
        identity = {"scorer": scorer.name, "version": scorer.version, "preprocessing": scorer.preprocessing}
        columns.append((identity, scores))
    return [
        {"id": item.id, "prompt": item.prompt, **identity, "score": scores[number]}
        for number, item in enumerate(items)
        for identity, scores in columns
    ]
