"""Pictures of one prompt: its states go through cross-attention once, and nothing else changes."""

import pytest
import torch

from tests.backbones.common import PROMPTS, inputs, load, perturb


@pytest.mark.parametrize("layout", ["tiny_sdxl", "tiny_sd_v"])
@pytest.mark.parametrize("attention", ["sdpa", "sdpa_math"])
def test_sharing_changes_no_number(layout, attention, request):
    backbone = load(request.getfixturevalue(layout), attention=attention)
    perturb(backbone)
    one, other = inputs(backbone, 0), inputs(backbone, 1)
    both = {
        "noisy": torch.cat([one["noisy"], other["noisy"]]),
        "timesteps": one["timesteps"].repeat(2),
        "time_ids": None if one["time_ids"] is None else torch.cat([one["time_ids"], other["time_ids"] + 1]),
    }
    found = []
    for prompt in (one["prompt"].cat(other["prompt"]), one["prompt"]):
        backbone.unet.zero_grad(set_to_none=True)
        prediction = backbone.predict(**both, prompt=prompt)
        prediction.square().mean().backward()
        found.append([prediction.detach(), *(p.grad.clone() for p in backbone.trainable_parameters())])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-6)


def test_keys_are_computed_once_per_prompt(tiny_sdxl):
    backbone = load(tiny_sdxl)
    arguments = inputs(backbone)
    doubled = {
        name: None if value is None else torch.cat([value] * 2) for name, value in arguments.items() if name != "prompt"
    }
    seen = []
    for name, module in backbone.unet.named_modules():
        if name.endswith("attn2.to_k"):
            module.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    backbone.predict(**doubled, prompt=arguments["prompt"])
    assert set(seen) == {len(PROMPTS)}
