"""The adapter on tiny SD1.x and SDXL UNets: bit equality, gradients, rows, guidance, checkpointing, LoRA."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from t2i_align.backbones.adapters import add_lora
from t2i_align.config.schema import LoraConfig
from t2i_align.errors import UserError
from t2i_align.personal.adapter import add_user_adapter, cross_attention
from t2i_align.personal.config import PersonalConfig
from tests.personal.common import TABLE, load, open_up, unet_inputs

KINDS = ["sd", "sdxl"]


@pytest.fixture(params=KINDS)
def pipe(request, tiny_sd, tiny_sdxl):
    return load(tiny_sd if request.param == "sd" else tiny_sdxl, request.param)


def frozen(pipe):
    """As an adapter leaves the base: torch multiplies in other shapes by weights that want gradients."""
    pipe.unet.requires_grad_(False)
    return pipe


def users(*names):
    return torch.stack(
        [{"anna": torch.ones(3, 8), "ben": -torch.ones(3, 8), "null": torch.zeros(3, 8)}[n] for n in names]
    )


@pytest.mark.parametrize("start", ["values", "gate"])
def test_step_zero_is_the_base_bit_for_bit(pipe, start):
    inputs = unet_inputs(frozen(pipe))
    base = pipe.unet(**inputs).sample
    config = PersonalConfig("table", num_tokens=3, token_width=8, names=("anna", "ben"), start=start)
    adapter = add_user_adapter(pipe.unet, config)
    assert torch.equal(pipe.unet(**inputs).sample, base)
    with adapter.condition(adapter.encoder(["anna", "ben"])):
        assert torch.equal(pipe.unet(**inputs).sample, base)


def test_trained_null_user_scale_zero_reference_and_removal_are_the_base(pipe):
    inputs = unet_inputs(frozen(pipe))
    base = pipe.unet(**inputs).sample
    names = set(pipe.unet.state_dict())
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    with adapter.condition(users("anna", "ben")):
        own = pipe.unet(**inputs).sample
        with adapter.reference():
            assert torch.equal(pipe.unet(**inputs).sample, base)
        assert torch.equal(pipe.unet(**inputs).sample, own)
    assert not torch.allclose(own, base, atol=1e-3)
    with adapter.condition(users("null")):
        assert torch.equal(pipe.unet(**inputs).sample, base)
    with adapter.condition(users("anna", "ben"), scale=0):
        assert torch.equal(pipe.unet(**inputs).sample, base)
    adapter.remove()
    assert set(pipe.unet.state_dict()) == names
    assert torch.equal(pipe.unet(**inputs).sample, base)


def test_every_cross_attention_layer_reads_the_user(pipe):
    layers = sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
    adapter = add_user_adapter(pipe.unet, TABLE)
    assert len(adapter.attention) == layers
    open_up(adapter)
    with adapter.condition(adapter.encoder(["anna", "ben"])):
        pipe.unet(**unet_inputs(pipe)).sample.square().mean().backward()
    assert all(layer.value.weight.grad.abs().max() > 0 for layer in adapter.attention.values())


@pytest.mark.parametrize("start", ["values", "gate"])
def test_only_adapter_weights_receive_gradients_and_soon_all_of_them(pipe, start):
    config = PersonalConfig("table", num_tokens=3, token_width=8, names=("anna", "ben"), start=start)
    adapter = add_user_adapter(pipe.unet, config)
    trained = {name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad}
    assert trained == {f"personal.{name}" for name, _ in adapter.named_parameters()}
    optimiser = torch.optim.Adam(adapter.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        with adapter.condition(adapter.encoder(["anna", "ben"])):
            pipe.unet(**unet_inputs(pipe)).sample.square().mean().backward()
        optimiser.step()
    for name, parameter in pipe.unet.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


def test_each_row_has_its_own_user(pipe):
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    inputs = unet_inputs(pipe)
    outputs = {}
    for pair in (("anna", "ben"), ("anna", "anna"), ("ben", "ben")):
        with adapter.condition(users(*pair)):
            outputs[pair] = pipe.unet(**inputs).sample
    torch.testing.assert_close(outputs["anna", "ben"][0], outputs["anna", "anna"][0])
    torch.testing.assert_close(outputs["anna", "ben"][1], outputs["ben", "ben"][1])
    with adapter.condition(users("anna")):
        assert torch.equal(pipe.unet(**inputs).sample, outputs["anna", "anna"])
    with adapter.condition(users("anna", "ben", "ben")), pytest.raises(UserError, match="do not fit the batch"):
        pipe.unet(**inputs)


def test_guided_calls_and_user_guidance(pipe):
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    inputs = unet_inputs(pipe)
    base = pipe.unet(**inputs).sample
    with adapter.condition(users("anna")):
        own = pipe.unet(**inputs).sample
    with adapter.condition(users("anna"), guided=True):
        half = pipe.unet(**inputs).sample
    torch.testing.assert_close(half[0], base[0])
    torch.testing.assert_close(half[1], own[1])
    with adapter.condition(users("anna"), guided=True, ratio=3.0):
        guided = pipe.unet(**inputs, return_dict=False)[0]
    torch.testing.assert_close(guided[0], base[0])
    torch.testing.assert_close(guided[1], base[1] + 3 * (own[1] - base[1]), atol=1e-5, rtol=1e-4)
    with adapter.condition(users("anna"), ratio=2.0):
        torch.testing.assert_close(pipe.unet(**inputs).sample, 2 * own - base, atol=1e-5, rtol=1e-4)


def test_the_null_user_is_the_base_exactly_under_user_guidance_too(pipe):
    """The second pass of the base is of other rows, and may round differently: it must not touch the null user's."""
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    inputs = unet_inputs(pipe, rows=4)
    base = pipe.unet(**inputs).sample
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for guided in (False, True):
        with adapter.condition(users("null"), guided=guided, ratio=3.0):
            assert torch.equal(pipe.unet(**inputs).sample, base)
    assert len(calls) == 2  # no pass more than asked for
    with adapter.condition(users("null", "anna"), guided=True, ratio=3.0):
        mixed = pipe.unet(**inputs).sample
    assert torch.equal(mixed[:3], base[:3])
    assert not torch.allclose(mixed[3], base[3], atol=1e-3)


