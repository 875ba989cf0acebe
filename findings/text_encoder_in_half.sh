#!/usr/bin/env bash
# Package:  diffusers 0.42.1 (with transformers 5.23.0, torch 2.10.0)
# Input:    a saved pipeline whose text encoder was in float16 when it was saved, so that its config.json says "dtype":
#           "float16", as those of the published Stable Diffusion XL do; loaded by from_pretrained without a dtype, and
#           asked for one latent.
# Expected: all parts in float32, the default that from_pretrained documents (for its dtype: "torch.float32 is used"),
#           and a latent.
# Seen:     the text encoder in float16, as transformers 5 takes the dtype from the configuration; the UNet and the VAE
#           in float32; and a RuntimeError over unequal dtypes in the first cross-attention. With dtype=torch.float32
#           all is float32 and the latent comes (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet torch==2.10.0 transformers==5.23.0
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet diffusers==0.42.1

cd "$folder"
seen=$(HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

words = {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
Path("vocab.json").write_text(json.dumps(words))
Path("merges.txt").write_text("#version: 0.2\n")
text = CLIPTextConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=1,
    eos_token_id=2,
)
unet = UNet2DConditionModel(
    sample_size=8,
    block_out_channels=(8,),
    layers_per_block=1,
    norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    cross_attention_dim=8,
    attention_head_dim=2,
)
StableDiffusionPipeline(
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
    text_encoder=CLIPTextModel(text).half(),
    tokenizer=CLIPTokenizer("vocab.json", "merges.txt", model_max_length=77),
    unet=unet,
    scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
).save_pretrained("saved")

print(f"diffusers {diffusers.__version__}")
for options in ({}, {"dtype": torch.float32}):
    pipeline = StableDiffusionPipeline.from_pretrained("saved", **options)
    pipeline.set_progress_bar_config(disable=True)
    dtypes = ", ".join(f"{part} {getattr(pipeline, part).dtype}" for part in ("text_encoder", "unet", "vae"))
    try:
        result = list(pipeline("a", num_inference_steps=1, output_type="latent").images.shape)
    except RuntimeError as error:
        result = error
    print(f"{options}: {dtypes}: {result}")
PYTHON
)
echo "$seen"
refusal="mat1 and mat2 must have the same dtype, but got Half and Float"
wanted="diffusers 0.42.1
{}: text_encoder torch.float16, unet torch.float32, vae torch.float32: $refusal
{'dtype': torch.float32}: text_encoder torch.float32, unet torch.float32, vae torch.float32: [1, 4, 8, 8]"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
