"""The ``rollout:`` section: how on-policy pairs are made. Offline runs have none.

Published methods are presets of one another's options; what a file sets beside ``preset`` changes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from t2i_align.sections import Section

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


# Which fields of the scorer section each scorer reads, beyond name, timestep and candidates_per_pass.
SCORER_FIELDS: dict[str, tuple[str, ...]] = {
    "lrm": ("checkpoint", "dtype"),
    "pixel": ("checkpoint", "dtype", "reward"),
    "spm": ("checkpoint", "dtype"),
    "channel_mean": ("channel", "sign"),
}


class ScorerConfig(Section):
    """Who ranks the candidates."""

    name: Literal["lrm", "pixel", "spm", "channel_mean"] = Field(
        description="lrm: a latent reward model; pixel: a picture scorer on the predicted clean picture; "
        "spm: SPO's step-aware preference model on it; channel_mean: the mean of a latent channel, for checks"
    )
    timestep: Literal["parent", "child"] = Field(
        "child",
        description="noise level a candidate is said to have: its own (child), or that of the state it came from",
    )
    candidates_per_pass: PositiveInt = Field(32, description="of the scorer; changes memory, not scores")
    checkpoint: str | None = Field(
        None, description="lrm, spm: the folder; pixel: weights, null for the published ones; shapes: addresses work"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="precision of the scorer's network")
    reward: str | None = Field(
        None,
        description="pixel: name of the picture scorer, such as pickscore, or oracle on the shapes world, "
        "or file.py:function",
    )
    channel: NonNegativeInt = Field(0, description="channel_mean: which latent channel")
    sign: Literal[1, -1] = Field(1, description="channel_mean: prefer a high (1) or a low (-1) mean")

    @model_validator(mode="after")
    def _read_what_is_set(self) -> ScorerConfig:
        read = {"name", "timestep", "candidates_per_pass", *SCORER_FIELDS[self.name]}
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        unread = sorted(changed - read)
        if unread:
            raise ValueError(f"scorer {self.name} does not read {', '.join(unread)}; remove it")
        needed = {"lrm": "checkpoint", "spm": "checkpoint", "pixel": "reward"}.get(self.name)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"scorer {self.name} needs {needed}")
        if self.name in ("pixel", "spm") and self.timestep == "parent":
            raise ValueError(
                f"scorer {self.name} predicts the clean picture at the candidate's own timestep; use child"
            )
        return self


class ThresholdConfig(Section):
    """How far apart two candidates must be: a bound on tanh((S_w - S_l) / 2), per sampler step."""

    schedule: Literal["constant", "sigma", "variance", "linear"] = Field(
        description="constant, or from low to high along the step's sigma, its square, or the timestep"
    )
    low: Share = Field(description="threshold of a constant schedule, else of the quietest step")
    high: Share | None = Field(None, description="threshold of the noisiest step; not read by a constant schedule")

    @model_validator(mode="after")
    def _bounds(self) -> ThresholdConfig:
        if self.schedule == "constant" and self.high is not None:
            raise ValueError("a constant threshold is low alone; remove high")
        if self.schedule != "constant" and (self.high is None or self.high < self.low):
            raise ValueError(f"schedule {self.schedule} needs high, at least low")
        return self


# What a preset fixes; everything else keeps the section's defaults. Betas belong to the objective section:
# 500 for lpo, 10 for spo (both per dimension, which is what objective dpo computes here).
PRESETS: dict[str, dict[str, Any]] = {
    # LPO, arXiv 2502.01051. Thresholds of SD1.5 and SD2.1; SDXL used 0.45 to 0.6. The published runs scored a candidate
    # at its parent's timestep. The released code also clamps ratios at 0.1, without effect at its beta.
    "lpo": {
        "scorer": {"name": "lrm", "timestep": "parent"},
        "threshold": {"schedule": "sigma", "low": 0.35, "high": 0.5},
    },
    # SPO, arXiv 2406.04314. The four noisiest of 20 steps are not branched; SDXL used two candidates and a threshold of
    # 0.4. A plain picture scorer in place of the step-aware one did much worse there.
    "spo": {
        "scorer": {"name": "spm"},
        "threshold": {"schedule": "constant", "low": 0.3},
        "highest_timestep": 800,
        "prompts_per_rollout": 10,
        "ratio_clip": 0.1,
    },
    # TailorPO, arXiv 2502.01667, as far as its abstract tells: two candidates, every pair kept, on from the better one.
    "tailorpo": {
        "scorer": {"name": "pixel", "reward": "pickscore"},
        "threshold": {"schedule": "constant", "low": 0.0},
        "candidates": 2,
        "continuation": "winner",
    },
}


class RolloutConfig(Section):
    """On-policy pairs: sample with the current policy, branch at its steps, let a scorer decide."""

    preset: Literal["lpo", "spo", "tailorpo"] | None = Field(
        None, description="published method to start from; other keys of the section change it"
    )
    scorer: ScorerConfig
    threshold: ThresholdConfig
    prompts: str | None = Field(
        None, description="prompt file (.txt, .jsonl, .csv, .tsv); null: captions of data.source"
    )
    prompts_per_rollout: PositiveInt = Field(5, description="prompts per device sampled at once")
    num_inference_steps: PositiveInt = Field(20, description="sampler steps")
    eta: float = Field(1.0, gt=0.0, le=1.0, description="stochasticity of the sampler; 1 is ancestral sampling")
    guidance_scale: float = Field(
        5.0, ge=0.0, description="guidance inside sampling and log-densities; 1 and below turn it off"
    )
    candidates: Annotated[int, Field(ge=2)] = Field(4, description="candidates K per state; the extremes make a pair")
    lowest_timestep: NonNegativeInt = Field(0, description="steps from a lower timestep are not branched")
    highest_timestep: PositiveInt | None = Field(
        None, description="steps from a higher timestep are not branched; null: all are"
    )
    continuation: Literal["random", "winner", "loser"] = Field(
        "random", description="candidate that sampling goes on from"
    )
    final_alpha: Literal["first_timestep", "scheduler"] = Field(
        "first_timestep",
        description="where the last step leads: timestep 0 as in published code, or the scheduler's final alpha",
    )
    reward_guidance: float | None = Field(
        None,
        gt=0.0,
        description="TailorPO-G: move each winner up the scorer's gradient before the loss, by this many sigmas of its "
        "step (root mean square); needs a differentiable scorer; null: no guidance",
    )
    ratio_clip: float | None = Field(
        None, gt=0.0, lt=1.0, description="keep policy / reference within 1 +- this, as SPO does; null: no bound"
    )
    shared_pass: bool = Field(
        True, description="one network pass for winner and loser, which have one parent; false: two, for comparison"
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") is None:
            return values
        name = values["preset"]
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from: {', '.join(PRESETS)}"
            raise ValueError(f"unknown rollout preset {name!r}; {hint}")
        return {
            **PRESETS[name],
            **values,
            "scorer": _over(PRESETS[name]["scorer"], values.get("scorer"), "name"),
            "threshold": _over(PRESETS[name]["threshold"], values.get("threshold"), "schedule"),
        }

    @model_validator(mode="after")
    def _branches(self) -> RolloutConfig:
        if self.highest_timestep is not None and self.highest_timestep < self.lowest_timestep:
            raise ValueError("highest_timestep is below lowest_timestep, so no step would be branched")
        judge = str(self.scorer.reward)
        if self.reward_guidance is not None and (judge.partition(":")[0] in ("oracle", "taste") or ".py:" in judge):
            raise ValueError(f"reward_guidance needs a differentiable scorer, and {judge} is none; remove it")
        return self


def _over(preset: Mapping[str, Any], given: Any, kind: str) -> Any:
    """A sub-section over the preset's, unless it names another kind: then it stands alone."""
    if not isinstance(given, Mapping):
        return given if given is not None else dict(preset)
    if given.get(kind, preset[kind]) != preset[kind]:
        return given
    return {**preset, **given}
