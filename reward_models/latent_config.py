"""Everything about a latent reward model but its weights, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from reward_models.errors import RewardModelError
from reward_models.latent_space import LatentSpace

FORMAT = "t2i_align latent reward model 1"
Enhanced = Literal["mid", "all", "all_but_first"]


@dataclass(frozen=True)
class LatentRewardConfig:
    """Sizes and choices.

    Attributes:
        unet: configuration of the diffusers UNet whose encoder half is used.
        pooled_width: Q of the text tower.
        width: of the space in which picture and prompt meet.
        vae_scale_factor: picture side / latent side.
        text_projection: a linear layer after the pooled text vector (one encoder); SDXL's is already projected.
        multi_scale: use every stage's features, else the mid block's alone.
        guidance_scale: of the visual feature enhancement; 1 turns it off and saves the pass with the empty prompt.
        enhanced: which features are enhanced: the last (the mid block's in the published models), all, or all but the
            finest stage's (what the released SDXL class does when asked for all).
        stages: down stages that are used, from the finest; None: all of them and the mid block, as published.
        text_encoders: where they are: ``own`` (saved with the model) or ``base`` (the base model's, never trained).
        latent_space: what the latents must be, or None while it is not known.
    """

    unet: Mapping[str, Any]
    pooled_width: int
    width: int
    vae_scale_factor: int
    text_projection: bool
    multi_scale: bool = True
    guidance_scale: float = 7.5
    enhanced: Enhanced = "mid"
    stages: int | None = None
    text_encoders: Literal["own", "base"] = "own"
    latent_space: LatentSpace | None = None

    def __post_init__(self) -> None:
        available = len(self.unet.get("block_out_channels", ()))
        if self.stages is not None and not 1 <= self.stages <= available:
            raise RewardModelError(
                "stages must lie between 1 and the UNet's number of down stages",
                found=f"{self.stages} of {available}",
            )
        if not self.text_projection and self.width != self.pooled_width:
            raise RewardModelError(
                "without a text projection the common width is that of the pooled text vector",
                found=f"width {self.width}, pooled width {self.pooled_width}",
            )

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the file format's name."""
        unet = {name: value for name, value in self.unet.items() if not name.startswith("_")}
        return {"format": FORMAT, **asdict(self), "unet": json.loads(json.dumps(unet))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: Path) -> LatentRewardConfig:
        """The inverse. Raises RewardModelError when ``source`` does not hold this format."""
        given = {name: value for name, value in values.items() if name != "format"}
        known = {field.name for field in fields(cls)}
        if values.get("format") != FORMAT or set(given) != known:
            odd = sorted(set(given) ^ known)
            raise RewardModelError(
                "this is not the configuration of a latent reward model of this version",
                found=f"{source}: format {values.get('format')!r}" + (f", differing keys {odd[:5]}" if odd else ""),
                fix="pass a folder written by LatentRewardModel.save",
            )
        if given["latent_space"] is not None:
            given["latent_space"] = LatentSpace.from_dict(given["latent_space"])
        return cls(**given)
