"""Alignment at inference: of several pictures of a prompt keep the one that a scorer likes best, and refine it.

Best-of-n draws n pictures and keeps the best. Refinement (after CoHP, arXiv 2508.03789) goes on from there: every round
brings the kept picture part of the way back to noise, draws n continuations and keeps the best of them and of the kept
one, so a round never lowers the score. Nothing is trained; the price is UNet passes, which are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reward_models.text_tables import split_lines
from t2i_align.errors import UserError
from t2i_align.evaluation import statistics
from t2i_align.evaluation.manifest import Picture, read_manifest
from t2i_align.evaluation.sampling import continue_images, sample_images
from t2i_align.evaluation.scorers import Scorer, check_scorers, open_scorer
from t2i_align.evaluation.statistics import Estimate
from t2i_align.processes import Processes
from t2i_align.randomness import address_hash

RECORD_FILE = "best_of.jsonl"


@dataclass(frozen=True)
class BestOf:
    """What is asked for.

    Attributes:
        candidates: n, pictures drawn per kept picture and round.
        scorers: the first chooses; the others only judge the choice, so that the gain is not measured by what chose.
        refine: strength of each refinement round in (0, 1): the share of the denoising steps that is done again.
    """

    candidates: int
    scorers: Sequence[str | Scorer]
    refine: Sequence[float] = ()

    def open(self, device: str | None) -> OpenBestOf:
        """Load the scorers.

        Raises:
            UserError: fewer than two candidates, no scorer, or a strength outside (0, 1].
        """
        if self.candidates < 2:
            raise UserError("Best-of-n needs two pictures to choose from.", f"n = {self.candidates}", "use 2 or more")
        if not self.scorers:
            raise UserError("Best-of-n needs a scorer that chooses.", "none", "name one: --scorer pickscore")
        for strength in self.refine:
            if not 0.0 < strength <= 1.0:
                raise UserError(
                    "A refinement strength is a share of the steps.", str(strength), "use 0 < strength <= 1"
                )
        check_scorers(self.scorers)
        return OpenBestOf(self, [open_scorer(spec, device) for spec in self.scorers])


class OpenBestOf:
    """Draws, chooses and keeps a record; made by ``BestOf.open``."""

    def __init__(self, choice: BestOf, scorers: Sequence[Scorer]) -> None:
        self._choice, self._scorers = choice, scorers

    @property
    def identity(self) -> str:
        """What of it decides the pictures, for the folder's fingerprint."""
        chooser = self._scorers[0]
        rounds = ",".join(f"{strength:g}" for strength in self._choice.refine)
        return f" best of {self._choice.candidates} by {chooser.name} {chooser.version} refined {rounds or 'never'}"

    def draw(
        self, pipeline: Any, batch: Sequence[Picture], folder: Path, sampling: Mapping[str, Any]
    ) -> list[Image.Image]:
        """The chosen picture of each entry of ``batch``; one line per picture is added to ``best_of.jsonl``."""
        with counted_passes(pipeline.unet) as passes:
            candidates = [
                self._candidates(pipeline, batch, number, sampling) for number in range(self._choice.candidates)
            ]
            rounds = [self._judge(batch, candidates)]
            spent = [passes.rows / len(batch)]
            best = self._chosen(candidates, rounds[0])
            for number, strength in enumerate(self._choice.refine):
                again = [self._continued(pipeline, batch, best, strength, number, j, sampling) for j in self._numbers]
                pool = [best, *again]
                rounds.append(self._judge(batch, pool))
                spent.append(passes.rows / len(batch))
                best = self._chosen(pool, rounds[-1])
        self._record(folder, batch, rounds, spent)
        return best

    @property
    def _numbers(self) -> range:
        return range(self._choice.candidates)

    def _candidates(self, pipeline: Any, batch: Sequence[Picture], number: int, sampling: Mapping[str, Any]) -> list:
        seeds = [candidate_seed(picture.seed, number) for picture in batch]
        return sample_images(pipeline, [p.prompt for p in batch], seeds, batch_size=len(batch), **sampling)

    def _continued(
        self,
        pipeline: Any,
        batch: Sequence[Picture],
        best: Sequence[Image.Image],
        strength: float,
        refinement: int,
        number: int,
        sampling: Mapping[str, Any],
    ) -> list[Image.Image]:
        seeds = [address_hash(picture.seed, "refine", refinement, number) % 2**32 for picture in batch]
        options = {name: sampling[name] for name in ("num_inference_steps", "guidance_scale", "negative_prompt")}
        return continue_images(pipeline, [p.prompt for p in batch], seeds, best, strength=strength, **options)

    def _judge(self, batch: Sequence[Picture], pool: Sequence[Sequence[Image.Image]]) -> dict[str, np.ndarray]:
        """Scorer -> ``[pictures, candidates]``; a candidate without a score is never chosen."""
        prompts = [picture.prompt for _ in pool for picture in batch]
        images = [image for drawn in pool for image in drawn]
        scores = {}
        for scorer in self._scorers:
            values = np.asarray(scorer.score(prompts, images)[scorer.dimensions[0]], dtype=np.float64)
            scores[scorer.name] = np.nan_to_num(values, nan=-math.inf).reshape(len(pool), len(batch)).T
        return scores

    def _chosen(self, pool: Sequence[Sequence[Image.Image]], scores: Mapping[str, np.ndarray]) -> list[Image.Image]:
        winners = scores[self._scorers[0].name].argmax(axis=1)
        return [pool[winner][index] for index, winner in enumerate(winners)]

    def _record(
        self, folder: Path, batch: Sequence[Picture], rounds: Sequence[Mapping[str, np.ndarray]], spent: Sequence[float]
    ) -> None:
        with Processes.here().part(folder / RECORD_FILE).open("a", encoding="utf-8") as file:
            for place, picture in enumerate(batch):
                line = {
                    "index": picture.index,
                    "prompt_index": picture.prompt_index,
                    "seeds": [candidate_seed(picture.seed, number) for number in self._numbers],
                    "rounds": [{name: list(values[place]) for name, values in scores.items()} for scores in rounds],
                    "passes": list(spent),
                }
                file.write(json.dumps(line) + "\n")


