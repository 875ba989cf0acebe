"""Stable Diffusion XL: two CLIP text encoders, pooled state, and size and crop conditioning."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from t2i_align.backbones.base import Backbone
from t2i_align.backbones.captions import cut_in_silence
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.errors import UserError

NUM_TIME_IDS = 6  # original height, width; crop top, left; target height, width


class StableDiffusionXL(Backbone):
    """Backbone of `StableDiffusionXLPipeline`."""

    pipeline_class = StableDiffusionXLPipeline
    text_encoder_names = ("text_encoder", "text_encoder_2")
    tokenizer_names = ("tokenizer", "tokenizer_2")

    def check_architecture(self) -> None:
        """Cross-attention takes both hidden sizes; the added embedding takes the pooled state and six ids.

        Raises:
            UserError: it does not.
        """
        config = self.unet.config
        widths = [encoder.config.hidden_size for encoder in self.text_encoders]
        pooled = self.text_encoders[1].config.projection_dim
        if config.cross_attention_dim != sum(widths):
            raise UserError(
                "The text encoders and the UNet do not fit each other.",
                f"hidden sizes {widths}, cross_attention_dim {config.cross_attention_dim}",
                "use the text encoders of this checkpoint",
            )
        added = NUM_TIME_IDS * (config.addition_time_embed_dim or 0) + pooled
        if config.addition_embed_type != "text_time" or config.projection_class_embeddings_input_dim != added:
            raise UserError(
                "The UNet does not take SDXL's pooled prompt with six size and crop ids.",
                f"addition_embed_type {config.addition_embed_type}, input width "
                f"{config.projection_class_embeddings_input_dim}, expected text_time and {added}",
                "use an SDXL base checkpoint (the refiner is not supported)",
            )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> PromptEmbeddings:
        """hidden ``[B, L, D1 + D2]`` (penultimate layers, side by side) and pooled ``[B, P]`` (second encoder)."""
        with cut_in_silence():
            hidden, _, pooled, _ = self._pipeline.encode_prompt(
                list(prompts), device=self.text_encoders[1].device, do_classifier_free_guidance=False
            )
        return PromptEmbeddings(hidden, pooled).to(self.device)

    def empty_prompt(self, count: int) -> PromptEmbeddings:
        """Zeros where the pipeline says so (``force_zeros_for_empty_prompt``), else the encoded empty string."""
        empty = self.encode_prompt([""])
        if self._pipeline.config.force_zeros_for_empty_prompt:
            empty = PromptEmbeddings(torch.zeros_like(empty.hidden), torch.zeros_like(empty.pooled))
        return empty.repeat(count)

    def time_ids(self, original_size: Any, crop_top_left: Any, target_size: Any) -> Tensor:
        """``[B, 6]`` float32 on the device: original (h, w), crop (top, left), target (h, w)."""
        columns = [
            torch.as_tensor(pair, dtype=torch.float32).reshape(-1, 2)
            for pair in (original_size, crop_top_left, target_size)
        ]
        return torch.cat(columns, dim=1).to(self.device)

    def conditioning(
        self, prompt: PromptEmbeddings, time_ids: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Pooled prompt and size ids."""
        if prompt.pooled is None or time_ids is None:
            raise ValueError("SDXL needs the pooled prompt and time_ids")
        return {"text_embeds": prompt.pooled.to(device, self.dtype), "time_ids": time_ids.to(device)}
