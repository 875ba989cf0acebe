"""Batches for the loop, filled by rollouts of the current policy."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.captions import tell_cut
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.data.sampler import step_indices
from t2i_align.randomness import addressed_generator
from t2i_align.stepwise.batch import StepBatch, StepPairs
from t2i_align.stepwise.brancher import RolloutAddress
from t2i_align.stepwise.denoiser import PassCounter
from t2i_align.stepwise.rollout import Rollout, RolloutPrompts
from t2i_align.stepwise.statistics import RolloutStatistics


class RolloutProvider:
    """Samples when it has run out of pairs, and deals the accepted ones out over optimiser steps.

    One rollout's pairs are shuffled and divided evenly over as few optimiser steps as hold them; each pair is used
    once. Processes sample prompts of their own and agree on the number of steps: one with fewer pairs fills up with
    rows of weight 0. A rollout without any accepted pair costs one optimiser step with an empty batch.

    Unlike a dataset this has a state, the pairs that wait; `state` and `restore` carry it through a checkpoint.

    Args:
        rollout: samples prompts.
        prompts: all of them; rounds go through seeded permutations of the list.
        prompts_per_rollout: per process.
        backbone: encodes prompts.
        resolution: side of the pictures in pixels.
        seed: of the run.
        batch_size: pairs per process and micro-step, at most.
        accumulation: micro-steps per optimiser step.
        accelerator: processes.
        counter: of network passes.
    """

    items = "prompts"  # what num_pairs counts

    def __init__(
        self,
        rollout: Rollout,
        prompts: Sequence[str],
        prompts_per_rollout: int,
        backbone: Backbone,
        resolution: int,
        seed: int,
        batch_size: int,
        accumulation: int,
        accelerator: Accelerator,
        counter: PassCounter,
    ) -> None:
        self._rollout, self._prompts, self._per_rollout = rollout, list(prompts), prompts_per_rollout
        tell_cut(backbone, self._prompts)
        self._backbone, self._seed, self._accelerator = backbone, seed, accelerator
        self._batch_size, self._accumulation, self._counter = batch_size, accumulation, counter
        size = (resolution, resolution)
        self._time_ids = backbone.time_ids(size, (0, 0), size)
        side = resolution // backbone.vae_scale_factor
        self._latent_shape = (backbone.latent_channels, side, side)
        self._pending = StepPairs.empty(self._latent_shape, backbone.device)
        self._counts, self._steps, self._round = [0] * accelerator.num_processes, 0, 0
        self._micro: list[tuple[StepPairs, int]] = []
        self._total = 0
        self._embeddings: dict[int, PromptEmbeddings] = {}
        self._metrics: dict[str, float] = {}
        self._seconds = 0.0

    @property
    def num_pairs(self) -> int:
        """Prompts: what a pass over the data means here."""
        return len(self._prompts)

    @property
    def fingerprint(self) -> str:
        """Of the prompts, in their order."""
        return hashlib.blake2b("\0".join(self._prompts).encode(), digest_size=8).hexdigest()

    def epoch_of(self, step: int) -> int:
        """Pass over the prompts in which the latest rollout began; rollouts, not steps, advance it."""
        started = max(self._round - 1, 0) * self._per_rollout * self._accelerator.num_processes
        return started // self.num_pairs

    def batch(self, step: int, micro_step: int) -> StepBatch:
        """This process's pairs of one micro-step; to be called in order, once each.

        A rollout is sampled first where none are left. The length is the same on all processes and, within a step, 0
        for all micro-steps or for none.
        """
        if micro_step == 0:
            self._begin(step)
        pairs, length = self._micro[micro_step]
        return self._assemble(pairs, length)

    def metrics(self) -> dict[str, float]:
        """Statistics of the rollout that was sampled since the last call; empty where none was."""
        values, self._metrics = self._metrics, {}
        return values

    def totals(self, seconds: float) -> dict[str, float]:
        """Sums over the run so far and over all processes, which must all call this: network passes, pairs, and how
        the time divides.

        Args:
            seconds: spent in optimiser steps, rollouts included.
        """
        sums = self._accelerator.reduce(self._counter.tensor().to(self._accelerator.device), reduction="sum")
        count = PassCounter()
        count.restore(sums.cpu())
        values = {
            "passes/unet_forward": float(count.rollout + count.scoring + count.train_forward),
            "passes/unet_backward": float(count.train_backward),
            "rollout/accepted_pairs": float(count.pairs),
            "rollout/rollout_seconds": self._seconds,
            "rollout/train_seconds": seconds - self._seconds,
        }
        if count.pairs:
            values["passes/rollout_per_pair"] = (count.rollout + count.scoring) / count.pairs
            values["passes/train_forward_per_pair"] = count.train_forward / count.pairs
            values["passes/train_backward_per_pair"] = count.train_backward / count.pairs
        return values

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, of all processes, as CPU tensors; every process must call it."""
        mine = {name: value.cpu().contiguous() for name, value in self._pending.tensors().items()}
        mine["passes"] = self._counter.tensor()
        everyone = gather_object([mine]) if self._accelerator.num_processes > 1 else [mine]
        passes = torch.stack([one.pop("passes") for one in everyone])
        state = {
            f"pending.{rank}.{name}": value for rank, pairs in enumerate(everyone) for name, value in pairs.items()
        }
        return {
            **state,
            "round": torch.tensor([self._round]),
            "steps": torch.tensor([self._steps]),
            "passes": passes,
            "seconds": torch.tensor([self._seconds], dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave, on any number of processes; with the same number, the next batches are the same."""
        ranks = sorted({int(name.split(".")[1]) for name in state if name.startswith("pending.")})
        saved = [
            StepPairs(**{name: state[f"pending.{rank}.{name}"] for name in self._pending.tensors()}) for rank in ranks
        ]
        mine, processes = self._accelerator.process_index, self._accelerator.num_processes
        if len(saved) != processes:
            pool = StepPairs.cat(saved)
            saved = [pool.index(torch.arange(rank, len(pool), processes)) for rank in range(processes)]
        self._pending = saved[mine].to(self._backbone.device)
        self._counts = [len(pairs) for pairs in saved]
        self._round, self._steps = int(state["round"]), int(state["steps"])
        if len(ranks) != processes:
            self._steps = self._steps_for(self._counts)
        self._seconds = float(state["seconds"])
        everything = state["passes"]  # one row per process of the run that saved
        if len(ranks) == processes:
            self._counter.restore(everything[mine])
        else:
            self._counter.restore(everything.sum(0) if mine == 0 else torch.zeros_like(everything[0]))

    def close(self) -> None:
        """Nothing to stop."""

    def _begin(self, step: int) -> None:
        """Cut the next optimiser step off the pairs that wait."""
        if self._steps == 0:
            self._refill(step)
        if self._steps == 0:  # nobody has an accepted pair
            self._micro, self._total = [(self._pending, 0)] * self._accumulation, 0
            return
        shares = [-(-count // self._steps) for count in self._counts]
        mine = shares[self._accelerator.process_index]
        served, self._pending = self._pending.split(mine)
        self._counts = [count - share for count, share in zip(self._counts, shares, strict=True)]
        self._steps, self._total = self._steps - 1, sum(shares)
        self._micro = []
        for left in range(self._accumulation, 0, -1):
            sizes = [-(-share // left) for share in shares]
            shares = [share - size for share, size in zip(shares, sizes, strict=True)]
            part, served = served.split(sizes[self._accelerator.process_index])
            self._micro.append((part, max(1, *sizes)))

    def _refill(self, step: int) -> None:
        """One rollout of this process's prompts, with the policy as it is now."""
        started = time.perf_counter()
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        indices, _ = step_indices(self._round, 0, rank, processes, self._per_rollout, 1, self.num_pairs, self._seed)
        positions = range(rank * self._per_rollout, (rank + 1) * self._per_rollout)
        self._embeddings = {}
        prompts = RolloutPrompts(
            texts=[self._prompts[index] for index in indices],
            indices=torch.tensor(indices),
            embeddings=self._encode(indices),
            time_ids=self._ids(len(indices)),
        )
        pairs, statistics = self._rollout.run(prompts, RolloutAddress(self._seed, self._round, positions), step)
        order = torch.randperm(
            len(pairs), generator=addressed_generator(self._seed, "rollout", "shuffle", self._round, rank)
        )
        self._pending = pairs.index(order)
        self._counts = self._exchange(len(pairs), statistics)
        self._steps = self._steps_for(self._counts)
        self._round += 1
        self._metrics = {
            **statistics.metrics(),
            "rollout/pairs": float(sum(self._counts)),
            "rollout/steps": float(self._steps),
            "rollout/seconds": time.perf_counter() - started,
        }
        self._seconds += self._metrics["rollout/seconds"]

    def _steps_for(self, counts: Sequence[int]) -> int:
        """Fewest optimiser steps that hold the pairs of the richest process."""
        return -(-max(counts) // (self._batch_size * self._accumulation))

    def _exchange(self, count: int, statistics: RolloutStatistics) -> list[int]:
        """Pairs of every process; the statistics become those of all."""
        if self._accelerator.num_processes == 1:
            return [count]
        row = torch.cat([torch.tensor([float(count)], dtype=torch.float64), statistics.sums.flatten()])
        table = self._accelerator.gather(row.unsqueeze(0).to(self._accelerator.device)).cpu()
        statistics.sums = table[:, 1:].sum(0).reshape(statistics.sums.shape)
        return [int(value) for value in table[:, 0].tolist()]

    def _assemble(self, pairs: StepPairs, length: int) -> StepBatch:
        """Fill up to the agreed length and weight; the mean over everything is then the mean over the step's pairs."""
        real, device = len(pairs), self._backbone.device
        self._counter.pairs += real
        share = length * self._accumulation * self._accelerator.num_processes
        weights = torch.zeros(length, device=device)
        weights[:real] = share / self._total if self._total else 0.0
        if real == 0 and length > 0:
            pairs = self._rollout.dummy()
        if len(pairs) < length:
            pairs = pairs.index(torch.arange(length) % len(pairs))
        return StepBatch(pairs, self._encode(pairs.prompt.tolist()), self._ids(length), weights)

    def _encode(self, indices: Sequence[int]) -> PromptEmbeddings:
        """Encoded prompts by their places in the list, each distinct one once per rollout.

        One at a time: the last bits of an encoding depend on how many prompts are encoded together, and a resumed run
        has other prompts to encode.
        """
        for index in dict.fromkeys(indices):
            if index not in self._embeddings:
                self._embeddings[index] = self._backbone.encode_prompt([self._prompts[index]])
        if not indices:
            return self._backbone.empty_prompt(1).index(slice(0, 0))
        rows = [self._embeddings[index] for index in indices]
        return rows[0].cat(*rows[1:])

    def _ids(self, count: int) -> Tensor | None:
        return None if self._time_ids is None else self._time_ids.expand(count, -1)
