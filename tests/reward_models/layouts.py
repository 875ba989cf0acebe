"""Small random models in the layouts of the published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.reward_models.golden import GOLDEN

HPS_CONFIG = json.loads((GOLDEN / "hpsv2" / "tiny_model_cfg.json").read_text())
# The same with the small tokenizer's vocabulary, so that files stay small.
SMALL_HPS_CONFIG = {**HPS_CONFIG, "text_cfg": {**HPS_CONFIG["text_cfg"], "vocab_size": 707}}


def clip_config() -> dict[str, Any]:
    return json.loads((GOLDEN / "pickscore" / "config.json").read_text())


def mps_config() -> dict[str, Any]:
    return {
        "clip": json.loads((GOLDEN / "mps" / "clip_config.json").read_text()),
        "cross": json.loads((GOLDEN / "mps" / "cross_config.json").read_text()),
    }


def aesthetic_head(width: int, positions: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """State dict of a LAION head with layers at the given positions."""
    sizes = [width, 1024, 128, 64, 16, 1]
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for position, inside, outside in zip(positions, sizes[:-1], sizes[1:], strict=True):
        weight = torch.randn(outside, inside, generator=generator) / inside**0.5
        state[f"layers.{position}.weight"] = weight
        state[f"layers.{position}.bias"] = 0.1 * torch.randn(outside, generator=generator)
    return state


def image_reward_state(seed: int = 0, width: int = 64, vocabulary: int = 40) -> dict[str, Tensor]:
    """ImageReward.pt with one head of 64 everywhere, two layers, 32-pixel pictures of four patches."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    def linear(name: str, outside: int, inside: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(outside, inside), f"{name}.bias": normal(outside)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}

    state: dict[str, Tensor] = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 5, width),
        "patch_embed.proj.weight": normal(width, 3, 16, 16, scale=0.05),
        "patch_embed.proj.bias": normal(width),
        **norm("norm"),
    }
    for block in ("blocks.0", "blocks.1"):
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        state |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        state |= linear(f"{block}.mlp.fc1", 2 * width, width) | linear(f"{block}.mlp.fc2", width, 2 * width)
    text: dict[str, Tensor] = {
        "embeddings.position_ids": torch.arange(48)[None],
        "embeddings.word_embeddings.weight": normal(vocabulary, width),
        "embeddings.position_embeddings.weight": normal(48, width),
        **norm("embeddings.LayerNorm"),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                text |= linear(f"{layer}.{attention}.self.{part}", width, width)
            text |= linear(f"{layer}.{attention}.output.dense", width, width)
            text |= norm(f"{layer}.{attention}.output.LayerNorm")
        text |= linear(f"{layer}.intermediate.dense", 2 * width, width)
        text |= linear(f"{layer}.output.dense", width, 2 * width) | norm(f"{layer}.output.LayerNorm")
    return {
        **{f"blip.visual_encoder.{name}": value for name, value in state.items()},
        **{f"blip.text_encoder.{name}": value for name, value in text.items()},
        **linear("blip.vision_proj", 8, width),
        **linear("blip.text_proj", 8, width),
        **{f"mlp.{name}": value for name, value in aesthetic_head(width, (0, 2, 4, 6, 7), seed).items()},
    }


def bert_tokenizer(folder: Path) -> Path:
    """A complete small BERT tokenizer: 38 entries, so that BLIP's two extra tokens make 40."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "red", "fox"]
    words += ["a", "in", "snow", ","]
    words = list(dict.fromkeys(words))
    words += [f"[unused{index}]" for index in range(38 - len(words))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})
    )
    return folder
