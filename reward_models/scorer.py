"""What every scorer does: the protocol, batching, decoding beside the model.

    prompt ──tokenise──> text tower ──┐ (cached per prompt)
                                      ├──> similarity or head ──> score [N]
    image ──preprocess──> image tower ┘

A scorer with one network derives from `reward_models.network.NetworkScorer` and says how prompts become tensors and
how prepared pictures are scored against them; everything else lives here once.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reward_models.errors import RewardModelError
from reward_models.images import DECODINGS, ImageSource, decode_image
from reward_models.preprocess import Preprocessor

Prompts: TypeAlias = "str | Sequence[str]"
# A picture ready for one or several towers, keyed by the name of its preprocessing: a tensor, but for functions of
# pictures (`reward_models.own`) the picture itself; a batch holds a stacked tensor or a list.
Prepared: TypeAlias = dict[str, Any]
Decoded: TypeAlias = dict[str, Image.Image]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,  # finite-difference checks
}


@runtime_checkable
class Scorer(Protocol):
    """Anything that rates pictures for prompts; higher is better, values compare within one prompt."""

    name: str
    version: str
    preprocessing: str

    def score(self, prompts: Prompts, images: Sequence[ImageSource], batch_size: int = 32) -> Tensor: ...

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor: ...

    def compare(self, prompt: str, images: Sequence[ImageSource]) -> Tensor: ...


class BaseScorer(ABC):
    """Checks, batching and decoding shared by all scorers.

    Attributes:
        name: key of `SCORERS`, with the condition appended for a conditioned scorer (`mps:aesthetic`).
        version: hash of the weights, then every setting that differs from the scorer's default.
        device: where the model runs.
        preference_scale: s in P(a over b) = sigmoid(s * (score_a - score_b)); 1 where the score is a logit.
        differentiable: whether `score_tensor` works.
    """

    name: str
    version: str
    device: torch.device
    preference_scale: float = 1.0
    differentiable: bool = True

    @property
    @abstractmethod
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        """The image pipelines this scorer needs; more than one only for an ensemble."""

    @abstractmethod
    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        """Score preprocessed pictures, `{preprocessing: [N, 3, S, S]}`; [N] on the device."""

    @abstractmethod
    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        """Score float pixels [N, 3, H, W] in [0, 1], differentiable in `pixels`; [N] on the scorer's device.

        Values may leave [0, 1] a little (an unclamped decoder does that); they are not clamped, which would kill
        gradients. The result differs from `score` of the same picture by the rounding to 8 bit.
        """

    @property
    def preprocessing(self) -> str:
        """Names and sizes of the image pipelines, as stored with every score."""
        return "; ".join(str(preprocessor) for preprocessor in self.preprocessors)

    def cut_prompts(self, prompts: Sequence[str]) -> tuple[int, int] | None:
        """How many prompts are longer than what the scorer reads of them, and how many tokens that is; None where it
        reads all of any prompt."""
        tokenise = getattr(self, "tokenise", None)
        if tokenise is None:
            return None
        return sum(length > tokenise.length for length in tokenise.lengths(list(prompts))), tokenise.length

    def prepare(self, image: ImageSource | Decoded) -> Prepared:
        """Decode and preprocess one picture on the CPU; what decoding workers run."""
        return prepare_image(image, self.preprocessors)

    @torch.no_grad()
    def score(self, prompts: Prompts, images: Sequence[ImageSource] | ImageSource, batch_size: int = 32) -> Tensor:
        """Score pictures of any size and mode.

        Args:
            prompts: one prompt per image, or one string for all of them.
            images: PIL images, paths, encoded bytes or uint8 arrays.
            batch_size: images per forward pass; it changes speed and memory, not scores.

        Returns:
            float32 [N] on the CPU.

        Raises:
            RewardModelError: a picture cannot be decoded, or the number of prompts does not match.
        """
        if batch_size < 1:
            raise RewardModelError("batch_size must be at least 1", found=str(batch_size))
        sources: list[ImageSource]
        sources = (
            [images]
            if isinstance(images, (str, bytes, bytearray, os.PathLike, Image.Image, np.ndarray))
            else list(images)
        )
        # PIL decodes lazily and is not safe when two threads touch one image; a repeated image is common.
        ready = [self._decoded(source) if isinstance(source, Image.Image) else source for source in sources]
        texts = expand_prompts(prompts, len(sources))
        scores = []
        for start, prepared in self._prepared_batches(ready, batch_size):
            scores.append(self.score_prepared(texts[start : start + batch_size], prepared).float().cpu())
        return torch.cat(scores) if scores else torch.empty(0)

    def compare(self, prompt: str, images: Sequence[ImageSource]) -> Tensor:
        """Probability [N] of each image to be the preferred one: softmax(preference_scale * score)."""
        return torch.softmax(self.preference_scale * self.score(prompt, images), dim=0)

    def _decoded(self, image: ImageSource) -> Decoded:
        return decode_once(image, self.preprocessors)

    def _prepared_batches(
        self, images: Sequence[ImageSource | Decoded], batch_size: int
    ) -> Iterator[tuple[int, Prepared]]:
        """Preprocess in threads, one batch ahead of the model (PIL and torch release the GIL)."""
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:

            def submit(start: int) -> list[Future[Prepared]]:
                return [pool.submit(self.prepare, image) for image in images[start : start + batch_size]]

            ahead = submit(0)
            for start in range(0, len(images), batch_size):
                current, ahead = ahead, submit(start + batch_size)
                yield start, stack_prepared([future.result() for future in current])


def prepare_image(image: ImageSource | Decoded, preprocessors: Sequence[Preprocessor]) -> Prepared:
    """Decode one picture once and run it through every pipeline."""
    decoded = image if isinstance(image, dict) else decode_once(image, preprocessors)
    return {str(preprocessor): preprocessor(decoded[preprocessor.decoding]) for preprocessor in preprocessors}


def decode_once(image: ImageSource, preprocessors: Sequence[Preprocessor]) -> Decoded:
    """One picture in every decoding that the pipelines ask for, by its name."""
    asked = {preprocessor.decoding for preprocessor in preprocessors}
    return {name: decode_image(image, decoding=name) for name in DECODINGS if name in asked}


def stack_prepared(items: Sequence[Prepared]) -> Prepared:
    """Join pictures prepared one by one into a batch per preprocessing."""
    columns = {key: [item[key] for item in items] for key in items[0]}
    return {key: torch.stack(parts) if isinstance(parts[0], Tensor) else parts for key, parts in columns.items()}


def expand_prompts(prompts: Prompts, count: int) -> list[str]:
    """One prompt per image from one string or a list of the right length."""
    if isinstance(prompts, str):
        return [prompts] * count
    texts = list(prompts)
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise RewardModelError(
            "give one prompt per image, or one string for all images",
            found=f"{len(texts)} prompts for {count} images",
        )
    return texts


def check_pixels(pixels: Tensor) -> None:
    """Raise unless `pixels` looks like float RGB in [0, 1]: [-1, 1] and [0, 255] are the usual mistakes."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise RewardModelError(
            "pixels must be a float tensor of shape [N, 3, H, W]",
            found=f"{pixels.dtype} {tuple(pixels.shape)}",
        )
    if pixels.numel():
        low, high = (float(value) for value in pixels.detach().aminmax())
        if low < -0.5 or high > 1.5:
            raise RewardModelError(
                "pixels must lie in [0, 1]",
                found=f"values from {low:.3g} to {high:.3g}",
                fix="map [-1, 1] with x / 2 + 0.5, or divide 8-bit values by 255",
            )


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """A supported computing precision from its name."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise RewardModelError("unknown dtype", found=str(name), fix=f"choose from: {', '.join(DTYPES)}")
    return DTYPES[name]


def torch_device(name: str | torch.device) -> torch.device:
    """A device from its name; `auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RewardModelError("unknown device", found=str(name), fix="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RewardModelError("no CUDA device here", found=str(name), fix="use device='cpu' or 'auto'")
    return device


def version_string(digest: str, **settings: Any) -> str:
    """`sha256:...` plus `+key=value` for every setting that is not the default (pass None for a default)."""
    return "".join([digest, *(f"+{key}={value}" for key, value in settings.items() if value is not None)])


def short_hash(text: str) -> str:
    """Eight hex digits that identify a text of the user's."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


def wide(tensor: Tensor) -> Tensor:
    """At least float32: cosines that differ by 1e-3 decide pairs, half precision would flip them."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
