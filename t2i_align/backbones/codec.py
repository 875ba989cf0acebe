"""Pictures to latents and back, in a precision the VAE survives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from t2i_align.errors import UserError


def codec_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Precision of the VAE in a run of `dtype`: float32 instead of float16 where the VAE overflows in it.

    ``force_upcast`` is the checkpoint's own statement (true unless it says otherwise; the SDXL VAE overflows, its "fp16
    fix" does not). bfloat16 has the range, so it is used as asked.
    """
    overflows = dtype == torch.float16 and config.get("force_upcast", True)
    return torch.float32 if overflows else dtype


class LatentCodec:
    """Encode and decode with a VAE, in its own dtype.

    Scaling as in the diffusers pipelines: ``z = (mode - shift) * scaling_factor``, or
    ``z = (mode - latents_mean) * scaling_factor / latents_std`` where the configuration has per-channel statistics.

    Args:
        vae: the autoencoder, on its device and in its dtype (see `codec_dtype`).

    Attributes:
        channels: C of the latents.
        factor: picture side / latent side.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.channels = int(vae.config.latent_channels)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        _cast_inputs(vae)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, C, H / factor, W / factor]`` float32 (posterior mode).

        Raises:
            ValueError: sides that are no multiples of the factor.
            UserError: the VAE overflowed.
        """
        if pixels.shape[-1] % self.factor or pixels.shape[-2] % self.factor:
            raise ValueError(f"picture sides must be multiples of {self.factor}, got {list(pixels.shape)}")
        with self._own_precision():
            mode = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        if not torch.isfinite(mode).all():
            raise UserError(
                "The VAE returned non-finite latents.",
                f"VAE in {self.vae.dtype}",
                "use mixed_precision bf16 or no, or a VAE that is safe in fp16 "
                "(model.pretrained_vae_model_name_or_path)",
            )
        shift, scale = self._shift_and_scale(mode)
        # A cache stores this layout too; kernels, and so the last bits of everything downstream, depend on it.
        return ((mode - shift) * scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures ``[B, 3, H, W]`` float32 in [0, 1]."""
        return self.decode_with_gradient(latents).clamp(0, 1)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """The same, differentiable and not clamped: values leave [0, 1] a little."""
        latents = latents.to(self.vae.device, torch.float32)
        shift, scale = self._shift_and_scale(latents)
        with self._own_precision():
            pictures = self.vae.decode((latents / scale + shift).to(self.vae.dtype), return_dict=False)[0]
        return pictures.float() / 2 + 0.5

    def _own_precision(self) -> torch.autocast:
        """An outer autocast must not push a float32 VAE back into float16."""
        return torch.autocast(self.vae.device.type, enabled=False)

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
                for values in (config.latents_mean, config.latents_std)
            )
            return mean, config.scaling_factor / std
        return config.shift_factor or 0.0, config.scaling_factor


def _cast_inputs(vae: AutoencoderKL) -> None:
    """Let a diffusers pipeline whose latents are half precision decode with a float32 VAE."""
    for entry in (vae.encoder.conv_in, vae.post_quant_conv, vae.decoder.conv_in):
        if entry is not None:
            entry.register_forward_pre_hook(_to_weight_dtype)


def _to_weight_dtype(module: nn.Module, args: tuple) -> tuple:
    return (args[0].to(module.weight.dtype), *args[1:])
