"""From a run's configuration to what the loop needs for step-level training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from t2i_align.backbones import Backbone
from t2i_align.config.schema import DataConfig, RunConfig
from t2i_align.errors import UserError
from t2i_align.objectives import Objective
from t2i_align.stepwise.config import RolloutConfig
from t2i_align.stepwise.denoiser import GuidedDenoiser, PassCounter
from t2i_align.stepwise.grid import step_grid
from t2i_align.stepwise.judges import build_scorer
from t2i_align.stepwise.provider import RolloutProvider
from t2i_align.stepwise.rollout import Rollout
from t2i_align.stepwise.scorers import LatentScorer
from t2i_align.stepwise.step import TransitionStep
from t2i_align.stepwise.transition import DdimKernel


@dataclass(frozen=True)
class Stepwise:
    """The two parts of an on-policy run that differ from an offline one, and what they count."""

    provider: RolloutProvider
    step: TransitionStep
    counter: PassCounter


@dataclass(frozen=True)
class RolloutParts:
    """A rollout, and the guided policy and sampler that it shares with the loss."""

    rollout: Rollout
    denoiser: GuidedDenoiser
    kernel: DdimKernel


def build_stepwise(
    run: RunConfig,
    rollout: RolloutConfig,
    backbone: Backbone,
    objective: Objective,
    accelerator: Accelerator,
    prompts: Sequence[str] | None = None,
    scorer: LatentScorer | None = None,
) -> Stepwise:
    """Provider and step of a run with a ``rollout:`` section.

    Args:
        run: the whole configuration; resolution, batch size, accumulation, steps and seed are read.
        rollout: its rollout section.
        backbone: loaded and adapted.
        objective: resolved.
        accelerator: of the run.
        prompts: instead of ``rollout.prompts``.
        scorer: instead of ``rollout.scorer``.

    Raises:
        UserError: anything in the section that does not fit the model, the objective or the data.
    """
    counter = PassCounter()
    parts = build_rollout(run, rollout, backbone, counter, scorer)
    training = run.training
    provider = RolloutProvider(
        parts.rollout,
        rollout_prompts(rollout, run.data, run.seed) if prompts is None else prompts,
        rollout.prompts_per_rollout,
        backbone,
        run.data.resolution,
        run.seed,
        training.train_batch_size,
        training.gradient_accumulation_steps,
        accelerator,
        counter,
    )
    step = TransitionStep(
        backbone,
        objective,
        parts.denoiser,
        parts.kernel,
        rollout.shared_pass,
        rollout.ratio_clip,
        training.max_train_steps,
        accelerator,
    )
    return Stepwise(provider, step, counter)


def build_rollout(
    run: RunConfig,
    rollout: RolloutConfig,
    backbone: Backbone,
    counter: PassCounter,
    scorer: LatentScorer | None = None,
) -> RolloutParts:
    """What samples and branches; the arguments are those of `build_stepwise`, and ``counter`` counts its passes.

    Raises:
        UserError: the section does not fit the model or the resolution.
    """
    denoiser = GuidedDenoiser(backbone, rollout.guidance_scale, counter)
    grid = step_grid(backbone.pipeline().scheduler.config, rollout.num_inference_steps, rollout.final_alpha)
    kernel = DdimKernel(backbone.alphas_cumprod, backbone.prediction_type, rollout.eta, grid.final_alpha)
    backbone.check_resolution(run.data.resolution)
    side = run.data.resolution // backbone.vae_scale_factor
    sampler = Rollout(
        rollout,
        backbone,
        denoiser,
        kernel,
        grid,
        scorer or build_scorer(rollout.scorer, backbone, denoiser, kernel),
        (backbone.latent_channels, side, side),
    )
    if not sampler.branched.any():
        raise UserError(
            "No sampler step lies in the range that may be branched.",
            f"lowest_timestep {rollout.lowest_timestep}, highest_timestep {rollout.highest_timestep}, "
            f"steps at {', '.join(map(str, grid.parents))}",
            "widen rollout.lowest_timestep and rollout.highest_timestep, or raise num_inference_steps",
        )
    return RolloutParts(sampler, denoiser, kernel)


def rollout_prompts(rollout: RolloutConfig, data: DataConfig, seed: int) -> list[str]:
    """The distinct prompts to sample, in the order of their first appearance.

    Raises:
        UserError: the file or the data source cannot be read, or holds none.
    """
    if rollout.prompts is not None:
        from t2i_align.evaluation.prompts import load_prompts

        texts: Sequence[str] = load_prompts(rollout.prompts).prompts
    else:
        from t2i_align.data.sources import open_source

        texts = open_source(data, "train", seed).captions()
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    if not distinct:
        raise UserError(
            "There is no prompt to sample.",
            rollout.prompts or data.source,
            "set rollout.prompts to a file with one prompt per line",
        )
    return distinct
