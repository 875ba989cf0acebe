"""ImageReward (Xu et al. 2023): BLIP reads prompt and image together, an MLP turns [CLS] into a reward.

    image [N, 3, 224, 224] ──ViT-L/16──> 197 tokens ──cross attention──> BERT(prompt) ──[CLS]──> MLP ──> r
    score = (r - 0.16717) / 1.03334, mean 0 and standard deviation 1 on the authors' set

transformers' BLIP modules carry the published weights; only names differ. All sizes are read off the checkpoint.
Prompts are cut after 33 word pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.loading import fit_state_dict, read_json, read_state_dict, resolve_file, weights_digest
from reward_models.mlp_head import load_head
from reward_models.network import NetworkScorer, TextFeatures
from reward_models.preprocess import Preprocessor
from reward_models.scorer import version_string, wide
from reward_models.tokenizers import BertTokenise, load_hf_tokenizer
from reward_models.towers import freeze, without_memory

CHECKPOINT = "zai-org/ImageReward:ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
TEXT_LENGTH = 35
_HEAD_SIZE = 64  # of every attention head in both BLIP sizes

_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.mlp\.fc([12])\.", r"encoder.layers.\1.mlp.fc\2."),
)
# Heads of BLIP's contrastive pre-training, stored beside the reward model and unused.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")


class ImageRewardNetwork(nn.Module):
    """Image encoder, text encoder with cross attention, reward MLP."""

    def __init__(self, vision: nn.Module, text: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.mlp = vision, text, mlp

    def forward(self, ids: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        """[CLS] features [N, D] of token ids [N, L], their mask [N, L] and pictures [N, 3, S, S]."""
        image_tokens = self.vision(pixel_values=inputs.to(self.vision.dtype)).last_hidden_state
        output = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=image_tokens)
        return output.last_hidden_state[:, 0]


class ImageRewardScorer(NetworkScorer):
    """See the module docstring."""

    model: ImageRewardNetwork
    # The pairwise training loss acts on the raw reward r.
    preference_scale = REWARD_STD

    def __init__(
        self,
        version: str,
        network: ImageRewardNetwork,
        tokenise: BertTokenise,
        size: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.name, self.version, self.device = "image_reward", version, device
        self.model, self.tokenise, self.preprocessor = network, tokenise, Preprocessor("openai", size)

    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Token ids and mask [P, 2, L]; the text is encoded together with each picture."""
        return (self.tokenise(prompts).to(self.device),)

    def score_features(self, text: TextFeatures, inputs: Tensor) -> Tensor:
        ids, mask = text[0].unbind(1)
        return self.reward(self.model(ids, mask, inputs))

    def reward(self, features: Tensor) -> Tensor:
        """Standardised reward [N] of [CLS] features [N, D]."""
        raw = self.model.mlp(wide(features.to(self.device)))
        return (raw - REWARD_MEAN) / REWARD_STD


def load_image_reward(
    *,
    checkpoint: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: str | Path | None = None,
    model_config: str | Path | Mapping[str, Any] | None = None,
) -> ImageRewardScorer:
    """Load `ImageReward.pt`; `model_config` may be its `med_config.json`, whose sizes must agree."""
    weights = resolve_file(checkpoint or CHECKPOINT)
    state = {k: v for k, v in read_state_dict(weights).items() if not k.startswith(_UNUSED)}
    parts = {
        part: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for part, prefix in (
            ("vision", "blip.visual_encoder."),
            ("text", "blip.text_encoder."),
            ("mlp", "mlp."),
        )
    }
    if sum(len(part) for part in parts.values()) != len(state) or not all(parts.values()):
        raise RewardModelError(
            f"{weights} is not an ImageReward checkpoint",
            found=f"names such as {sorted(state)[:3]}",
            fix="it holds blip.visual_encoder.*, blip.text_encoder.* and mlp.*",
        )
    vision, size = _vision(parts["vision"], weights, dtype)
    text = _text(parts["text"], weights, dtype, {} if model_config is None else read_json(model_config))
    mlp, _ = load_head(parts["mlp"], weights, torch.promote_types(dtype, torch.float32))
    network = ImageRewardNetwork(vision, text, mlp)
    freeze(network, device)
    tokenise = BertTokenise(load_hf_tokenizer(tokenizer or TOKENIZER), text.config.vocab_size, TEXT_LENGTH)
    return ImageRewardScorer(version_string(weights_digest([weights])), network, tokenise, size, device)


def _size(state: Mapping[str, Tensor], name: str, axis: int, source: Path) -> int:
    if name not in state or state[name].ndim <= axis:
        raise RewardModelError(f"{source} is not an ImageReward checkpoint", found=f"no {name} of the right rank")
    return state[name].shape[axis]


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def _vision(state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> tuple[nn.Module, int]:
    from transformers import BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel

    width = _size(state, "patch_embed.proj.weight", 0, source)
    patch = _size(state, "patch_embed.proj.weight", 2, source)
    size = patch * round((_size(state, "pos_embed", 1, source) - 1) ** 0.5)
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_size(state, "blocks.0.mlp.fc1.weight", 0, source),
        num_hidden_layers=_depth(state, r"blocks\.(\d+)\."),
        num_attention_heads=max(1, width // _HEAD_SIZE),
        image_size=size,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default is 1e-5
    )
    with without_memory():
        model = BlipVisionModel(config)
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _VISION_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    fit_state_dict(model, renamed, source, dtype)
    return model, size


def _text(state: Mapping[str, Tensor], source: Path, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    width = _size(state, "embeddings.word_embeddings.weight", 1, source)
    found = {
        "vocab_size": _size(state, "embeddings.word_embeddings.weight", 0, source),
        "hidden_size": width,
        "max_position_embeddings": _size(state, "embeddings.position_embeddings.weight", 0, source),
        "intermediate_size": _size(state, "encoder.layer.0.intermediate.dense.weight", 0, source),
        "num_hidden_layers": _depth(state, r"encoder\.layer\.(\d+)\."),
    }
    wrong = {key: given[key] for key in found if key in given and given[key] != found[key]}
    if wrong:
        raise RewardModelError("model_config contradicts the checkpoint", found=f"{wrong} against {found}")
    config = BlipTextConfig(
        **found,
        encoder_hidden_size=_size(state, "encoder.layer.0.crossattention.self.key.weight", 1, source),
        num_attention_heads=given.get("num_attention_heads", max(1, width // _HEAD_SIZE)),
        hidden_act=given.get("hidden_act", "gelu"),
        layer_norm_eps=given.get("layer_norm_eps", 1e-12),
        pad_token_id=given.get("pad_token_id", 0),
        is_decoder=True,  # gives every layer its cross attention; the forward pass stays bidirectional
    )
    with without_memory():
        model = BlipTextModel(config, add_pooling_layer=False)
    fit_state_dict(model, state, source, dtype)
    return model
