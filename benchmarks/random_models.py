"""Model folders of the published sizes with random weights, and pairs of noise: real shapes, nothing downloaded.

The UNet is the published architecture. The VAE divides by 8 as the published one does and the text encoders give
embeddings of the published widths, but both are small: what a script spends on encoding is understated.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {"sd15": SD15, "sdxl": SDXL}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def unet_of(family: str, device: str = "cpu") -> UNet:
    """A randomly initialised UNet of the published architecture; on ``meta`` it costs nothing."""
    with torch.device(device):
        return UNet(**UNETS[family])


def write_model(family: str, folder: Path) -> Path:
    """Write a diffusers folder unless it is there."""
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )
    parts = {"vae": vae, "unet": unet_of(family), "scheduler": EulerDiscreteScheduler(**SCHEDULE)}
    first = CLIPTextModel(_text(768, 768))
    if family == "sdxl":
        second = CLIPTextModelWithProjection(_text(1280, 1280))
        pipeline = StableDiffusionXLPipeline(
            text_encoder=first, text_encoder_2=second, tokenizer=_tokenizer(), tokenizer_2=_tokenizer(), **parts
        )
    else:
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(text_encoder=first, tokenizer=_tokenizer(), **parts, **nothing)
    pipeline.save_pretrained(folder)
    return folder


def write_pairs(folder: Path, resolution: int, count: int = 64) -> Path:
    """Write ``pairs.parquet`` in the Pick-a-Pic layout unless it is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "pairs.parquet"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [_noise(resolution, index) for index in range(2 * count)]
        columns = {
            "ranking_id": list(range(count)),
            "caption": [f"picture number {index}" for index in range(count)],
            "jpg_0": pictures[::2],
            "jpg_1": pictures[1::2],
            "label_0": [float(index % 2) for index in range(count)],
            "label_1": [1.0 - index % 2 for index in range(count)],
        }
        pq.write_table(pa.table(columns), path)
    return path


def _noise(resolution: int, seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((resolution, resolution)).save(file, "JPEG")
    return file.getvalue()


def _text(width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=projection,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _tokenizer() -> CLIPTokenizer:
    """Bytes as tokens."""
    symbols = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