def test_gradient_checkpointing_recomputes_with_the_same_users(pipe):
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            pipe.unet.train()
        adapter.zero_grad()
        with adapter.condition(adapter.encoder(["anna", "ben"])):
            loss = pipe.unet(**unet_inputs(pipe)).sample.square().mean()
        loss.backward()  # outside: the recomputation must not need the condition
        gradients.append([parameter.grad.clone() for parameter in adapter.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_beside_a_lora_the_null_user_is_the_lora_model(pipe):
    add_lora(pipe.unet, LoraConfig(rank=2), torch.float32)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    inputs = unet_inputs(pipe)
    tuned = pipe.unet(**inputs).sample
    adapter = add_user_adapter(pipe.unet, TABLE)
    open_up(adapter)
    with adapter.condition(users("null")):
        assert torch.equal(pipe.unet(**inputs).sample, tuned)
    with adapter.condition(users("anna")):
        assert not torch.allclose(pipe.unet(**inputs).sample, tuned, atol=1e-3)


def test_two_opposite_users_are_told_apart(tiny_sd):
    """Users who want opposite pictures of the same prompts: each is learned, the null user stays where it was."""
    pipe = load(tiny_sd, "sd")
    adapter = add_user_adapter(pipe.unet, TABLE)
    inputs = unet_inputs(pipe)
    with torch.no_grad():
        base = pipe.unet(**inputs).sample
    direction = torch.randn(base.shape[1], 1, 1, generator=torch.Generator().manual_seed(3))
    target = base + 0.2 * torch.stack([direction, -direction])
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for _ in range(40):
        with adapter.condition(adapter.encoder(["anna", "ben"])):
            loss = (pipe.unet(**inputs).sample - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad(), adapter.condition(adapter.encoder(["ben", "anna"])):
        swapped = (pipe.unet(**inputs).sample - target).square().mean()
    untouched = (base - target).square().mean()
    assert loss < 0.9 * untouched < untouched < swapped


def test_other_architectures_are_refused(tiny_sd, tiny_sdxl):
    first, second = load(tiny_sd, "sd").unet, load(tiny_sdxl, "sdxl").unet
    adapter = add_user_adapter(first, TABLE)
    with pytest.raises(UserError, match="has a user adapter already"):
        add_user_adapter(first, TABLE)
    adapter.remove()
    with pytest.raises(UserError, match="another architecture"):
        adapter.install(second)
    plain = UNet2DConditionModel(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), mid_block_type=None, sample_size=8,
    )  # fmt: skip
    with pytest.raises(UserError, match="no cross-attention"):
        cross_attention(plain)
