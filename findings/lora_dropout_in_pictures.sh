#!/usr/bin/env bash
# Package:  diffusers 0.42.1 (with peft 0.21.2, torch 2.10.0, transformers 5.23.0)
# Input:    a UNet in eval mode in a pipeline; a LoRA file as diffusers' own save_lora_weights writes it for an adapter
#           with lora_dropout 0.5 (its metadata has the adapter's configuration), loaded by load_lora_weights.
# Expected: the same prediction from two calls of the UNet on the same numbers: dropout is for training, and a network
#           in eval mode, as from_pretrained leaves it, has none.
# Seen:     two different predictions; the UNet is in eval mode, the dropout that load_lora_weights put into it in
#           training mode. After unet.eval() they are the same. Nothing is said of it (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet torch==2.10.0 transformers==5.23.0
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet diffusers==0.42.1 peft==0.21.2

cd "$folder"
seen=$(HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import diffusers
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def network():
    """A small random UNet in eval mode, the same at every call."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()


trained = network()
adapter = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.5, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
trained.add_adapter(adapter)
weights = {name: torch.randn_like(weight) for name, weight in get_peft_model_state_dict(trained).items()}
StableDiffusionPipeline.save_lora_weights("saved", weights, unet_lora_adapter_metadata=adapter.to_dict())

unet = network()
parts = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
pipeline = StableDiffusionPipeline(unet=unet, requires_safety_checker=False, **dict.fromkeys(parts))
pipeline.load_lora_weights("saved")
latents, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)


@torch.no_grad()
def twice():
    """Whether two predictions from the same numbers are the same."""
    first, second = (unet(latents, 500, prompt).sample for _ in range(2))
    return "the same" if torch.equal(first, second) else "different"


dropouts = {module.training for name, module in unet.named_modules() if ".lora_dropout.default" in name}
print(f"diffusers {diffusers.__version__}")
print(f"unet.training {unet.training}, its dropouts' {dropouts}: {twice()} predictions")
unet.eval()
print(f"after unet.eval(): {twice()} predictions")
PYTHON
)
echo "$seen"
wanted="diffusers 0.42.1
unet.training False, its dropouts' {True}: different predictions
after unet.eval(): the same predictions"
if [ "$seen" != "$wanted" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
