"""LAION's aesthetic predictor: a small head on the unit image embedding of a CLIP tower, about 4 to 7.

score(x) = head(image(x) / |image(x)|). It ignores the prompt and is easily pleased by saturated portraits. The
published v2 head (`sac+logos+ava1-l14-linearMSE.pth`) belongs to OpenAI's ViT-L/14. It was fitted to ratings by least
squares, not to preferences, so `compare` is only a convenience.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.loading import (
    fit_state_dict,
    folder_weights,
    read_json,
    read_state_dict,
    resolve_file,
    resolve_folder,
    weights_digest,
)
from reward_models.mlp_head import load_head
from reward_models.network import NetworkScorer, TextFeatures
from reward_models.preprocess import Preprocessor
from reward_models.scorer import version_string, wide
from reward_models.towers import freeze, without_memory

TOWER = "openai/clip-vit-large-patch14"
_IMAGE_PARTS = ("vision_model.", "visual_projection.")


class AestheticScorer(NetworkScorer):
    """See the module docstring."""

    def __init__(
        self,
        version: str,
        tower: nn.Module,
        head: nn.Module,
        preprocessor: Preprocessor,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.name, self.version, self.device, self.preprocessor = "aesthetic", version, device, preprocessor
        self.model = nn.ModuleDict({"tower": tower, "head": head})

    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Nothing: the score does not depend on the prompt."""
        return (torch.empty(len(prompts), 0),)

    def score_features(self, text: TextFeatures, inputs: Tensor) -> Tensor:
        tower = self.model["tower"]
        return self.score_embeddings(tower(pixel_values=inputs.to(tower.dtype)).image_embeds)

    def score_embeddings(self, embeddings: Tensor) -> Tensor:
        """Score stored CLIP image embeddings [N, D] (projected, of any length), [N]."""
        head = self.model["head"]
        return head(F.normalize(wide(embeddings.to(self.device)), dim=-1).to(next(head.parameters()).dtype))


def load_aesthetic(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tower: str | Path = TOWER,
) -> AestheticScorer:
    """Load a head (`.pth` state dict or safetensors) and the image half of a CLIP folder or hub id."""
    if checkpoint is None:
        raise RewardModelError(
            "aesthetic needs its head",
            fix="pass checkpoint=sac+logos+ava1-l14-linearMSE.pth, "
            "from github.com/christophschuhmann/improved-aesthetic-predictor",
        )
    head_file = resolve_file(checkpoint)
    head, width = load_head(read_state_dict(head_file), head_file, torch.promote_types(dtype, torch.float32))
    vision, tower_file = _load_image_tower(tower, dtype)
    if vision.config.projection_dim != width:
        raise RewardModelError(
            "the aesthetic head and the image tower do not belong together",
            found=f"the head takes {width} numbers, the tower gives {vision.config.projection_dim}",
            fix="the published v2 head needs the ViT-L/14 (768)",
        )
    freeze(vision, device)
    version = version_string(weights_digest([head_file, tower_file]))
    preprocessor = Preprocessor("openai", int(vision.config.image_size))
    return AestheticScorer(version, vision, head.to(device), preprocessor, device)


def _load_image_tower(source: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Path]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = resolve_folder(source)
    weights = folder_weights(folder)
    content = read_json(folder / "config.json")
    vision = dict(content.get("vision_config", content))
    vision["projection_dim"] = content.get("projection_dim", vision.get("projection_dim"))
    with without_memory():
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(vision))
    state = {name: value for name, value in read_state_dict(weights).items() if name.startswith(_IMAGE_PARTS)}
    fit_state_dict(tower, state, weights, dtype)
    return tower, weights