def candidate_seed(seed: int, number: int) -> int:
    """Seed of a picture's n-th candidate; the first is the picture that plain ``generate`` draws."""
    return seed if number == 0 else address_hash(seed, "candidate", number) % 2**32


@dataclass
class PassCount:
    """Rows that went through a network."""

    rows: int = 0


@contextmanager
def counted_passes(unet: torch.nn.Module) -> Iterator[PassCount]:
    """Count the rows (pictures, times two under guidance) of every call of ``unet``."""
    count = PassCount()

    def add(_: Any, args: tuple, kwargs: dict) -> None:
        count.rows += len(args[0] if args else kwargs["sample"])

    handle = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@dataclass(frozen=True)
class Gain:
    """What best-of-n, or a refinement round after it, is worth.

    Attributes:
        what: such as ``best of 4`` or ``round 2``.
        passes: UNet rows per picture.
        divergence: bound of the KL divergence from the plain model, ``log n - (n - 1) / n``; NaN after refinement.
        gains: scorer -> mean paired gain over one picture, with its interval over prompts.
    """

    what: str
    passes: float
    divergence: float
    gains: Mapping[str, Estimate]


def gains(folder: Path) -> list[Gain]:
    """The price and the gain of every n up to the drawn one, and of every refinement round.

    For n below the drawn N the mean is over all subsets of n candidates: the candidate of rank r (from 0, by the scorer
    that chooses) is the best of a random subset with probability ``C(r, n - 1) / C(N, n)``.

    Raises:
        UserError: the folder holds no record.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise UserError("The folder was not made by best-of-n.", f"no {path}", "run t2i-align generate --best-of N")
    lines = {row["index"]: row for row in map(json.loads, split_lines(path.read_text(encoding="utf-8")))}
    rows = [lines[picture.index] for picture in read_manifest(folder) if picture.index in lines]
    first = {name: np.array([row["rounds"][0][name] for row in rows]) for name in rows[0]["rounds"][0]}
    chooser = next(iter(first))
    prompts = np.array([row["prompt_index"] for row in rows])
    single = {name: values.mean(axis=1) for name, values in first.items()}
    count = first[chooser].shape[1]
    passes = np.array([row["passes"] for row in rows]).mean(axis=0)
    table = []
    for n in range(1, count + 1):
        chances = best_of_chances(first[chooser], n)
        found = {
            name: _over_prompts((values * chances).sum(axis=1) - single[name], prompts)
            for name, values in first.items()
        }
        table.append(Gain(f"best of {n}", passes[0] * n / count, math.log(n) - (n - 1) / n, found))
    for number in range(1, len(passes)):
        kept = [int(np.argmax(row["rounds"][number][chooser])) for row in rows]
        found = {
            name: _over_prompts(
                np.array([row["rounds"][number][name][k] for row, k in zip(rows, kept, strict=True)]) - single[name],
                prompts,
            )
            for name in first
        }
        table.append(Gain(f"round {number}", passes[number], math.nan, found))
    return table


def best_of_chances(scores: np.ndarray, n: int) -> np.ndarray:
    """``[pictures, N]``: probability that each candidate is the best of a random n of the N; ties by place."""
    count = scores.shape[1]
    by_rank = np.array([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])
    ranks = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1)
    return by_rank[ranks]


def _over_prompts(values: np.ndarray, prompts: np.ndarray) -> Estimate:
    """Mean over prompts, pictures of one prompt averaged first."""
    return statistics.mean(np.array([values[prompts == prompt].mean() for prompt in np.unique(prompts)]))
