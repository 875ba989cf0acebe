"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last hidden state after the final layer norm."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from t2i_align.backbones.base import Backbone
from t2i_align.backbones.captions import cut_in_silence
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.errors import UserError


class StableDiffusion(Backbone):
    """Backbone of `StableDiffusionPipeline`."""

    pipeline_class = StableDiffusionPipeline
    text_encoder_names = ("text_encoder",)
    tokenizer_names = ("tokenizer",)

    def check_architecture(self) -> None:
        """The cross-attention width must be the text encoder's.

        Raises:
            UserError: it is not.
        """
        wanted, given = self.unet.config.cross_attention_dim, self.text_encoders[0].config.hidden_size
        if wanted != given:
            raise UserError(
                "The text encoder and the UNet do not fit each other.",
                f"hidden size {given}, cross_attention_dim {wanted}",
                "use the text encoder of this checkpoint",
            )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> PromptEmbeddings:
        """hidden ``[B, L, D]``; no pooled state."""
        with cut_in_silence():
            hidden, _ = self._pipeline.encode_prompt(list(prompts), self.text_encoders[0].device, 1, False)
        return PromptEmbeddings(hidden.to(self.device))

    def empty_prompt(self, count: int) -> PromptEmbeddings:
        """The encoded empty string."""
        return self.encode_prompt([""]).repeat(count)

    def time_ids(self, original_size: Any, crop_top_left: Any, target_size: Any) -> None:
        """These models have no micro-conditioning."""
        return
