#!/usr/bin/env bash
# Package:  peft 0.21.2 (with torch 2.10.0, transformers 5.23.0)
# Input:    a linear layer in bfloat16 with the weight [16, 1.25], given a DoRA adapter by get_peft_model, and the input
#           [1, 0].
# Expected: 16, what the layer gives alone. LoraConfig's documentation calls a new adapter a no-op (lora_B is zero), and
#           DoRA's own paper starts its magnitudes at the norms of the weights for that reason. In float32 it is one.
# Seen:     15.9375, the next lower bfloat16. The magnitude is the norm 16.0488 measured in bfloat16, 16; each forward
#           pass divides it by the norm in float32 and scales the output by 0.997 (2026-11-29, Linux, Python 3.11).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --disable-pip-version-check --quiet peft==0.21.2 torch==2.10.0 transformers==5.23.0

cd "$folder"
seen=$("$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from torch import nn


def outputs(dtype):
    """What a new layer gives for [1, 0] before and after the adapter, and the adapter's magnitude."""
    network = nn.Sequential(nn.Linear(2, 1, bias=False)).to(dtype)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[16.0, 1.25]]))
    picture = torch.tensor([[1.0, 0.0]], dtype=dtype)
    before = network(picture).item()
    adapted = get_peft_model(network, LoraConfig(r=1, target_modules=["0"], use_dora=True))
    magnitude = network[0].lora_magnitude_vector["default"].weight.item()
    return f"{before} becomes {adapted(picture).item()}, magnitude {magnitude:.4f}"


print(f"peft {version('peft')}: float32: {outputs(torch.float32)}; bfloat16: {outputs(torch.bfloat16)}")
PYTHON
)
echo "$seen"
float32="float32: 16.0 becomes 16.0, magnitude 16.0488"
bfloat16="bfloat16: 16.0 becomes 15.9375, magnitude 16.0000"
if [ "$seen" != "peft 0.21.2: $float32; $bfloat16" ]; then
    echo "changed: this is not what was seen before" >&2
    exit 1
fi
