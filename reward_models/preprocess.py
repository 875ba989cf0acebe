"""From a picture to the tensor a tower sees, bit for bit as the official pipelines do it.

All CLIP-style scorers normalise with OpenAI's mean and std and interpolate bicubically; they differ in when the
picture becomes RGB, in which side is resized to the target and in rounding. Those differences move scores, so each
pipeline is named, and the name is stored with every score.

==================  ==============================  ==================  =============================
name                RGB conversion                  resize              crop or pad
==================  ==============================  ==================  =============================
clip_pil            first                           PIL, short side     crop, offset floor(excess / 2)
openai              last (PIL resizes RGBA, P ...)  PIL, short side     crop, offset round(excess / 2)
hpsv2_rgb_first     first                           tensor, long side   zero pad, then normalise
hpsv2_no_antialias  first                           tensor, long side   the same, resize not antialiased
==================  ==============================  ==================  =============================

What a pipeline is given is upright RGB, as `decode_image` shows a picture, so the second column matters only with
`decoding="published"`: then it is the picture in its file's own mode, as the official codes read it. A name without
`+shown` has always meant that.

The last pipeline is what HPSv2 computed with torchvision before 0.17, when its tables were made. Every pipeline has a
differentiable twin on float tensors, `Preprocessor.tensor`: same geometry, tensor interpolation, no rounding to 8 bit
and no clamping, so gradients reach every pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.functional as tvf
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from reward_models.errors import unknown_name
from reward_models.images import DECODINGS, MAX_PIXELS, PUBLISHED, SHOWN, ImageSource, check_size, decode_image

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessor:
    """One named pipeline at one target size; picklable, so decoding workers can carry it.

    Args:
        name: a key of `PIPELINES`.
        size: side S of the square output in pixels.
        decoding: of `decode_image`. `published` hands the picture over as its file holds it, which the official
            pipelines did: neither turned by EXIF nor composited, in its own mode.
    """

    name: str
    size: int
    decoding: str = SHOWN

    def __post_init__(self) -> None:
        if self.decoding not in DECODINGS:
            raise unknown_name("decoding", self.decoding, DECODINGS)
        if self.name not in PIPELINES:
            raise unknown_name("preprocessing", self.name, PIPELINES)

    def __call__(self, source: ImageSource) -> Tensor:
        """Decode and preprocess one picture to a float32 tensor [3, S, S]."""
        return PIPELINES[self.name][0](decode_image(source, decoding=self.decoding), self.size)

    def tensor(self, pixels: Tensor) -> Tensor:
        """Preprocess a batch [N, 3, H, W] with values in [0, 1] differentiably to [N, 3, S, S]."""
        check_size(pixels.shape[-1], pixels.shape[-2], MAX_PIXELS, "pixels")
        return normalise(PIPELINES[self.name][1](pixels, self.size))

    def __str__(self) -> str:
        decoding = "" if self.decoding == PUBLISHED else f"+{self.decoding}"
        return f"{self.name}{decoding}@{self.size}"


def normalise(pixels: Tensor) -> Tensor:
    """(x - mean) / std per channel with OpenAI's constants, [..., 3, H, W] in [0, 1]."""
    mean = torch.tensor(OPENAI_MEAN, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    std = torch.tensor(OPENAI_STD, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    return (pixels - mean) / std


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the short side at `size`, the long side truncated as both CLIP pipelines do."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def long_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the long side at `size`, the short side by Python's round, at least one pixel."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize_short_side(image: Image.Image, size: int) -> Image.Image:
    height, width = short_side_size(image.height, image.width, size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _clip_pil(image: Image.Image, size: int) -> Tensor:
    resized = _resize_short_side(image.convert("RGB"), size)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)))
    # The historical processor multiplies by 1/255 in float64 and only then goes to float32.
    values = (cropped.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.asarray(OPENAI_MEAN, dtype=np.float32), np.asarray(OPENAI_STD, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)))


def _openai(image: Image.Image, size: int) -> Tensor:
    resized = _resize_short_side(image, size)
    # Python's round is half to even, as torchvision's CenterCrop; clip_pil floors and may differ by one
    # pixel.
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    rgb = resized.crop((left, top, left + size, top + size)).convert("RGB")
    return normalise(_to_unit_tensor(rgb))


def _hpsv2(image: Image.Image, size: int) -> Tensor:
    return normalise(_resize_long_side(_to_unit_tensor(image.convert("RGB")), size, antialias=True))


def _hpsv2_no_antialias(image: Image.Image, size: int) -> Tensor:
    return normalise(_resize_long_side(_to_unit_tensor(image.convert("RGB")), size, antialias=False))


def _to_unit_tensor(image: Image.Image) -> Tensor:
    """RGB image to float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


def _resize_long_side(pixels: Tensor, size: int, antialias: bool) -> Tensor:
    """Longest side to `size`, then zero padding to a square.

    The official transform forgets to pad a picture whose longest side already is `size` and then crashes in the
    position embedding; here it is padded like any other.
    """
    height, width = pixels.shape[-2:]
    if max(height, width) != size:
        target = list(long_side_size(height, width, size))
        pixels = tvf.resize(pixels, target, InterpolationMode.BICUBIC, antialias=antialias)
    pad_h, pad_w = size - pixels.shape[-2], size - pixels.shape[-1]
    left, top = pad_w // 2, pad_h // 2
    return torch.nn.functional.pad(pixels, (left, pad_w - left, top, pad_h - top))


def _short_side_tensor(pixels: Tensor, size: int, offset: Callable[[int], int]) -> Tensor:
    height, width = short_side_size(pixels.shape[-2], pixels.shape[-1], size)
    if (height, width) != tuple(pixels.shape[-2:]):
        pixels = tvf.resize(pixels, [height, width], InterpolationMode.BICUBIC, antialias=True)
    top, left = offset(height - size), offset(width - size)
    return pixels[..., top : top + size, left : left + size]


def _clip_pil_tensor(pixels: Tensor, size: int) -> Tensor:
    return _short_side_tensor(pixels, size, lambda excess: excess // 2)


def _openai_tensor(pixels: Tensor, size: int) -> Tensor:
    return _short_side_tensor(pixels, size, lambda excess: round(excess / 2))


def _hpsv2_tensor(pixels: Tensor, size: int) -> Tensor:
    return _resize_long_side(pixels, size, antialias=True)


def _hpsv2_no_antialias_tensor(pixels: Tensor, size: int) -> Tensor:
    return _resize_long_side(pixels, size, antialias=False)


PIPELINES: dict[str, tuple[Callable[[Image.Image, int], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "clip_pil": (_clip_pil, _clip_pil_tensor),
    "openai": (_openai, _openai_tensor),
    "hpsv2_rgb_first": (_hpsv2, _hpsv2_tensor),
    "hpsv2_no_antialias": (_hpsv2_no_antialias, _hpsv2_no_antialias_tensor),
}
