"""Features of pictures, distances between them, and how many different pictures a set amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reward_models.addresses import named_model
from t2i_align.errors import UserError
from t2i_align.evaluation.scorers import RewardModelScorer, open_scorer

WITH_FEATURES = ("clip_score", "pickscore", "hps_v1", "hpsv2", "hpsv2.1")
"""Reward models that compare image features of a CLIP model with the prompt's."""

SIDE = 128  # pixels that larger pictures are brought to before the perceptual distance
GRID = 4  # places per side of the coarse features


class ClipEncoder:
    """Image features of a CLIP-based reward model."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self.name = f"image features of {scorer.name}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """``[N, D]``, rows of length 1."""
        inputs = torch.stack([self._scorer.preprocessor(image) for image in images]).to(self._scorer.device)
        return unit(self._scorer.encode_inputs(inputs).double().cpu().numpy())


class PerceptualEncoder:
    """Layers of a VAE encoder: distances between pictures as in LPIPS, without weights of its own.

    Every down block's output is brought to unit length at every place, ``phi_l``; then
    ``d(x, y) = mean_l mean_hw || phi_l(x) - phi_l(y) ||^2``, the squared distance of the vectors returned here. LPIPS
    (arXiv 1801.03924) weighs the layers of a classifier by human judgements; these weights are all 1, so values are
    to be compared with each other, not with published ones.
    """

    def __init__(self, vae: Any, name: str) -> None:
        self._vae, self.name = vae, name

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Look at pictures, all brought to the size of the largest, ``SIDE`` at most.

        Returns:
            ``[N, D]`` float32, squared Euclidean distances of whose rows are the perceptual distances; and ``[N, d]``,
            the deepest layer over a coarse grid, for variety where no CLIP model is at hand.
        """
        side = min(SIDE, max(max(image.size) for image in images)) // 8 * 8 or 8
        resized = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]).copy())
        sample = pixels.permute(0, 3, 1, 2).to(self._vae.device, torch.float32) / 127.5 - 1.0
        layers: list[Tensor] = []
        sample = self._vae.encoder.conv_in(sample)
        for block in self._vae.encoder.down_blocks:
            sample = block(sample)
            places = sample.shape[-1] * sample.shape[-2]
            direction = sample / sample.norm(dim=1, keepdim=True).clamp_min(1e-8)
            layers.append(direction.flatten(1) / places**0.5)
        close = torch.cat(layers, dim=1) / len(layers) ** 0.5
        coarse = torch.nn.functional.adaptive_avg_pool2d(direction, GRID).flatten(1)
        return close.cpu().numpy(), coarse.cpu().numpy()


def open_encoder(spec: str | None, scorers: Sequence[str], device: str | None) -> ClipEncoder | None:
    """The CLIP model behind a scorer.

    Args:
        spec: a reward model as in ``open_scorer``; None takes the first of ``scorers`` that has image features.
        scorers: as they were asked for.

    Returns:
        None where none was named and none of the scorers has image features.

    Raises:
        UserError: the named one has none.
    """
    if spec is None:
        spec = next((one for one in scorers if _name(one) in WITH_FEATURES), None)
        if spec is None:
            return None
    opened = open_scorer(spec, device) if _name(spec) in WITH_FEATURES else None
    if not isinstance(opened, RewardModelScorer):
        raise UserError("The scorer has no image features.", spec, f"name one of: {', '.join(WITH_FEATURES)}")
    return ClipEncoder(opened.inner)


def _name(spec: str) -> str:
    return named_model(spec.partition("=")[0])[0]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows brought to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def mean_pairwise_distance(vectors: np.ndarray) -> float:
    """Mean of ``1 - cos`` over all pairs of unit rows ``[k, D]``, k >= 2."""
    count = len(vectors)
    total = vectors.sum(axis=0)
    return float(1.0 - (total @ total - count) / (count * (count - 1)))


def mean_pairwise_square(vectors: np.ndarray) -> float:
    """Mean squared distance over all pairs of rows ``[k, D]``, k >= 2."""
    spread = vectors - vectors.mean(axis=0)
    return float(2.0 * (spread**2).sum() / (len(vectors) - 1))


def vendi_score(vectors: np.ndarray) -> float:
    """How many different pictures a set amounts to: ``exp(-sum_i l_i log l_i)``, l the eigenvalues of K / n with
    ``K_ij = cos(x_i, x_j)``; 1 for n equal pictures, n for n unrelated ones (arXiv 2210.02410).

    Args:
        vectors: unit rows ``[n, D]``.
    """
    gram = vectors @ vectors.T if len(vectors) <= vectors.shape[1] else vectors.T @ vectors
    eigenvalues = np.linalg.eigvalsh(gram / len(vectors))
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def distance_to_others(vectors: np.ndarray) -> np.ndarray:
    """For each unit row ``[n, D]``, its mean ``1 - cos`` to the other n - 1: ``[n]``."""
    count = len(vectors)
    return 1.0 - (vectors @ vectors.sum(axis=0) - 1.0) / (count - 1)
