"""Frozen features of pictures and captions, by the word that ``personal.features`` holds.

`pixels`
    No network: how much of each colour there is, and where light and colour lie. It works offline and in
    milliseconds, and is what the built-in world uses, whose users care about colour and brightness. It knows nothing
    of what a picture shows.
anything else
    A CLIP model in the transformers layout (folder, hub id, or ``shapes:pickscore``), such as
    laion/CLIP-ViT-H-14-laion2B-s32B-b79K: what taste in real pictures needs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i_align.errors import UserError

PIXELS = "pixels"
BUILT_IN = "shapes:"
BINS = 5  # levels per channel of the colour histogram
THUMBNAIL = 4  # side of the coarse picture
WORKING_SIDE = 64  # pictures are brought to this side first, so that a histogram does not depend on their size
WORDS = 64  # width of the hashed bag of words
BATCH = 16


class Extractor(Protocol):
    """Pictures and captions to vectors.

    Attributes:
        name: the word it was opened with; saved with the adapter.
        fingerprint: changes when the features change.
        width: F of pictures.
        caption_width: C of captions.
    """

    name: str
    fingerprint: str
    width: int
    caption_width: int

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """``[N, F]`` float32 on the CPU, of RGB pictures."""
        ...

    def captions(self, texts: Sequence[str]) -> Tensor:
        """``[N, C]`` float32 on the CPU."""
        ...


class PixelFeatures:
    """A soft colour histogram (square roots of shares, so that small figures count) and a coarse picture."""

    name, fingerprint = PIXELS, "pixels-1"
    width, caption_width = BINS**3 + 3 * THUMBNAIL**2, WORDS

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Extractor`."""
        rows = [_pixel_row(image) for image in images]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, self.width)

    def captions(self, texts: Sequence[str]) -> Tensor:
        """A signed, hashed bag of words, scaled to length 1."""
        rows = torch.zeros(len(texts), WORDS)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.casefold()):
                address = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
                row[address % WORDS] += 1.0 if address >> 63 else -1.0
        return torch.nn.functional.normalize(rows, dim=1)


class ClipFeatures:
    """Unit features of a CLIP model's two towers.

    Args:
        name: as in the configuration.
        checkpoint: folder or hub id.
        device: where the towers run.
    """

    def __init__(self, name: str, checkpoint: str, device: torch.device | str) -> None:
        from reward_models.errors import RewardModelError
        from reward_models.hf_clip import clip_tokenise, load_clip_folder
        from reward_models.images import PUBLISHED
        from reward_models.preprocess import Preprocessor

        self.name, self._device = name, torch.device(device)
        try:
            self._tower, version, folder = load_clip_folder(checkpoint, None, self._device, torch.float32)
            self._tokenise = clip_tokenise(None, folder, self._tower)
        except RewardModelError as error:
            fix = error.fix or "give a transformers CLIP folder, a hub id, or pixels"
            raise UserError(f"personal.features cannot be used: {error.what}.", error.found, fix) from error
        # Pictures come decoded, so they are taken as they are; and fingerprints of stored features stay what they were.
        self._prepare = Preprocessor("clip_pil", self._tower.image_size, PUBLISHED)
        self.fingerprint = f"clip-{version}-{self._prepare}"
        self.width = self.caption_width = int(self._tower.config.projection_dim)

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Extractor`."""
        from reward_models.towers import unit

        rows = []
        for start in range(0, len(images), BATCH):
            inputs = torch.stack([self._prepare(image) for image in images[start : start + BATCH]])
            rows.append(unit(self._tower.encode_image(inputs.to(self._device))).float().cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.width)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """See `Extractor`."""
        from reward_models.towers import unit

        rows = []
        for start in range(0, len(texts), BATCH):
            ids = self._tokenise(list(texts[start : start + BATCH])).to(self._device)
            rows.append(unit(self._tower.encode_text(ids)).float().cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.caption_width)


def open_extractor(word: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor that a word names, see the module.

    Raises:
        UserError: no such model, or not a CLIP model.
    """
    if word == PIXELS:
        return PixelFeatures()
    if word.startswith(BUILT_IN):
        from t2i_align.shapes.assets import resolve

        return ClipFeatures(word, str(resolve(word)), device)
    return ClipFeatures(word, word, device)


def _pixel_row(image: Image.Image) -> np.ndarray:
    """``[F]`` float32: trilinear histogram over ``BINS`` levels of each channel, then the thumbnail in [-1, 1]."""
    small = image.convert("RGB").resize((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32).reshape(-1, 3) / 255 * (BINS - 1)
    lower = np.minimum(pixels.astype(np.int64), BINS - 2)
    upper_share = pixels - lower
    histogram = np.zeros(BINS**3, dtype=np.float64)
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, upper_share, 1 - upper_share), axis=1)
        cell = (lower + np.array(corner)) @ np.array([BINS**2, BINS, 1])
        histogram += np.bincount(cell, weights=share, minlength=BINS**3)
    coarse = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    return np.concatenate([np.sqrt(histogram / len(pixels)), (coarse / 127.5 - 1).reshape(-1)]).astype(np.float32)
