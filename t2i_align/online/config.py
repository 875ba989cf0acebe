"""The ``online:`` section: preference pairs of whole pictures from the policy itself. Offline runs have none."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_align.sections import Section

PositiveInt = Annotated[int, Field(ge=1)]


class OnlineConfig(Section):
    """On-policy pairs of finished pictures, as ordinary pairs: any pairwise objective trains on them."""

    method: Literal["online_dpo", "sopo"] = Field(
        description="online_dpo: the best of several pictures against the worst; "
        "sopo: the preferred picture of a pair of data.source against the worst of several own ones"
    )
    scorer: str = Field(
        description="judge of the pictures: a reward model's name, NAME=CHECKPOINT, file.py:function of your own, or "
        "oracle on the shapes world"
    )
    refresh_steps: PositiveInt = Field(50, description="optimiser steps until the pairs are made anew")
    prompts_per_refresh: PositiveInt = Field(64, description="prompts sampled each time, over all processes")
    candidates: Annotated[int, Field(ge=1)] = Field(2, description="own pictures per prompt K")
    threshold: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="smallest preference that makes a pair: tanh((S_w - S_l) / 2) of the scores in logits",
    )
    loser_below: float | None = Field(
        None, description="sopo: only pictures that score below this, in the scorer's units, are losers; null: no bound"
    )
    soft_labels: bool = Field(False, description="label a pair with its preference probability instead of 1")
    prompts: str | None = Field(
        None, description="online_dpo: prompt file (.txt, .jsonl, .csv, .tsv); null: captions of data.source"
    )
    num_inference_steps: PositiveInt = Field(20, description="sampler steps, with the checkpoint's own scheduler")
    guidance_scale: float = Field(5.0, ge=0.0, description="classifier-free guidance; 1 and below turn it off")
    pictures_per_pass: PositiveInt = Field(8, description="pictures sampled together; changes memory, not pairs")

    @model_validator(mode="after")
    def _fits_the_method(self) -> OnlineConfig:
        if self.method == "online_dpo":
            if self.candidates < 2:
                raise ValueError("online_dpo compares at least 2 candidates")
            if self.loser_below is not None:
                raise ValueError("loser_below is read by sopo only; remove it")
        elif self.prompts is not None:
            raise ValueError("sopo takes prompts and winners from data.source; remove prompts")
        return self
