"""Weights in 8 bits: half a level of error, and a latent reward model that hardly notices."""

import torch

from reward_models.latent import LatentRewardModel
from reward_models.quantised import quantise, restore

from .test_latent_training import reward_model


def test_the_error_is_half_a_level_of_the_row():
    weight = (
        torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 1, 5)[:, None, None, None]
    )
    bias = torch.tensor([0.5, -2.0])
    stored = quantise({"weight": weight, "bias": bias, "zero": torch.zeros(2, 2)})
    assert stored["weight"].dtype == torch.int8 and stored["bias"].dtype == torch.float16
    found = restore(stored)
    error = (found["weight"] - weight).flatten(1).abs().amax(1)
    assert (error <= 0.51 * weight.flatten(1).abs().amax(1) / 127).all()
    assert torch.equal(found["zero"], torch.zeros(2, 2)) and torch.equal(found["bias"].float(), bias)


@torch.no_grad()
def test_a_model_saved_in_8_bits_scores_alike(tiny_sd, tmp_path):
    model = reward_model(tiny_sd, text_encoders="own").eval()
    again = LatentRewardModel.load(model.save(tmp_path / "small", "int8"))
    latents, times = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((6,), 401)
    torch.testing.assert_close(
        again.score(latents, times, ["a red circle"] * 6),
        model.score(latents, times, ["a red circle"] * 6),
        rtol=0,
        atol=0.15,
    )
    whole, small = model.save(tmp_path / "whole"), tmp_path / "small"
    assert (small / "model.safetensors").stat().st_size < 0.5 * (whole / "model.safetensors").stat().st_size
