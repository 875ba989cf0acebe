"""Behaviour shared by all scorers: batching, order, prompts, gradients, errors, lightness."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models import RewardModelError, load
from reward_models.scorer import BaseScorer, Scorer
from tests.reward_models.golden import GOLDEN, TOKENIZER, expected, noise_image
from tests.reward_models.layouts import bert_tokenizer, image_reward_state

NAMES = ["pickscore", "hpsv2", "mps", "clip_score", "aesthetic", "image_reward"]
WORDS = ["a red fox", "", "two cats, one black", "a very long prompt " * 30]


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory):
    return load("image_reward", device="cpu", **image_reward_files(tmp_path_factory.mktemp("image_reward")))


def image_reward_files(folder):
    """A small ImageReward and its tokenizer, as keywords of `load`."""
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    return {"checkpoint": folder / "ImageReward.pt", "tokenizer": bert_tokenizer(folder / "tokenizer")}


@pytest.fixture(params=NAMES)
def scorer(request):
    return request.getfixturevalue(request.param)


def test_is_a_scorer(scorer):
    assert isinstance(scorer, Scorer) and isinstance(scorer, BaseScorer)
    assert scorer.version.startswith("sha256:") and "@" in scorer.preprocessing


def test_batch_size_and_order_do_not_matter(scorer):
    """40 pictures of many shapes with mixed prompts, in batches of 1, 7 and 32 and backwards."""
    images = [noise_image(seed, 40 + 3 * seed, 100 - seed) for seed in range(40)]
    prompts = [WORDS[seed % len(WORDS)] for seed in range(40)]
    one = scorer.score(prompts, images, batch_size=1)
    assert one.dtype == torch.float32 and one.shape == (40,)
    for size in (7, 32):
        scorer_scores = scorer.score(prompts, images, batch_size=size)
        torch.testing.assert_close(scorer_scores, one, rtol=1e-6, atol=1e-5)
    backwards = scorer.score(prompts[::-1], images[::-1], batch_size=7)
    torch.testing.assert_close(backwards.flip(0), one, rtol=1e-6, atol=1e-5)


def test_sources_and_prompts(scorer, tmp_path):
    picture = noise_image(1)
    picture.save(tmp_path / "a.png")
    sources = [picture, tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.asarray(picture)]
    scores = scorer.score("a red fox", sources)
    assert (scores == scores[0]).all()
    assert scorer.score("a red fox", picture).shape == (1,)
    assert scorer.score([], []).shape == (0,)
    probabilities = scorer.compare("a red fox", [picture, noise_image(2)])
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    by_hand = torch.sigmoid(scorer.preference_scale * (scores[0] - scorer.score("a red fox", [noise_image(2)])))
    torch.testing.assert_close(probabilities[0], by_hand[0])


def test_score_tensor_agrees_with_score(scorer):
    """On a picture that needs no resizing only float rounding is left."""
    size = int(scorer.preprocessing.split("@")[1])
    picture = noise_image(3, size, size)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    difference = scorer.score_tensor("a red fox", pixels) - scorer.score("a red fox", [picture])
    assert difference.abs().max() < 1e-4


DOUBLE = {
    "pickscore": {"checkpoint": GOLDEN / "pickscore", "tokenizer": TOKENIZER},
    "clip_score": {"checkpoint": GOLDEN / "pickscore", "tokenizer": TOKENIZER, "prefix": ""},
    "mps": {"checkpoint": GOLDEN / "mps", "tokenizer": TOKENIZER},
    "aesthetic": {"checkpoint": GOLDEN / "mlp_head" / "model.safetensors", "tower": GOLDEN / "pickscore"},
    "hpsv2": {
        "checkpoint": GOLDEN / "hpsv2" / "model.safetensors",
        "model_config": GOLDEN / "hpsv2" / "tiny_model_cfg.json",
    },
}


@pytest.mark.parametrize("name", [*DOUBLE, "image_reward"])
def test_pixel_gradient_against_finite_differences(name, tmp_path):
    """Central differences along random directions in float64, through resize, crop and normalisation."""
    options = DOUBLE.get(name) or image_reward_files(tmp_path)
    scorer = load(name, device="cpu", dtype="float64", **options)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 70, 90, generator=generator, dtype=torch.float64).requires_grad_()
    prompts = [expected("pickscore")["prompts"][index] for index in (3, 5)]
    score = scorer.score_tensor(prompts, pixels).sum()
    (gradient,) = torch.autograd.grad(score, pixels)
    assert gradient.abs().max() > 0
    for _ in range(3):
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            above = scorer.score_tensor(prompts, pixels + 1e-5 * direction).sum()
            below = scorer.score_tensor(prompts, pixels - 1e-5 * direction).sum()
        numeric = (above - below) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


def test_prompts_are_encoded_once(pickscore, monkeypatch):
    pickscore.forget_prompts()
    calls = []
    encode = type(pickscore).encode_prompts
    monkeypatch.setattr(type(pickscore), "encode_prompts", lambda self, p: calls.append(p) or encode(self, p))
    pickscore.score(["a", "b", "a"], [noise_image(s) for s in range(3)], batch_size=3)
    pickscore.score("b", [noise_image(0)])
    assert calls == [["a", "b"]]


def test_mps_conditions(mps):
    images = [noise_image(0), noise_image(1)]
    named = load("mps:semantic", GOLDEN / "mps", "cpu", tokenizer=TOKENIZER)
    assert named.name == "mps:semantic"
    text = load("mps", GOLDEN / "mps", "cpu", tokenizer=TOKENIZER, condition="colour, light")
    assert text.name.startswith("mps:text-")
    scores = text.score("a red fox", images)
    text.set_condition("overall")
    assert text.name == "mps"
    torch.testing.assert_close(text.score("a red fox", images), mps.score("a red fox", images))
    assert not torch.allclose(scores, mps.score("a red fox", images), rtol=0, atol=1e-3)
    with pytest.raises(RewardModelError, match="did you mean 'semantic'"):
        text.set_condition("semantics")


def test_unknown_names_and_options():
    with pytest.raises(RewardModelError, match="did you mean 'pickscore'"):
        load("pick_score")
    with pytest.raises(RewardModelError, match="did you mean 'mask_threshold'"):
        load("mps", GOLDEN / "mps", mask_treshold=0.1)
    with pytest.raises(RewardModelError, match="unknown option of aesthetic 'tokenizer'"):
        load("aesthetic", GOLDEN / "mlp_head" / "model.safetensors", tokenizer=TOKENIZER)
    with pytest.raises(RewardModelError, match="unknown dtype"):
        load("pickscore", GOLDEN / "pickscore", "cpu", "int8", TOKENIZER)
    with pytest.raises(RewardModelError, match="unknown device"):
        load("pickscore", GOLDEN / "pickscore", "gpu")


def test_wrong_calls(pickscore):
    with pytest.raises(RewardModelError, match="2 prompts for 1 images"):
        pickscore.score(["a", "b"], [noise_image(0)])
    with pytest.raises(RewardModelError, match=r"\[-1, 1\]"):
        pickscore.score_tensor("a", torch.rand(1, 3, 8, 8) * 2 - 1)
    with pytest.raises(RewardModelError, match="float tensor"):
        pickscore.score_tensor("a", torch.zeros(3, 8, 8))
    with pytest.raises(RewardModelError, match="uint8"):
        pickscore.score("a", [np.zeros((8, 8, 3), dtype=np.float32)])
    with pytest.raises(RewardModelError, match="cannot read an image"):
        pickscore.score("a", [42])


def test_tokenizer_that_pools_the_wrong_position_is_refused(tmp_path):
    from tests.reward_models.layouts import clip_config

    config = clip_config()
    config["text_config"]["eos_token_id"] = 49407  # transformers' default in a configuration rebuilt by hand
    with pytest.raises(RewardModelError, match="wrong token"):
        load("pickscore", GOLDEN / "pickscore", "cpu", tokenizer=TOKENIZER, model_config=config)


def test_modes_and_sizes_of_pictures(scorer):
    images = [
        Image.new("L", (3, 2), 90),
        Image.new("RGBA", (50, 90), (9, 9, 9, 0)),
        Image.new("P", (64, 64), 3),
        Image.new("1", (500, 20)),
        Image.new("CMYK", (33, 44), (1, 2, 3, 4)),
        Image.new("LA", (64, 63), (5, 6)),
    ]
    assert torch.isfinite(scorer.score("a red fox", images)).all()


def test_import_is_light():
    code = "import sys, reward_models; bad = {'torch', 'transformers', 'open_clip'} & set(sys.modules); assert not bad"
    subprocess.run([sys.executable, "-c", code], check=True)
