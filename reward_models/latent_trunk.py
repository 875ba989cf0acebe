"""The half of a diffusion UNet that looks: down and mid blocks as a feature extractor for noisy latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from reward_models.errors import RewardModelError, unknown_name
from reward_models.latent_config import Enhanced
from reward_models.latent_text import TextConditioning
from reward_models.loading import fit_state_dict

_DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")


class LatentTrunk(nn.Module):
    """Pooled features of every resolution of a UNet's encoder.

    Tapped are the last map of each down stage before its downsampler, and the mid block's output; each is averaged over
    height and width. The decoder half is never built: 60 % of the parameters of SD1.5 and 52 % of SDXL.

    Args:
        config: of a diffusers ``UNet2DConditionModel``.
        vae_scale_factor: picture side / latent side, for SDXL's size conditioning.
        stages: down stages that are used, from the finest; None: all of them, and the mid block.

    Attributes:
        widths: channels of the pooled features, finest stage first, mid block (where it is used) last.
    """

    def __init__(self, config: Mapping[str, Any], vae_scale_factor: int, stages: int | None = None) -> None:
        super().__init__()
        self.unet = _encoder_half(config)
        self._dropped = _DECODER if stages is None else (*_DECODER, *_drop_stages(self.unet, stages))
        self.vae_scale_factor = vae_scale_factor
        channels = [int(width) for width in self.unet.config["block_out_channels"]][:stages]
        self.widths = tuple(channels) if stages is not None else (*channels, channels[-1])

    def load_unet(self, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype = torch.float32) -> None:
        """Take the weights of a UNet, whole or already without its decoder; they are copied.

        Raises:
            RewardModelError: names or shapes do not fit.
        """
        kept = {name: value.clone() for name, value in state.items() if not name.startswith(self._dropped)}
        fit_state_dict(self.unet, kept, source, dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the blocks."""
        return self.unet.conv_in.weight.dtype

    def forward(self, latents: Tensor, timesteps: Tensor, text: TextConditioning) -> list[Tensor]:
        """Pooled features ``[N, width]``, one per entry of ``widths``.

        Args:
            latents: ``[N, C, h, w]`` noisy latents, in the denoiser's scale.
            timesteps: ``[N]`` of the noise they carry.
            text: of N prompts.
        """
        unet, hidden = self.unet, text.hidden.to(self.dtype)
        sample = latents.to(self.dtype)
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timesteps))
        added = self._added_conditions(latents, text)
        extra = unet.get_aug_embed(emb=embedding, encoder_hidden_states=hidden, added_cond_kwargs=added)
        embedding = embedding if extra is None else embedding + extra
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        sample = unet.conv_in(2 * sample - 1.0 if unet.config["center_input_sample"] else sample)
        taps = []
        for block in unet.down_blocks:
            sample, states = _run(block, sample, embedding, hidden)
            taps.append(states[len(block.resnets) - 1])
        if unet.mid_block is not None:
            taps.append(_run(unet.mid_block, sample, embedding, hidden))
        return [tap.mean(dim=(2, 3)) for tap in taps]

    def _added_conditions(self, latents: Tensor, text: TextConditioning) -> dict[str, Tensor] | None:
        if self.unet.config["addition_embed_type"] is None:
            return None
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=latents.device)
        time_ids = ids.to(self.dtype).expand(len(latents), -1)
        return {"text_embeds": text.pooled.to(self.dtype), "time_ids": time_ids}


def enhance(features: list[Tensor], null: list[Tensor], scale: float, which: Enhanced) -> list[Tensor]:
    """Visual feature enhancement: ``V_null + scale (V - V_null)``, classifier-free guidance on pooled features.

    Args:
        features, null: with the prompt and with the empty one, finest stage first, mid block last.
        scale: 1 changes nothing.
        which: see ``LatentRewardConfig.enhanced``.
    """
    if which not in get_args(Enhanced):
        raise unknown_name("choice of enhanced features", which, get_args(Enhanced))
    first = {"mid": len(features) - 1, "all": 0, "all_but_first": 1}[which]
    return [
        value if index < first else empty + scale * (value - empty)
        for index, (value, empty) in enumerate(zip(features, null, strict=True))
    ]


def _run(block: nn.Module, sample: Tensor, embedding: Tensor, hidden: Tensor) -> Any:
    if getattr(block, "has_cross_attention", False):
        return block(sample, embedding, encoder_hidden_states=hidden)
    return block(sample, embedding)


def _drop_stages(unet: nn.Module, stages: int) -> tuple[str, ...]:
    """Remove what comes after a stage's last map; returns the prefixes of the removed weights."""
    names = [f"down_blocks.{index}." for index in range(stages, len(unet.down_blocks))]
    unet.down_blocks = unet.down_blocks[:stages]
    unet.down_blocks[-1].downsamplers = None
    unet.mid_block = None
    return (*names, f"down_blocks.{stages - 1}.downsamplers.", "mid_block.")


def _encoder_half(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """The UNet without its decoder, on the meta device: weights come later."""
    if config.get("addition_embed_type") not in (None, "text_time") or config.get("class_embed_type") is not None:
        raise RewardModelError(
            "this UNet's conditioning is not supported by the latent reward model",
            found=f"addition_embed_type {config.get('addition_embed_type')}, "
            f"class_embed_type {config.get('class_embed_type')}",
            fix="use a UNet of the Stable Diffusion 1.x, 2.x or XL family",
        )
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(plain)
    unet.up_blocks = nn.ModuleList()
    unet.conv_norm_out = unet.conv_out = None
    return unet
