"""Another layout in memory, the same model: predictions, reference and gradients agree."""

import pytest
import torch

from tests.backbones.common import inputs, load, perturb, reference_prediction


@pytest.mark.parametrize("train", ["lora", "full"])
def test_predictions_and_gradients_agree(tiny_sdxl, train):
    found = []
    for channels_last in (False, True):
        backbone = load(tiny_sdxl, train=train, channels_last=channels_last)
        assert backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        arguments = inputs(backbone)
        start = backbone.predict(**arguments)
        assert torch.equal(start, reference_prediction(backbone, arguments))  # policy and reference still start as one
        perturb(backbone)
        prediction = backbone.predict(**arguments)
        prediction.square().mean().backward()
        gradients = [parameter.grad.contiguous().flatten() for parameter in backbone.trainable_parameters()]
        found.append((prediction.detach(), torch.cat(gradients)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
