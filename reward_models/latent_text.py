"""Prompts as the diffusion model itself reads them: token states for cross-attention and one pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.files import share

_SUFFIXES = ("", "_2")


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """P encoded prompts.

    Attributes:
        hidden: ``[P, L, D]`` token states, what the UNet attends to.
        pooled: ``[P, Q]``. One encoder: its state at the end token, after the final norm. Two (SDXL): the second
            encoder's projected vector, which also enters SDXL's time embedding.
    """

    hidden: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def index(self, rows: Tensor) -> TextConditioning:
        """The prompts at ``rows`` (long ``[N]``)."""
        rows = rows.to(self.hidden.device)
        return TextConditioning(self.hidden[rows], self.pooled[rows])

    def expand(self, count: int) -> TextConditioning:
        """One prompt as ``count`` identical rows, without copying."""
        return TextConditioning(self.hidden.expand(count, -1, -1), self.pooled.expand(count, -1))

    def cat(self, *others: TextConditioning) -> TextConditioning:
        """These prompts, then those of ``others``."""
        everyone = (self, *others)
        return TextConditioning(
            torch.cat([one.hidden for one in everyone]), torch.cat([one.pooled for one in everyone])
        )


class TextTower(nn.Module):
    """The text encoders and tokenizers of a Stable Diffusion 1.x, 2.x or XL pipeline.

    Args:
        encoders: one CLIP text model, or SDXL's two in their order.
        tokenizers: the same number.
    """

    def __init__(self, encoders: Sequence[nn.Module], tokenizers: Sequence[Any]) -> None:
        super().__init__()
        if len(encoders) not in (1, 2) or len(encoders) != len(tokenizers):
            raise RewardModelError(
                "a latent reward model reads prompts with one text encoder (SD) or two (SDXL)",
                found=f"{len(encoders)} text encoders, {len(tokenizers)} tokenizers",
            )
        self.encoders, self.tokenizers = nn.ModuleList(encoders), list(tokenizers)

    @property
    def pooled_width(self) -> int:
        """Q, the width of the pooled vector."""
        last = self.encoders[-1].config
        return int(last.hidden_size if len(self.encoders) == 1 else last.projection_dim)

    def forward(self, prompts: Sequence[str]) -> TextConditioning:
        """Encode P prompts; gradients flow unless the caller forbids them."""
        outputs = []
        for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            ids = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),  # it may say 1e30
                truncation=True,
                return_tensors="pt",
            ).input_ids
            outputs.append(encoder(ids.to(encoder.device), output_hidden_states=True))
        if len(outputs) == 1:
            return TextConditioning(outputs[0].last_hidden_state, outputs[0].pooler_output)
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextConditioning(hidden, outputs[1].text_embeds)

    def save(self, folder: Path) -> None:
        """Write ``text_encoder[_2]/`` and ``tokenizer[_2]/`` in the diffusers layout."""
        for encoder, tokenizer, suffix in zip(self.encoders, self.tokenizers, _SUFFIXES, strict=False):
            encoder.save_pretrained(folder / f"text_encoder{suffix}")
            share(folder / f"text_encoder{suffix}")
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> TextTower:
        """Read the text encoders of a diffusers folder, or of a saved latent reward model.

        Raises:
            RewardModelError: no text encoder there.
        """
        from transformers import CLIPTokenizer

        folder = Path(folder)
        present = [suffix for suffix in _SUFFIXES if (folder / f"text_encoder{suffix}").is_dir()]
        if not present or present[0] != "":
            raise RewardModelError(
                "the folder holds no text encoder",
                found=str(folder),
                fix="pass the local diffusers folder of the base model, with text_encoder/ and tokenizer/",
            )
        encoders = [_load_encoder(folder / f"text_encoder{suffix}", suffix, dtype) for suffix in present]
        return cls(encoders, [CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}") for suffix in present])


def _load_encoder(folder: Path, suffix: str, dtype: torch.dtype) -> nn.Module:
    """SDXL's second encoder has a projection; the others have none."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
    half_only = not (folder / "model.safetensors").is_file() and (folder / "model.fp16.safetensors").is_file()
    return kind.from_pretrained(folder, dtype=dtype, variant="fp16" if half_only else None)
