"""ImageReward's layout, against a plain implementation of BLIP written from its description."""

import pytest
import torch
import torch.nn.functional as F

from reward_models import RewardModelError, load
from tests.reward_models.golden import GOLDEN, expected, noise_image
from tests.reward_models.layouts import bert_tokenizer, image_reward_state

PROMPTS = ["a red fox, in snow", "fox"]


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(query, key, value, mask=None):
    """One head of 64."""
    weights = query @ key.transpose(-1, -2) / 8.0
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, :], float("-inf"))
    return weights.softmax(-1) @ value


def reference_vision(state, inputs):
    x = F.conv2d(inputs, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = torch.cat([state["cls_token"].expand(len(inputs), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        y = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6))
        x = x + linear(state, f"{block}.attn.proj", attend(*y.chunk(3, -1)))
        y = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", y)
    return norm(state, "norm", x, 1e-6)


def reference_text(state, ids, mask, image_tokens):
    x = state["embeddings.word_embeddings.weight"][ids]
    x = norm(state, "embeddings.LayerNorm", x + state["embeddings.position_embeddings.weight"][: ids.shape[1]], 1e-12)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for kind, context, keep in (("attention", None, mask), ("crossattention", image_tokens, None)):
            source = x if context is None else context
            parts = [linear(state, f"{layer}.{kind}.self.{p}", s) for p, s in (("query", x), ("key", source))]
            y = attend(*parts, linear(state, f"{layer}.{kind}.self.value", source), keep)
            y = linear(state, f"{layer}.{kind}.output.dense", y)
            x = norm(state, f"{layer}.{kind}.output.LayerNorm", y + x, 1e-12)
        y = linear(state, f"{layer}.output.dense", F.gelu(linear(state, f"{layer}.intermediate.dense", x)))
        x = norm(state, f"{layer}.output.LayerNorm", y + x, 1e-12)
    return x[:, 0]


def reference_score(state, ids, mask, inputs):
    def part(prefix):
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    tokens = reference_vision(part("blip.visual_encoder."), inputs)
    x = reference_text(part("blip.text_encoder."), ids, mask.bool(), tokens)
    for position in (0, 2, 4, 6, 7):
        x = linear(state, f"mlp.layers.{position}", x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    return folder / "ImageReward.pt", bert_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return load("image_reward", checkpoint[0], "cpu", tokenizer=checkpoint[1])


def test_matches_the_reference(scorer):
    images = [noise_image(1), noise_image(2, 40, 90)]
    ids, mask = scorer.tokenise(PROMPTS).unbind(1)
    inputs = torch.stack([scorer.preprocessor(image) for image in images])
    reference = reference_score(image_reward_state(), ids, mask, inputs)
    torch.testing.assert_close(scorer.score(PROMPTS, images), reference, rtol=0, atol=2e-5)
    assert scorer.preprocessing == "openai+shown@32"


def test_golden_head_and_standardisation(tmp_path):
    """The official MLP with its mean and standard deviation, on the golden weights."""
    from safetensors.torch import load_file

    golden = load_file(GOLDEN / "mlp_head" / "model.safetensors")
    state = {k: v for k, v in image_reward_state(width=32).items() if not k.startswith("mlp.")}
    state |= {f"mlp.{name}": value for name, value in golden.items()}
    torch.save(state, tmp_path / "ImageReward.pt")
    scorer = load("image_reward", tmp_path / "ImageReward.pt", "cpu", tokenizer=bert_tokenizer(tmp_path / "t"))
    reward = scorer.reward(torch.tensor(expected("mlp_head")["input"]))
    reference = torch.tensor(expected("mlp_head")["imagereward_standardised"])
    torch.testing.assert_close(reward, reference, rtol=0, atol=5e-6)


def test_text_is_cut_and_padded_to_35_tokens(scorer):
    ids, mask = scorer.tokenise(["fox " * 60, "fox"]).unbind(1)
    assert ids.shape == (2, 35)
    assert mask.sum(1).tolist() == [35, 3]
    assert ids[0, 0] == ids[1, 0] and ids[0, -1] == ids[1, 2]  # [CLS] ... [SEP]


def test_med_config_must_agree(checkpoint):
    with pytest.raises(RewardModelError, match="contradicts the checkpoint"):
        load("image_reward", checkpoint[0], "cpu", tokenizer=checkpoint[1], model_config={"hidden_size": 768})


def test_other_state_dicts_are_refused(tmp_path):
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(RewardModelError, match="not an ImageReward checkpoint"):
        load("image_reward", tmp_path / "x.pt", "cpu")
