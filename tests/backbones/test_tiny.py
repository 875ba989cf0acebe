"""The tiny pipelines load with plain diffusers and sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.tiny import make_sd


@pytest.mark.parametrize(
    ("fixture", "expected"),
    [
        ("tiny_sdxl", StableDiffusionXLPipeline),
        ("tiny_sd", StableDiffusionPipeline),
        ("tiny_sd_v", StableDiffusionPipeline),
    ],
)
def test_samples_with_plain_diffusers(fixture: str, expected: type, request: pytest.FixtureRequest) -> None:
    pipe = DiffusionPipeline.from_pretrained(request.getfixturevalue(fixture))
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is expected
    assert pipe("a red star", num_inference_steps=2).images[0].size == (64, 64)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        return (make_sd(tmp_path / name, seed=seed) / "unet/diffusion_pytorch_model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)
