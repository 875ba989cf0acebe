"""Preprocessing against the tensors of the official pipelines."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.errors import RewardModelError
from reward_models.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocessor, long_side_size, short_side_size
from tests.reward_models.golden import expected, image_path

OFFICIAL = {
    "clip_pil": "clip_pil",
    "openai": "imagereward",
    "hpsv2_rgb_first": "hpsv2_rgb_first",
    "hpsv2_no_antialias": "hpsv2_no_antialias",
}
IMAGES = sorted(expected("preprocess")["clip_pil"])


def largest_error(tensor, reference):
    return max(abs(float(tensor[c, y, x]) - value) for c, y, x, value in reference["samples"])


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("image", IMAGES)
def test_matches_official_pipeline(name, image):
    reference = expected("preprocess")[OFFICIAL[name]][image]
    tensor = Preprocessor(name, 224, "published")(image_path(image))
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == (3, 224, 224)
    if reference["shape"] == [3, 224, 224]:
        assert largest_error(tensor, reference) < 2e-6
    if name in ("clip_pil", "openai"):  # PIL's integer arithmetic: bit for bit on any version
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == reference["sha256_f32le"]


def test_hpsv2_pads_a_picture_whose_longest_side_is_the_target():
    """The official code leaves 160 x 224 unpadded and then crashes; the content must be the same, framed."""
    reference = expected("preprocess")["hpsv2_rgb_first"]["longest224_rgb"]
    assert reference["shape"] == [3, 160, 224]
    tensor = Preprocessor("hpsv2_rgb_first", 224)(image_path("longest224_rgb"))
    assert largest_error(tensor[:, 32:192], reference) < 2e-6
    black = torch.tensor([-m / s for m, s in zip(OPENAI_MEAN, OPENAI_STD, strict=True)])
    torch.testing.assert_close(tensor[:, :32], black[:, None, None].expand(3, 32, 224))
    torch.testing.assert_close(tensor[:, 192:], black[:, None, None].expand(3, 32, 224))


@pytest.mark.parametrize("image", IMAGES)
def test_differentiable_twin_matches_torchvision(image):
    pixels = torch.from_numpy(np.array(Image.open(image_path(image)).convert("RGB"))).permute(2, 0, 1)[None] / 255
    reference = expected("preprocess")["tensor_differentiable"][image]
    assert largest_error(Preprocessor("openai", 224).tensor(pixels)[0], reference) < 2e-6


@pytest.mark.parametrize("name", OFFICIAL)
def test_twin_stays_close_to_the_picture_pipeline(name):
    """Block means agree to 1e-3: only PIL's rounding to 8 bit separates the two."""
    picture = Image.open(image_path("wide_rgb"))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    preprocess = Preprocessor(name, 224)
    difference = preprocess.tensor(pixels)[0] - preprocess(picture)
    assert torch.nn.functional.avg_pool2d(difference[None], 28).abs().max() < 1e-3


def test_twin_has_gradients_at_every_pixel_even_outside_the_unit_interval():
    pixels = torch.full((1, 3, 32, 32), 1.2, requires_grad=True)
    Preprocessor("clip_pil", 64).tensor(pixels).sum().backward()
    assert (pixels.grad > 0).all()


def test_sizes_round_as_the_official_codes_do():
    assert short_side_size(100, 105, 224) == (224, 235)  # 235.2 truncated
    assert short_side_size(105, 100, 224) == (235, 224)
    assert long_side_size(150, 300, 224) == (112, 224)
    assert long_side_size(1, 150, 64) == (1, 64)  # 0.43 would round to no pixel at all


def test_preprocessor_is_a_picklable_value_with_a_name():
    one = Preprocessor("hpsv2_rgb_first", 224)
    assert pickle.loads(pickle.dumps(one)) == one
    assert str(one) == "hpsv2_rgb_first+shown@224"
    with pytest.raises(RewardModelError, match="did you mean 'clip_pil'"):
        Preprocessor("clip_pill", 224)
