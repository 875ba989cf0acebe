"""MPS (Zhang et al. 2024): CLIP with a condition that says which words of the prompt matter.

The prompt's tokens T, its end token t, the condition's tokens C and the image's tokens V are projected CLIP states. A
prompt token is read only if it is close to some word of the condition:

    m_i = max_j T_i . C_j,   keep_i = (m_i / max_i m_i > threshold)
    score = exp(logit_scale) * cos(t, F(V, T, keep)_CLS)

with F the fusion module (`reward_models.mps_fusion`). Padding tokens take part. Two deliberate differences from the
released code: the maximum is taken per prompt, so a score never depends on the rest of the batch, and the threshold
is the evaluation scripts' 0.3 (the model's own forward uses 0.01; `mask_threshold` sets it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.errors import RewardModelError, unknown_name
from reward_models.hf_clip import clip_tokenise, clip_tower
from reward_models.loading import (
    fit_state_dict,
    folder_weights,
    read_json,
    read_state_dict,
    resolve_file,
    weights_digest,
)
from reward_models.mps_fusion import CrossModel, FusionConfig
from reward_models.network import NetworkScorer, TextFeatures
from reward_models.preprocess import Preprocessor
from reward_models.scorer import short_hash, version_string, wide
from reward_models.tokenizers import ClipTokenise, has_tokenizer
from reward_models.towers import HFClipTower, cosine, freeze, without_memory

_AESTHETIC = "light, color, clarity, tone, style, ambiance, artistry"
_DETAIL = "shape, face, hair, hands, limbs, structure, instance, texture"
_SEMANTIC = "quantity, attributes, position, number, location"
CONDITIONS = {
    "overall": f"{_AESTHETIC}, {_DETAIL}, {_SEMANTIC}, word, things.",
    "aesthetic": f"{_AESTHETIC}.",
    "detail": f"{_DETAIL}.",
    "semantic": f"{_SEMANTIC}.",
}
MASK_THRESHOLD = 0.3
CLIP_CONFIG_FILE, FUSION_CONFIG_FILE = "clip_config.json", "cross_config.json"
CONVERT_FIX = (
    "the published MPS file is a pickled module; run `t2i-align rewards convert-mps FILE FOLDER` once, "
    "which executes nothing from it, and load the folder"
)
# The published model: CLIP ViT-H/14 of laion2B, see the transformers folder
# laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
VIT_H14_CONFIG: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "projection_dim": 1024,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
_PUBLISHED_VOCABULARY = 49408
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class MPSNetwork(nn.Module):
    """CLIP tower and fusion module, `model.*` and `cross_model.*` of the checkpoint."""

    def __init__(
        self,
        tower: HFClipTower,
        fusion: FusionConfig,
        mask_threshold: float = MASK_THRESHOLD,
        conditions: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.tower, self.fusion, self.cross_model = tower, fusion, CrossModel(fusion)
        self.mask_threshold = mask_threshold
        self.conditions = dict(conditions or {})  # texts of its own, by name; stored with the checkpoint

    def token_ratios(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """r_i = m_i / max_i m_i of prompt tokens [P, L, D] under a condition [L, D], float32 [P, L]."""
        with torch.autocast(tokens.device.type, enabled=False):
            closest = (wide(tokens) @ wide(condition).T).amax(-1)
        top = closest.amax(-1, keepdim=True)
        return closest / torch.where(top == 0, torch.ones_like(top), top)

    def keep_tokens(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Which prompt tokens a condition lets through, bool [P, L]; the closest one always passes."""
        ratios = self.token_ratios(tokens, condition)
        return (ratios > self.mask_threshold) | (ratios == ratios.amax(-1, keepdim=True))

    def soft_mask(self, tokens: Tensor, condition: Tensor, temperature: float) -> Tensor:
        """Differentiable stand-in, an attention bias [P, L]: log sigmoid((r - threshold) / temperature)."""
        return F.logsigmoid((self.token_ratios(tokens, condition) - self.mask_threshold) / temperature)

    def forward(self, tokens: Tensor, end: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
        """Scores [N] of prompt tokens [N, L, D], end tokens [N, D], mask [N, L], image tokens [N, I, D]; the mask
        is bool (may be read) or an additive bias."""
        fused = self.cross_model(image_tokens, tokens, mask)[:, 0]
        return wide(self.tower.logit_scale).exp() * cosine(end, fused)


class MPSScorer(NetworkScorer):
    """MPS under one condition; see the module docstring."""

    model: MPSNetwork

    def __init__(
        self,
        version: str,
        network: MPSNetwork,
        tokenise: ClipTokenise,
        condition: str,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.model, self.tokenise, self.device = network, tokenise, device
        self.version = version
        self.preprocessor = Preprocessor("clip_pil", network.tower.image_size)
        self.set_condition(condition)

    def set_condition(self, condition: str) -> None:
        """Score under a named condition (of the checkpoint, or a key of `CONDITIONS`) or a text of the user's."""
        known = CONDITIONS | self.model.conditions
        if condition not in known and "," not in condition and " " not in condition:
            raise unknown_name("condition", condition, [*known, "or a text such as 'colour, light'"])
        self.condition = known.get(condition, condition)
        named = {text: name for name, text in known.items()}
        label = named.get(self.condition, f"text-{short_hash(condition)}")
        self.name = "mps" if label == "overall" else f"mps:{label}"
        self._condition_tokens: Tensor | None = None
        self.forget_prompts()

    def forget_prompts(self) -> None:
        super().forget_prompts()
        self._condition_tokens = None

    def condition_tokens(self, condition: str) -> Tensor:
        """Projected tokens [L, D] of a condition text."""
        ids = self.tokenise([condition]).to(self.device)
        return self.model.tower.encode_text_tokens(ids)[0][0]

    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Prompt tokens [P, L, D], end tokens [P, D] and kept positions [P, L]."""
        if self._condition_tokens is None:
            self._condition_tokens = self.condition_tokens(self.condition)
        tokens, end = self.model.tower.encode_text_tokens(self.tokenise(prompts).to(self.device))
        return tokens, end, self.model.keep_tokens(tokens, self._condition_tokens)

    def score_features(self, text: TextFeatures, inputs: Tensor) -> Tensor:
        tokens, end, keep = text
        return self.model(tokens, end, keep, self.model.tower.encode_image_tokens(inputs))


def load_mps(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
    condition: str = "overall",
    mask_threshold: float | None = None,
) -> MPSScorer:
    """Load MPS from a folder (`clip_config.json`, `cross_config.json`, `model.safetensors`) or one
    safetensors file.

    `model_config` is a mapping (or JSON file) with `clip` and `cross`; without it a file has the published size.
    """
    if checkpoint is None:
        raise RewardModelError("mps has no published checkpoint that is safe to load", fix=CONVERT_FIX)
    folder = Path(checkpoint).expanduser()
    weights = folder_weights(folder) if folder.is_dir() else resolve_file(checkpoint)
    with without_memory():
        network = mps_network(*network_configs(folder, model_config))
    fill_network(network, read_state_dict(weights, CONVERT_FIX), weights, dtype)
    freeze(network, device)
    carried = folder.is_dir() and (has_tokenizer(folder) or network.tower.vocab_size != _PUBLISHED_VOCABULARY)
    tokenise = clip_tokenise(tokenizer, folder if carried else TOKENIZER, network.tower)
    version = version_string(weights_digest([weights]), mask_threshold=set_mask_threshold(network, mask_threshold))
    return MPSScorer(version, network, tokenise, condition, device)


def set_mask_threshold(network: MPSNetwork, threshold: float | None) -> float | None:
    """Override a network's threshold; returns it if that changes anything, for the version."""
    if threshold is None or threshold == network.mask_threshold:
        return None
    if not 0 <= threshold < 1:
        raise RewardModelError("mask_threshold must be in [0, 1)", found=str(threshold))
    network.mask_threshold = threshold
    return threshold


def network_configs(
    folder: Path, model_config: str | Path | Mapping[str, Any] | None
) -> tuple[dict[str, Any], FusionConfig, float, dict[str, str]]:
    """CLIP and fusion configuration, mask threshold and own conditions: the user's, the folder's, or the published."""
    if model_config is not None:
        both = read_json(model_config)
        if set(both) != {"clip", "cross"}:
            raise RewardModelError("model_config of mps needs exactly 'clip' and 'cross'", found=f"{sorted(both)}")
        clip, cross = read_json(both["clip"]), read_json(both["cross"])
    elif folder.is_dir():
        clip, cross = read_json(folder / CLIP_CONFIG_FILE), read_json(folder / FUSION_CONFIG_FILE)
    else:
        return VIT_H14_CONFIG, FusionConfig(), MASK_THRESHOLD, {}
    threshold, conditions = cross.pop("mask_threshold", MASK_THRESHOLD), cross.pop("conditions", {})
    known = {field.name for field in fields(FusionConfig)}
    if not set(cross) <= known:
        raise RewardModelError("unknown fusion settings", found=f"{sorted(set(cross) - known)}")
    return clip, FusionConfig(**cross), threshold, conditions


def mps_network(
    clip_config: Mapping[str, Any],
    fusion: FusionConfig,
    mask_threshold: float = MASK_THRESHOLD,
    conditions: Mapping[str, str] | None = None,
) -> MPSNetwork:
    """The network with random weights."""
    tower = clip_tower(clip_config)
    if tower.config.projection_dim != fusion.dim:
        raise RewardModelError(
            "the CLIP tower and the fusion module do not belong together",
            found=f"projection_dim {tower.config.projection_dim}, fusion dim {fusion.dim}",
        )
    return MPSNetwork(tower, fusion, mask_threshold, conditions)


def fill_network(network: MPSNetwork, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Load the official names, with or without the `mps.` prefix that one conversion on the hub adds."""
    names = {name.removeprefix("mps."): value for name, value in state.items()}
    clip = {name.removeprefix("model."): value for name, value in names.items() if name.startswith("model.")}
    cross = {
        name.removeprefix("cross_model."): value for name, value in names.items() if name.startswith("cross_model.")
    }
    if len(clip) + len(cross) != len(names) or not cross:
        raise RewardModelError(
            f"{source} is not an MPS checkpoint",
            found=f"names such as {sorted(names)[:3]}",
            fix="every name starts with model. (CLIP) or cross_model. (fusion)",
        )
    fit_state_dict(network.tower.clip, clip, source, dtype)
    fit_state_dict(network.cross_model, cross, source, dtype)
