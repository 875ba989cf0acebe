"""A rollout: sample with the current policy, branch at its steps, keep the pairs a scorer is sure of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2i_align.backbones import Backbone
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.backbones.modes import evaluating
from t2i_align.errors import UserError
from t2i_align.stepwise.batch import StepPairs
from t2i_align.stepwise.brancher import RolloutAddress, branch, pick
from t2i_align.stepwise.config import RolloutConfig
from t2i_align.stepwise.continuation import CONTINUATIONS
from t2i_align.stepwise.denoiser import GuidedDenoiser
from t2i_align.stepwise.grid import StepGrid
from t2i_align.stepwise.scorers import Candidates, LatentScorer, Scored, score_all, score_gradient
from t2i_align.stepwise.selector import Selection, select, thresholds
from t2i_align.stepwise.statistics import RolloutStatistics
from t2i_align.stepwise.transition import GaussianTransition, TransitionKernel


@dataclass(frozen=True, eq=False)
class RolloutPrompts:
    """N prompts to sample.

    Attributes:
        texts: as written.
        indices: ``[N]`` long, their places in the prompt list.
        embeddings: encoded.
        time_ids: ``[N, 6]`` or None.
    """

    texts: list[str]
    indices: Tensor
    embeddings: PromptEmbeddings
    time_ids: Tensor | None


@dataclass(frozen=True, eq=False)
class BranchedStep:
    """One branched step of a rollout: K candidates of N prompts, and how they were judged.

    Attributes:
        parent, child: timesteps that the step leads from and to; a child of -1 is the clean end.
        candidates: ``[K, N, C, h, w]``, on the policy's device.
        scores: ``[K, N]`` logits.
        selection: best, worst, and whether they are a pair.
    """

    parent: int
    child: int
    candidates: Tensor
    scores: Tensor
    selection: Selection


class Rollout:
    """Samples prompts with the policy as it is and returns the accepted pairs.

    At each branched step the K candidates cost one network pass: they are draws of one Gaussian. Sampling stops
    after the last step that may be branched. Nothing here keeps a graph or touches the global random state.

    Args:
        config: the rollout section.
        backbone: put into evaluation mode meanwhile.
        denoiser: the guided policy.
        kernel, grid: the sampler.
        scorer: ranks candidates.
        latent_shape: (C, h, w).
    """

    def __init__(
        self,
        config: RolloutConfig,
        backbone: Backbone,
        denoiser: GuidedDenoiser,
        kernel: TransitionKernel,
        grid: StepGrid,
        scorer: LatentScorer,
        latent_shape: tuple[int, ...],
    ) -> None:
        self._config, self._backbone, self._denoiser = config, backbone, denoiser
        self._kernel, self._grid, self._scorer, self._shape = kernel, grid, scorer, latent_shape
        parents, children = grid.tensors()
        sigmas, limit = kernel.sigma(parents, children), config.threshold
        self._thresholds = thresholds(limit.schedule, limit.low, limit.high, parents, sigmas)
        highest = int(parents.max()) if config.highest_timestep is None else config.highest_timestep
        # A step without noise has no density, hence no pair.
        self.branched = (parents >= config.lowest_timestep) & (parents <= highest) & (sigmas > 0)

    @torch.no_grad()
    def run(
        self,
        prompts: RolloutPrompts,
        address: RolloutAddress,
        version: int,
        watch: Callable[[BranchedStep], None] | None = None,
    ) -> tuple[StepPairs, RolloutStatistics]:
        """Sample N prompts.

        Args:
            prompts: what to sample.
            address: of the random numbers; ``positions`` has N entries.
            version: optimiser steps made so far, kept with the pairs.
            watch: shown every branched step.
        """
        statistics = RolloutStatistics(self._backbone.num_train_timesteps)
        pairs: list[StepPairs] = [StepPairs.empty(self._shape, self._backbone.device)]
        latents = address.initial_noise(self._shape).to(self._backbone.device)
        output: Tensor | None = None
        with evaluating(self._backbone.unet), self._denoiser.purpose("rollout"):
            for step in range(self._last_step() + 1):
                parents, children = self._times(step, len(latents))
                if output is None:
                    output = self._denoiser(latents, parents, prompts.embeddings, prompts.time_ids)
                transition = self._kernel.transition(output, latents, parents, children)
                if not self.branched[step]:
                    noise = address.step_noise(self._shape, step, 0)
                    latents, output = transition.sample(noise.to(latents.device)), None
                    continue
                candidates = branch(transition, self._config.candidates, address, step)
                scored = self._score(candidates, prompts, step)
                selection = select(scored.scores, float(self._thresholds[step]))
                statistics.add(self._grid.parents[step], scored.scores, selection)
                if watch is not None:
                    times = self._grid.parents[step], self._grid.children[step]
                    watch(BranchedStep(*times, candidates, scored.scores, selection))
                pairs.append(self._accepted(latents, candidates, transition, selection, prompts, step, version))
                chosen = CONTINUATIONS[self._config.continuation](selection, address, step, len(candidates))
                latents = pick(candidates, chosen)
                output = None if scored.outputs is None else pick(scored.outputs, chosen)
        return StepPairs.cat(pairs), statistics

    def dummy(self) -> StepPairs:
        """One pair of zeros at a step that has a density, to fill up a batch with weight 0."""
        step = int(self.branched.nonzero()[0])
        latents, number = torch.zeros(1, *self._shape, device=self._backbone.device), torch.zeros(1)
        parents, children = self._times(step, 1)
        index, wide = torch.zeros(1, dtype=torch.long), number.double()
        return StepPairs(latents, latents, latents, parents, children, number, number, wide, wide, index, index)

    def _last_step(self) -> int:
        steps = self.branched.nonzero().flatten()
        return int(steps[-1]) if len(steps) else -1

    def _times(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Parents and children of one step, ``[count]`` each."""
        return torch.full((count,), self._grid.parents[step]), torch.full((count,), self._grid.children[step])

    def _score(self, candidates: Tensor, prompts: RolloutPrompts, step: int) -> Scored:
        """Scores ``[K, N]``, outputs ``[K, N, C, h, w]``."""
        rows = torch.arange(candidates.shape[1]).repeat(candidates.shape[0])
        scored = score_all(self._scorer, self._candidates(candidates.flatten(0, 1), rows, prompts, step))
        if not torch.isfinite(scored.scores).all():
            raise UserError(
                "The scorer of the rollout returned a score that is not finite.",
                f"at timestep {self._grid.parents[step]}",
                "check rollout.scorer (float16 overflows in some networks: use bfloat16 or float32), and whether the "
                "policy still samples pictures: lower training.learning_rate if it broke",
            )
        outputs = None if scored.outputs is None else scored.outputs.unflatten(0, candidates.shape[:2])
        return Scored(scored.scores.unflatten(0, candidates.shape[:2]), outputs)

    def _candidates(self, latents: Tensor, rows: Tensor, prompts: RolloutPrompts, step: int) -> Candidates:
        """States ``[M, C, h, w]`` of the prompts at ``rows`` (long ``[M]``), as scorers see them."""
        parents, children = self._times(step, len(rows))
        ids = prompts.time_ids
        return Candidates(
            latents=latents,
            parents=parents,
            children=children,
            texts=[prompts.texts[row] for row in rows.tolist()],
            prompt=prompts.embeddings.index(rows),
            time_ids=None if ids is None else ids[rows.to(ids.device)],
        )

    def _accepted(
        self,
        latents: Tensor,
        candidates: Tensor,
        transition: GaussianTransition,
        selection: Selection,
        prompts: RolloutPrompts,
        step: int,
        version: int,
    ) -> StepPairs:
        winner, loser = pick(candidates, selection.winner), pick(candidates, selection.loser)
        parents, children = self._times(step, len(latents))
        every = StepPairs(
            parent=latents,
            winner=winner,
            loser=loser,
            parents=parents,
            children=children,
            score_winner=selection.score_winner.cpu(),
            score_loser=selection.score_loser.cpu(),
            log_density_winner=transition.log_density(winner).double().cpu(),
            log_density_loser=transition.log_density(loser).double().cpu(),
            prompt=prompts.indices,
            version=torch.full((len(latents),), version),
        )
        rows = selection.accepted.cpu().nonzero().flatten()
        pairs = every.index(rows)
        if self._config.reward_guidance is None or len(pairs) == 0:
            return pairs
        guided = self._guided(pairs.winner, transition, rows, prompts, step)
        density = transition.log_density(_scatter(winner, rows, guided)).double().cpu()[rows]
        return replace(pairs, winner=guided, log_density_winner=density)

    def _guided(
        self, winners: Tensor, transition: GaussianTransition, rows: Tensor, prompts: RolloutPrompts, step: int
    ) -> Tensor:
        """Winners ``[M, C, h, w]`` a step up the scorer's gradient, of ``reward_guidance`` sigmas root mean square."""
        with self._denoiser.purpose("scoring"):
            gradient = score_gradient(self._scorer, self._candidates(winners, rows, prompts, step))
        size = gradient.flatten(1).square().mean(1).sqrt().clamp(min=1e-12).reshape(-1, 1, 1, 1)
        length = self._config.reward_guidance * transition.sigma[rows].to(winners.dtype).reshape(-1, 1, 1, 1)
        return winners + length.to(winners.device) * gradient.to(winners) / size


def _scatter(everyone: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A copy of ``everyone`` with ``values`` at ``rows``."""
    result = everyone.clone()
    result[rows.to(result.device)] = values
    return result
