"""The ``personal:`` section: a denoiser that knows for whom it paints. Runs without it have one taste for all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_align.sections import Section

PositiveInt = Annotated[int, Field(ge=1)]
NEEDED = {"pair_set": "features", "external": "users_file", "reward_vector": "rewards"}
READ_BY = {  # key -> the encoders that read it; keys that all of them read are not listed
    "features": ("pair_set",),
    "support_pairs": ("pair_set",),
    "encoder_steps": ("pair_set",),
    "hidden": ("pair_set",),
    "users_file": ("external",),
    "rewards": ("reward_vector",),
    "num_tokens": ("pair_set", "table", "reward_vector"),
    "heldout_users": ("pair_set", "external"),
}


class PersonalSection(Section):
    """A user adapter is trained, on pairs whose users are known; with model.train: user."""

    encoder: Literal["pair_set", "table", "external", "reward_vector"] = Field(
        description="where a user's tokens come from: some of the user's other pairs, a learned table, arrays of a "
        "file, or weights over named rewards"
    )
    num_tokens: PositiveInt = Field(4, description="tokens per user M")
    token_width: PositiveInt = Field(256, description="width of a token W; decides the size of the adapter")
    start: Literal["values", "gate"] = Field("values", description="what is zero before training")
    hidden: PositiveInt = Field(256, description="inner width of the encoder of pairs, a multiple of 4")
    features: str | None = Field(
        None, description="pair_set: pixels, or a CLIP model (transformers folder, hub id, shapes:pickscore)"
    )
    support_pairs: PositiveInt = Field(
        4, description="pair_set: other pairs of the user shown with each pair, of other prompts; drawn anew each epoch"
    )
    encoder_steps: Annotated[int, Field(ge=0)] = Field(
        400,
        description="pair_set: steps in which the encoder learns, before the run, to foresee answers from features",
    )
    users_file: str | None = Field(None, description="external: safetensors file with an array [L, F] per user id")
    rewards: list[str] | None = Field(
        None, min_length=1, description="reward_vector: margins of the data; each pair is judged by drawn weights"
    )
    user_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="share of pairs that train the null user instead")
    heldout_users: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the source's users never trained on; their pairs are held out"
    )

    @model_validator(mode="after")
    def _complete(self) -> PersonalSection:
        needed = NEEDED.get(self.encoder)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"encoder {self.encoder} needs {needed}")
        if self.encoder == "pair_set" and self.hidden % 4:
            raise ValueError("hidden must be a multiple of 4, the number of attention heads")
        if self.rewards is not None and len(set(self.rewards)) < len(self.rewards):
            raise ValueError("rewards names one twice")
        return self
