"""Run by the tests in a process of its own: load exports with nothing but diffusers, and record what they compute.

Usage: plain_diffusers.py JOBS.json, a list of {"base", "lora" or "unet", "inputs", "output"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file


def main(jobs: list[dict[str, str]]) -> None:
    for job in jobs:
        given = {"unet": UNet2DConditionModel.from_pretrained(job["unet"])} if "unet" in job else {}
        pipe = DiffusionPipeline.from_pretrained(job["base"], **given)
        pipe.set_progress_bar_config(disable=True)
        if "lora" in job:
            path = Path(job["lora"])
            pipe.load_lora_weights(path.parent, weight_name=path.name)
        inputs = load_file(job["inputs"])
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        with torch.no_grad():
            prediction = pipe.unet(inputs["noisy"], inputs["timesteps"], inputs["hidden"], added_cond_kwargs=added)
        seeded = torch.Generator().manual_seed(0)
        picture = pipe("a red star", num_inference_steps=2, generator=seeded, output_type="pt").images
        save_file({"prediction": prediction.sample.float(), "picture": picture.float()}, job["output"])


if __name__ == "__main__":
    assert not any(name.startswith("t2i_align") for name in sys.modules)
    main(json.loads(Path(sys.argv[1]).read_text()))
