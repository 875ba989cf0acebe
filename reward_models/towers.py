"""The two CLIP implementations behind the scorers, with one face: ids and pictures to projected features.

`HFClipTower` holds transformers' CLIPModel (PickScore, MPS, CLIPScore, aesthetic), `OpenClipTower` open_clip's CLIP
(HPS v1 with OpenAI names, HPS v2 and v2.1). Both are built without touching memory and filled from a checked state
dict. The features are not normalised here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.scorer import wide

if TYPE_CHECKING:
    from transformers import CLIPConfig


class ClipTower(Protocol):
    """What a CLIP scorer needs from its network."""

    image_size: int
    context_length: int
    vocab_size: int

    def encode_image(self, inputs: Tensor) -> Tensor:
        """[N, 3, S, S] normalised pixels to [N, D]."""
        ...

    def encode_text(self, ids: Tensor) -> Tensor:
        """[P, L] token ids to [P, D]."""
        ...

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the similarity scale, a scalar."""
        ...


class ConvStem(nn.Sequential):
    """Convolutions in the place of a ViT's patch embedding (Xiao et al. 2021): pictures to a grid of tokens.

    Every second 3 x 3 convolution halves the picture, each is followed by GELU, and a last one, as wide as its stride,
    brings it to one token per patch. A linear patch embedding mixes all pixels of a patch before anything nonlinear
    has seen them; how sharp an edge is, for one, is a nonlinear function of single pixels.

    Args:
        channels: of the 3 x 3 convolutions, `vision_config.stem_channels` of the model's configuration.
        patch_size: side of a patch in pixels, a multiple of what the halvings amount to.
        width: of a token.
    """

    def __init__(self, channels: Sequence[int], patch_size: int, width: int) -> None:
        halved = 2 ** ((len(channels) + 1) // 2)
        if patch_size % halved:
            raise RewardModelError(
                "stem_channels and patch_size do not fit together",
                found=f"{len(channels)} convolutions shrink a picture by {halved}, a patch has {patch_size} pixels",
                fix=f"make patch_size a multiple of {halved}, or give fewer channels",
            )
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise([3, *channels])):
            layers += [nn.Conv2d(before, after, 3, stride=2 - number % 2, padding=1), nn.GELU()]
        layers.append(nn.Conv2d(channels[-1], width, patch_size // halved, stride=patch_size // halved))
        super().__init__(*layers)

    @property
    def weight(self) -> Tensor:
        """Of the last convolution: transformers reads the dtype of its inputs off it."""
        return self[-1].weight


class HFClipTower(nn.Module):
    """transformers' CLIPModel with the names of its published checkpoints (no prefix).

    One option beyond transformers' own: `stem_channels` in the vision configuration, see `ConvStem`.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        from transformers import CLIPModel

        self.clip = CLIPModel(config)
        self.config = config
        vision = config.vision_config
        if channels := getattr(vision, "stem_channels", None):
            stem = ConvStem(channels, vision.patch_size, vision.hidden_size)
            self.clip.vision_model.embeddings.patch_embedding = stem
        self.image_size = int(vision.image_size)
        self.context_length = int(config.text_config.max_position_embeddings)
        self.vocab_size = int(config.text_config.vocab_size)

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    @property
    def patch_dtype(self) -> torch.dtype:
        return self.clip.visual_projection.weight.dtype

    def encode_image(self, inputs: Tensor) -> Tensor:
        pooled = self.clip.vision_model(pixel_values=inputs.to(self.patch_dtype)).pooler_output
        return self.clip.visual_projection(pooled)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)

    def encode_image_tokens(self, inputs: Tensor) -> Tensor:
        """Projected states of CLS and patches WITHOUT the post layer norm, [N, 1 + patches, D], as in MPS."""
        hidden = self.clip.vision_model(pixel_values=inputs.to(self.patch_dtype)).last_hidden_state
        return self.clip.visual_projection(hidden)

    def encode_text_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected hidden states of all positions [P, L, D] and of the end token [P, D]."""
        output = self.clip.text_model(input_ids=ids)
        return self.clip.text_projection(output.last_hidden_state), self.clip.text_projection(output.pooler_output)


class OpenClipTower(nn.Module):
    """open_clip's CLIP; OpenAI's own checkpoints use the same names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.model import CLIP

        try:
            self.clip = CLIP(**config)
        except (TypeError, KeyError, ValueError) as error:
            raise RewardModelError(
                "not an open_clip model configuration",
                found=f"{sorted(config)}: {error}",
                fix="it needs embed_dim, vision_cfg and text_cfg, as open_clip's own model configs",
            ) from error
        self.config = dict(config)
        size = self.clip.visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.context_length = int(self.clip.context_length)
        self.vocab_size = int(self.clip.vocab_size)

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    def encode_image(self, inputs: Tensor) -> Tensor:
        return self.clip.encode_image(inputs.to(self.clip.visual.conv1.weight.dtype))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.clip.encode_text(ids)


def open_clip_config(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of open_clip's CLIP from one of its model names, or from a mapping."""
    if isinstance(source, Mapping):
        config = dict(source)
    else:
        import open_clip

        found = open_clip.get_model_config(source)
        if found is None:
            raise RewardModelError("open_clip knows no such model", found=source, fix="see open_clip.list_models()")
        config = dict(found)
    # A config that was saved by open_clip's hub tools wraps the model part.
    return dict(config.get("model_cfg", config))


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules with parameters on the meta device; buffers are computed as usual."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def freeze(module: nn.Module, device: torch.device) -> None:
    """Evaluation mode, no parameter gradients, on the device."""
    module.requires_grad_(False).eval().to(device)


def unit(features: Tensor) -> Tensor:
    """L2-normalise the last axis in at least float32."""
    return F.normalize(wide(features), dim=-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise cosine similarity [N] of two [N, D] feature tensors."""
    return (unit(a) * unit(b)).sum(-1)
