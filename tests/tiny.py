"""Randomly initialised, tiny pipelines in the exact diffusers folder layout.

Every function writes a folder that plain ``from_pretrained`` loads in a fraction of a second. Weights depend
only on `seed`, so two folders written with the same arguments are identical. Sizes are arguments: what is
written for one shape must not be assumed for another.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MAX_TOKENS = 77
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def make_sdxl(
    path: str | Path,
    prediction_type: str = "epsilon",
    *,
    latent_channels: int = 4,
    downsamples: int = 2,
    sample_size: int = 16,
    unet_channels: tuple[int, ...] = (16, 32),
    text_width: int = 16,
    text_width_2: int = 24,
    pooled_width: int = 20,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a tiny `StableDiffusionXLPipeline`.

    Args:
        path: folder to write.
        prediction_type: what the UNet names, epsilon or v_prediction.
        latent_channels: channels C of the latents.
        downsamples: the VAE divides each side by 2 ** downsamples.
        sample_size: side of the latents that `pipe()` draws by default.
        unet_channels: one entry per UNet level; attention everywhere but on the first, as in SDXL.
        text_width: hidden size of the first text encoder.
        text_width_2: hidden size of the second one; prompts have text_width + text_width_2 channels.
        pooled_width: size of the pooled prompt.
        dtype: dtype of the stored weights.
        seed: of all weights.
    """
    time_width = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(_text_config(text_width, projection=text_width, activation="quick_gelu"))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config(text_width_2, pooled_width, "gelu"))
        vae = make_vae(latent_channels, downsamples, scaling_factor=0.13025, force_upcast=True)
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=unet_channels,
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(unet_channels) - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (len(unet_channels) - 1) + ("UpBlock2D",),
            transformer_layers_per_block=(1,) + (2,) * (len(unet_channels) - 1),
            attention_head_dim=tuple(max(1, channels // 8) for channels in unet_channels),
            cross_attention_dim=text_width + text_width_2,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + pooled_width,
        )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=make_tokenizer(pad_token="<|endoftext|>"),
        tokenizer_2=make_tokenizer(pad_token="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE_SCHEDULE, prediction_type=prediction_type, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return _write(pipe, path, dtype)


def make_sd(
    path: str | Path,
    prediction_type: str = "epsilon",
    *,
    latent_channels: int = 4,
    downsamples: int = 2,
    sample_size: int = 16,
    unet_channels: tuple[int, ...] = (16, 32),
    text_width: int = 24,
    rescale_betas_zero_snr: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a tiny `StableDiffusionPipeline`, laid out like SD1.x (epsilon) or SD2.x (v_prediction).

    The arguments are those of `make_sdxl`; `rescale_betas_zero_snr` (v_prediction only) makes the last step
    pure noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(_text_config(text_width, projection=text_width, activation="quick_gelu"))
        vae = make_vae(latent_channels, downsamples, scaling_factor=0.18215, force_upcast=False)
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=unet_channels,
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * (len(unet_channels) - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(unet_channels) - 1),
            attention_head_dim=2,
            cross_attention_dim=text_width,
            use_linear_projection=prediction_type == "v_prediction",
        )
    if prediction_type == "epsilon":
        scheduler = PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(
            **NOISE_SCHEDULE,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            timestep_spacing="trailing" if rescale_betas_zero_snr else "leading",
        )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=make_tokenizer(pad_token="!" if prediction_type == "v_prediction" else "<|endoftext|>"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _write(pipe, path, dtype)


def make_vae(
    latent_channels: int = 4, downsamples: int = 2, scaling_factor: float = 0.18215, force_upcast: bool = True
) -> AutoencoderKL:
    """A tiny random VAE that divides each side by 2 ** downsamples."""
    levels = downsamples + 1
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
        force_upcast=force_upcast,
    )


def make_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the 256 byte symbols, alone and ending a word; no merges."""
    symbols = _byte_symbols()
    words = symbols + [f"{symbol}</w>" for symbol in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad_token, model_max_length=MAX_TOKENS)


def edit_json(path: Path, **changes: object) -> None:
    """Overwrite top-level keys of a JSON file, to make a folder subtly different."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


def _write(pipe: DiffusionPipeline, path: str | Path, dtype: torch.dtype) -> Path:
    if dtype != torch.float32:
        for name in ("vae", "unet", "text_encoder", "text_encoder_2"):
            if (module := getattr(pipe, name, None)) is not None:
                module.to(dtype)
    pipe.save_pretrained(path)
    return Path(path)


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the bytes 0..255 in the byte-level alphabet; "!" comes first, as in CLIP."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _text_config(width: int, projection: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        projection_dim=projection,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
