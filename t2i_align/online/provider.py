"""Batches for the loop from pairs that the policy's own pictures make, refreshed every n optimiser steps."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from reward_models.files import write_json
from reward_models.scorer import BaseScorer
from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.data.pair_source import PairSource
from t2i_align.data.sampler import permutation
from t2i_align.data.sources import open_source
from t2i_align.errors import UserError
from t2i_align.online.config import OnlineConfig
from t2i_align.online.pairs import Made, Task, make_pairs, write_rows
from t2i_align.rewards.scorers import load_scorer

DONE = "done.json"


class OnlinePairs:
    """Samples, judges and writes pairs at steps 0, n, 2n ...; in between it is an ordinary provider of them.

    The pairs lie in ``pairs/step-N/`` of the run folder, one file per process, so a resumed run finds those it was
    training on, and people can look at them. A refresh without any accepted pair gives empty batches until the next.

    Args:
        run: the whole configuration.
        online: its online section.
        backbone: the policy; encodes pairs.
        accelerator: processes.
        open_pairs: an ordinary provider for a run configuration.
    """

    items = "prompts"

    def __init__(
        self,
        run: RunConfig,
        online: OnlineConfig,
        backbone: Backbone,
        accelerator: Accelerator,
        open_pairs: Callable[[RunConfig], Any],
    ) -> None:
        self._run, self._online, self._backbone, self._accelerator = run, online, backbone, accelerator
        self._open_pairs = open_pairs
        self._scorer: BaseScorer = load_scorer(online.scorer, str(backbone.device))
        self._source: PairSource | None = None
        self._prompts = self._read_prompts()
        self._window, self._inner = -1, None
        self._metrics: dict[str, float] = {}
        self._seconds = self._pictures = 0.0

    @property
    def num_pairs(self) -> int:
        """Prompts: what a pass over the data means here."""
        return len(self._prompts)

    @property
    def fingerprint(self) -> str:
        """Of the prompts (and winners) that pairs are made from."""
        if self._source is not None:
            return self._source.fingerprint
        return hashlib.blake2b("\0".join(self._prompts).encode(), digest_size=8).hexdigest()

    def epoch_of(self, step: int) -> int:
        """Pass over the prompts in which a refresh begins."""
        return (step // self._online.refresh_steps) * self._online.prompts_per_refresh // self.num_pairs

    def batch(self, step: int, micro_step: int) -> Sized:
        """This process's pairs of one micro-step; pairs are refreshed first where they are due."""
        window, inside = divmod(step, self._online.refresh_steps)
        if window != self._window:
            self._refresh(window, step - inside)
        return () if self._inner is None else self._inner.batch(inside, micro_step)

    def metrics(self) -> dict[str, float]:
        """Statistics of a refresh since the last call; empty where there was none."""
        values, self._metrics = self._metrics, {}
        return values

    def totals(self, seconds: float) -> dict[str, float]:
        """How the time divides, and UNet passes of sampling, over all processes."""
        sampled = torch.tensor(self._pictures, device=self._accelerator.device)
        pictures = float(self._accelerator.reduce(sampled, reduction="sum"))
        rows = 2 if self._online.guidance_scale > 1.0 else 1
        return {
            "rollout/rollout_seconds": self._seconds,
            "rollout/train_seconds": seconds - self._seconds,
            "passes/sampling_forward": pictures * rows * self._online.num_inference_steps,
        }

    def state(self) -> dict[str, Tensor]:
        """What a resumed run cannot find in the folder; every process must call it."""
        return {
            "online_seconds": torch.tensor([self._seconds], dtype=torch.float64),
            "online_pictures": torch.tensor([self._pictures], dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self._seconds, self._pictures = float(state["online_seconds"]), float(state["online_pictures"])

    def close(self) -> None:
        """Stop what reads the present pairs."""
        if self._inner is not None:
            self._inner.close()

    def _read_prompts(self) -> Sequence[str]:
        """Distinct prompts, or for sopo the captions of the pairs."""
        if self._online.method == "sopo":
            self._source = open_source(self._run.data, "train", self._run.seed)
            return self._source.captions()
        if self._online.prompts is not None:
            from t2i_align.evaluation.prompts import load_prompts

            texts: Sequence[str] = load_prompts(self._online.prompts).prompts
        else:
            texts = open_source(self._run.data, "train", self._run.seed).captions()
        distinct = [text for text in dict.fromkeys(texts) if text.strip()]
        if not distinct:
            raise UserError("There is no prompt to sample.", self._run.data.source, "set online.prompts")
        return distinct

    def _refresh(self, window: int, start: int) -> None:
        """Make the pairs of one window, unless an interrupted run has; then open them."""
        began = time.perf_counter()
        self.close()
        folder = Path(self._run.output_dir) / "pairs" / f"step-{start}"
        done = folder / DONE
        if not done.is_file():
            if self._accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            self._accelerator.wait_for_everyone()
            made = make_pairs(
                self._online,
                self._backbone.pipeline(),
                self._scorer,
                self._tasks(window),
                self._run.seed,
                self._run.data.resolution,
            )
            write_rows(made.pairs, self._scorer.name, folder / f"part-{self._accelerator.process_index}.parquet")
            self._pictures += made.tasks * self._online.candidates
            self._note(made, done)
        count = json.loads(done.read_text())["pairs"]
        self._inner = self._open_pairs(self._inner_config(folder)) if count else None
        self._window = window
        self._metrics["rollout/seconds"] = time.perf_counter() - began
        self._seconds += self._metrics["rollout/seconds"]

    def _tasks(self, window: int) -> list[Task]:
        """This process's prompts: every n-th of the next ones of a seeded permutation."""
        online, total = self._online, self.num_pairs
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        tasks = []
        for number in range(rank, online.prompts_per_refresh, processes):
            position = window * online.prompts_per_refresh + number
            epoch, offset = divmod(position, total)
            index = int(permutation(epoch, total, self._run.seed)[offset])
            winner = None if self._source is None else preferred_picture(self._source, index)
            tasks.append(Task(f"online-{position}", self._prompts[index], winner))
        return tasks

    def _note(self, made: Made, done: Path) -> None:
        """Sums over processes; the marker that all parts are complete."""
        row = torch.tensor([len(made.pairs), made.tasks, made.score, made.gap], dtype=torch.float32)
        pairs, tasks, score, gap = self._accelerator.reduce(row.to(self._accelerator.device), reduction="sum").tolist()
        if self._accelerator.is_main_process:
            write_json(done, {"pairs": int(pairs), "prompts": int(tasks)}, indent=None)
        self._accelerator.wait_for_everyone()
        self._metrics = {
            "rollout/pairs": pairs,
            "rollout/acceptance": pairs / tasks,
            "rollout/score_mean": score / tasks,
            "rollout/score_gap": gap / tasks,
        }

    def _inner_config(self, folder: Path) -> RunConfig:
        own = {
            "source": str(folder),
            "format": "pickapic",
            "split": "train",
            "heldout_source": None,
            "heldout_fraction": 0.0,
            "max_pairs": None,
            "cache_dir": None,
            "ties": "soft",
        }
        return self._run.model_copy(update={"data": self._run.data.model_copy(update=own)})


def preferred_picture(source: PairSource, index: int) -> bytes:
    """Encoded picture of a pair's preferred side; picture 0 of a tie."""
    record = source[index]
    return record.image_0 if record.label_0 >= 0.5 else record.image_1
