"""``t2i-align score``: pictures of any origin, several scorers, one parquet file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from reward_models.score_files import ScoreReport, score_files
from reward_models.scorer import BaseScorer
from t2i_align.data.convert import new_parquet
from t2i_align.data.wording import counted
from t2i_align.errors import UserError
from t2i_align.paths import check_writable
from t2i_align.processes import Processes
from t2i_align.rewards.pictures import open_pictures
from t2i_align.rewards.scorers import check_scorer_words, load_scorers

SHOWN_FAILURES = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        output: the parquet file.
        report: counts and failures.
        spread: scorer -> (mean, standard deviation) of its scores.
    """

    output: Path
    report: ScoreReport
    spread: dict[str, tuple[float, float]]

    def render(self) -> str:
        """A few lines of plain text."""
        report = self.report
        earlier = f", {report.resumed} of them before this run" if report.resumed else ""
        lines = [f"{counted(report.scored, 'picture')} scored{earlier}: {self.output}"]
        width = max(map(len, self.spread))
        lines += [f"  {name:{width}}  mean {mean:.4f}, std {std:.4f}" for name, (mean, std) in self.spread.items()]
        if report.failures:
            lines.append(f"{counted(len(report.failures), 'picture')} skipped, listed in {self.output}.failures.jsonl:")
            lines += [f"  {name}: {reason}" for name, reason in report.failures[:SHOWN_FAILURES]]
        if len(report.failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(report.failures) - SHOWN_FAILURES} more")
        return "\n".join(lines)


def score(
    images: str,
    scorers: Sequence[str],
    output: str | Path,
    *,
    prompts: str | Path | None = None,
    split: str = "train",
    batch_size: int = 32,
    workers: int = 2,
    device: str | None = None,
    dtype: str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score pictures with every scorer; an interrupted call goes on where it stopped, and processes share the pictures.

    Args:
        images, prompts, split: see `open_pictures`.
        scorers: see `load_scorers`.
        output: a new ``.parquet`` file.
        batch_size, workers, resume, progress: of `score_files`.

    Raises:
        UserError: pictures, prompts or output cannot be used, or no picture could be scored.
        RewardModelError: a scorer cannot be loaded, or an interrupted run with other scorers left its parts.
    """
    output = new_parquet(Path(output))
    check_scorer_words(scorers)
    check_writable(output.parent)
    items = open_pictures(images, prompts, split)
    if not items:
        raise UserError("There are no pictures to score.", images, "name a folder or file with pictures")
    processes = Processes.here()
    loaded = load_scorers(scorers, processes.device(device), dtype)
    if processes.is_main:
        _say_what_is_cut(loaded, list(dict.fromkeys(item.prompt for item in items)))
    output.parent.mkdir(parents=True, exist_ok=True)
    report = score_files(
        loaded,
        items,
        output,
        batch_size,
        workers,
        resume=resume,
        progress=progress if processes.is_main else None,
        share=(processes.rank, processes.count),
        wait=processes.wait,
    )
    if not report.scored:
        processes.wait()
        if processes.is_main:
            output.unlink()
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.failures[:SHOWN_FAILURES])
        raise UserError("No picture could be scored.", reasons, "look at the pictures")
    table = pq.read_table(output, columns=["scorer", "score"])
    names, values = np.array(table["scorer"].to_pylist()), table["score"].to_numpy()
    spread = {one.name: values[names == one.name] for one in loaded}
    return Scored(output, report, {name: (float(part.mean()), float(part.std())) for name, part in spread.items()})


def _say_what_is_cut(scorers: Sequence[BaseScorer], prompts: list[str]) -> None:
    """A message for every scorer that does not read the whole of some prompts."""
    for scorer in scorers:
        cut = scorer.cut_prompts(prompts)
        if cut is not None and cut[0]:
            logger.warning(
                "%d of %d prompts are cut at the %d tokens that %s reads: the rest of them is not judged",
                *(cut[0], len(prompts), cut[1], scorer.name),
            )
