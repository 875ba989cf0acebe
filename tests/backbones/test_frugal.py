"""Layers that keep less: the same numbers and gradients."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from torch import nn

from t2i_align.backbones.frugal import FrozenConv2d, FrugalGEGLU, keep_less
from t2i_align.training.meter import Meter


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False}])
def test_outputs_and_gradients_are_those_of_the_plain_layer(options, autocast):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, **options).requires_grad_(False)
    frozen = copy.deepcopy(plain)
    keep_less(frozen)
    assert type(frozen) is FrozenConv2d and frozen.state_dict().keys() == plain.state_dict().keys()
    results = []
    for layer in (plain, frozen):
        inputs = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = layer(inputs)
        output.float().square().sum().backward()
        results.append((output, inputs.grad))
    for ours, theirs in zip(*results, strict=True):
        # Another convolution gives the gradient: sums of at most 54 products of order 1, in another order.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=(2**-5 if autocast else 1e-5))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gate_is_the_plain_one(autocast):
    torch.manual_seed(0)
    plain = GEGLU(6, 10)
    frugal = copy.deepcopy(plain)
    keep_less(frugal)
    assert type(frugal) is FrugalGEGLU and frugal.state_dict().keys() == plain.state_dict().keys()
    results = []
    for layer in (plain, frugal):
        inputs = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = layer(inputs)
        output.float().square().sum().backward()
        results.append((output, inputs.grad, layer.proj.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_layers_that_train_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1).requires_grad_(False))
    keep_less(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, FrozenConv2d]


def test_a_denoiser_keeps_less(tiny_sdxl):
    peaks = []
    for change in (lambda network: None, keep_less):
        unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet").requires_grad_(False)
        change(unet)
        noisy = torch.randn(2, 4, 16, 16, requires_grad=True)
        added = {"text_embeds": torch.randn(2, 20), "time_ids": torch.randn(2, 6)}
        with Meter([noisy, *unet.parameters(), *unet.buffers()]) as meter:
            kept = unet(noisy, torch.tensor(3), torch.randn(2, 77, 40), added_cond_kwargs=added).sample
            peaks.append(meter.live)
        assert kept.requires_grad
    assert peaks[1] < 0.9 * peaks[0], peaks
