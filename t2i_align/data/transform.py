"""One geometry for both pictures of a pair: flip, scale the short side to the resolution, crop a square.

Scaling keeps the aspect ratio (Lanczos, which low-passes when it shrinks). The crop's place is given relative
to the free space, so pictures of different shapes share it. What SDXL is told is what was done: the size of
the upright picture before scaling, and the crop's corner in the scaled (and flipped) picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from t2i_align.config.schema import DataConfig
from t2i_align.errors import UserError
from t2i_align.randomness import addressed_uniform

if TYPE_CHECKING:
    from t2i_align.backbones import Backbone

VERSION = 1  # part of the cache key; raise it when pixels change


@dataclass(frozen=True)
class Geometry:
    """What is done to both pictures of a pair.

    Attributes:
        flip: mirror left and right.
        down, right: position of the crop in [0, 1] of the free space; 0.5 is the centre.
    """

    flip: bool = False
    down: float = 0.5
    right: float = 0.5


@dataclass(frozen=True)
class TransformedImage:
    """A training picture and where it came from.

    Attributes:
        pixels: ``[3, R, R]`` float32 in [-1, 1].
        original_size: (height, width) of the upright picture in pixels.
        crop_top_left: (top, left) of the crop in the scaled picture, in pixels.
    """

    pixels: Tensor
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]


@dataclass(frozen=True)
class PairTransform:
    """How a run's pictures become squares.

    Attributes:
        resolution: side R in pixels.
        center_crop: centre crop; else a random crop per pair and epoch.
        random_flip: mirror half of the pairs, anew each epoch.
        seed: of the draws.
    """

    resolution: int
    center_crop: bool = True
    random_flip: bool = False
    seed: int = 0

    @classmethod
    def of(cls, config: DataConfig, seed: int) -> PairTransform:
        """The transform of a run."""
        return cls(config.resolution, config.center_crop, config.random_flip, seed)

    def geometry(self, pair_id: str, epoch: int) -> Geometry:
        """The pair's geometry in one pass over the data."""
        return Geometry(
            flip=self.random_flip and self._draw("flip", epoch, pair_id) < 0.5,
            down=0.5 if self.center_crop else self._draw("crop_down", epoch, pair_id),
            right=0.5 if self.center_crop else self._draw("crop_right", epoch, pair_id),
        )

    def __call__(self, image: Image.Image, geometry: Geometry) -> TransformedImage:
        """Apply a geometry to an upright RGB picture.

        Only the cropped part is resampled, so an extreme aspect ratio costs nothing.
        """
        if geometry.flip:
            image = ImageOps.mirror(image)
        width, height = image.size
        side, short = self.resolution, min(width, height)
        top = _offset(height * side // short - side, geometry.down)
        left = _offset(width * side // short - side, geometry.right)
        scale = short / side
        box = (left * scale, top * scale, (left + side) * scale, (top + side) * scale)
        square = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
        pixels = torch.from_numpy(np.array(square, dtype=np.float32)).permute(2, 0, 1).contiguous()
        return TransformedImage(pixels / 127.5 - 1.0, (height, width), (top, left))

    def _draw(self, purpose: str, epoch: int, pair_id: str) -> float:
        return addressed_uniform(self.seed, purpose, epoch, pair_id)


def check_resolution(resolution: int, backbone: Backbone) -> None:
    """Refuse a side that the VAE and the denoiser cannot halve as often as they do.

    Args:
        resolution: side of the training picture in pixels.
        backbone: the model; one that was loaded without its denoiser is asked about its VAE only.

    Raises:
        UserError: names the nearest sizes that work.
    """
    levels = 1 if backbone.unet is None else len(backbone.unet.config.block_out_channels)
    multiple = resolution_multiple(backbone.vae_scale_factor, levels)
    if resolution % multiple == 0:
        return
    below, above = resolution // multiple * multiple, (resolution // multiple + 1) * multiple
    nearest = f"{below} or {above}" if below else f"{above}"
    raise UserError(
        "data.resolution does not fit the model.",
        f"{resolution} is not a multiple of {multiple}",
        f"set data.resolution to {nearest}",
    )


def resolution_multiple(vae_scale_factor: int, unet_levels: int) -> int:
    """Pixels that picture sides must be a multiple of: each UNet level but the last halves the latents."""
    return vae_scale_factor * 2 ** (unet_levels - 1)


def _offset(free: int, position: float) -> int:
    """First pixel of the crop: ``floor(position * (free + 1))``, or the middle for 0.5 exactly."""
    return free // 2 if position == 0.5 else min(int(position * (free + 1)), free)
