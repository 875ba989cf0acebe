"""The looking half of the initial denoiser as a frozen feature extractor: differentiable in its input, not trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from t2i_align.errors import UserError


class FrozenEncoder(nn.Module):
    """Down blocks of a UNet, copied in float32; the decoder half is not kept.

    Args:
        unet: the denoiser before it was adapted.

    Raises:
        UserError: a UNet with conditioning beyond text and SDXL's size ids.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        if unet.config.addition_embed_type not in (None, "text_time") or unet.config.class_embed_type is not None:
            raise UserError(
                "Errors in frozen features are not defined for this UNet's conditioning.",
                f"addition_embed_type {unet.config.addition_embed_type}, class_embed_type "
                f"{unet.config.class_embed_type}",
                "use error: prediction",
            )
        decoder = {name: getattr(unet, name) for name in ("up_blocks", "mid_block", "conv_norm_out", "conv_out")}
        skipped = {id(module): None for module in decoder.values()}
        self.unet = copy.deepcopy(unet, memo=skipped).float().eval().requires_grad_(False)

    @property
    def depth(self) -> int:
        """Number of down blocks."""
        return len(self.unet.down_blocks)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, hidden: Tensor, added: dict[str, Tensor] | None
    ) -> list[Tensor]:
        """Output of every down block, finest first, float32.

        Args:
            noisy: ``[N, C, h, w]``. timesteps: ``[N]``.
            hidden: ``[N, L, D]`` prompt. added: pooled prompt and size ids, where the model takes them.
        """
        unet = self.unet
        with torch.autocast(noisy.device.type, enabled=False):
            sample, hidden = noisy.float(), hidden.float()
            added = None if added is None else {name: value.float() for name, value in added.items()}
            embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timesteps))
            extra = unet.get_aug_embed(emb=embedding, encoder_hidden_states=hidden, added_cond_kwargs=added)
            embedding = embedding if extra is None else embedding + extra
            sample = unet.conv_in(sample)
            features = []
            for block in unet.down_blocks:
                if getattr(block, "has_cross_attention", False):
                    sample, _ = block(sample, embedding, encoder_hidden_states=hidden)
                else:
                    sample, _ = block(sample, embedding)
                features.append(sample)
        return features
