"""From a batch of pairs to a loss: the module that is trained, whatever the scorer.

`forward` does everything, features to loss, because distributed wrappers synchronise gradients only through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError
from reward_models.mps import CONDITIONS, MPSScorer, set_mask_threshold
from reward_models.network import NetworkScorer
from reward_models.scorer import wide
from reward_models.towers import unit
from reward_models.training.config import RewardTrainingConfig
from reward_models.training.distributed import gather_with_gradient, globally_weighted
from reward_models.training.losses import (
    hps_losses,
    in_batch_losses,
    multi_dimension_losses,
    soft_pair_losses,
    weighted_mean,
)


@dataclass
class PairTensors:
    """A batch on the device: B pairs, C label dimensions."""

    ids: Tensor  # [B, L] prompt tokens
    inputs: Tensor  # [2B, 3, S, S], all a, then all b
    labels_a: Tensor  # [B, C], NaN where unknown
    weights: Tensor  # [B]


class PairOutput(NamedTuple):
    """Loss, a scalar, and margins s_a - s_b as logits, [B, C]."""

    loss: Tensor
    margins: Tensor


class PairModel(nn.Module, ABC):
    """A network with a preference loss."""

    @abstractmethod
    def forward(self, batch: PairTensors) -> PairOutput:
        """Loss and margins. The mean of the losses over processes is the loss of the global batch."""

    @abstractmethod
    def margins(self, batch: PairTensors) -> Tensor:
        """Margins alone, [B, C]; without communication, so processes may call it at different times."""

    @property
    @abstractmethod
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the similarity scale."""

    def set_progress(self, fraction: float) -> None:
        """Told before every step how much of the run is done, in [0, 1); for losses that change on the way."""


class ClipPairModel(PairModel):
    """PickScore and HPS: one text and two image features per pair."""

    def __init__(self, tower: nn.Module, loss: str, in_batch_negatives: bool) -> None:
        super().__init__()
        self.tower, self.loss, self.in_batch_negatives = tower, loss, in_batch_negatives

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.tower.logit_scale

    def features(self, batch: PairTensors) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features of prompts, a and b, each [B, D] in float32."""
        image_a, image_b = unit(self.tower.encode_image(batch.inputs)).chunk(2)
        return unit(self.tower.encode_text(batch.ids)), image_a, image_b

    def margins(self, batch: PairTensors) -> Tensor:
        text, image_a, image_b = self.features(batch)
        return wide(self.logit_scale).exp() * (text * (image_a - image_b)).sum(-1, keepdim=True)

    def forward(self, batch: PairTensors) -> PairOutput:
        text, image_a, image_b = self.features(batch)
        scale, label_a, weights = wide(self.logit_scale).exp(), batch.labels_a[:, 0], batch.weights
        scores_a, scores_b = scale * (text * image_a).sum(-1), scale * (text * image_b).sum(-1)
        margins = (scores_a - scores_b).detach()[:, None]
        if self.loss == "hps":
            # Summed over the local batch as published: the learning rate belongs to that sum.
            return PairOutput((weights * hps_losses(scores_a, scores_b, label_a)).sum(), margins)
        if not self.in_batch_negatives:
            return PairOutput(globally_weighted(soft_pair_losses(scores_a, scores_b, label_a), weights), margins)
        texts, images_a, images_b = (gather_with_gradient(x) for x in (text, image_a, image_b))
        labels, all_weights = gather_with_gradient(label_a), gather_with_gradient(weights)
        # Cosines decide pairs by differences of 1e-3: the products stay in float32 under autocast.
        with torch.autocast(text.device.type, enabled=False):
            losses = in_batch_losses(texts, images_a, images_b, scale, labels)
        return PairOutput(weighted_mean(losses, all_weights), margins)


class MPSPairModel(PairModel):
    """MPS: one score per picture and condition; conditions are encoded with the current weights.

    The mask is hard and passes no gradient, so a model whose conditions let the same tokens through cannot learn to
    tell them apart. With `mask_temperature` the training loss uses the soft mask instead, with a temperature that falls
    linearly to a twentieth by the end, so that the model settles for masks that survive hardening; scores stay hard.
    """

    def __init__(self, scorer: MPSScorer, conditions: Mapping[str, str], mask_temperature: float | None) -> None:
        super().__init__()
        self.network, self.mask_temperature, self.progress = scorer.model, mask_temperature, 0.0
        known = CONDITIONS | self.network.conditions
        texts = {dimension: known.get(condition, condition) for dimension, condition in conditions.items()}
        ids = scorer.tokenise(list(texts.values()))
        if len(ids.unique(dim=0)) < len(ids):
            raise RewardModelError(
                "two conditions are the same words for this text tower",
                found=f"{', '.join(texts)}, read up to {ids.shape[1]} tokens",
                fix="give shorter texts, or texts that differ in their first words",
            )
        # What it was trained with is what a dimension's name means from now on.
        self.network.conditions |= {name: text for name, text in texts.items() if CONDITIONS.get(name) != text}
        self.register_buffer("condition_ids", ids, persistent=False)
        # The image tokens skip this norm, so it would never see a gradient.
        self.network.tower.clip.vision_model.post_layernorm.requires_grad_(False)

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.network.tower.clip.logit_scale

    def set_progress(self, fraction: float) -> None:
        self.progress = fraction

    def scores(self, batch: PairTensors, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """Logits of a and b under every condition, each [B, C]; hard masks without a temperature."""
        tower = self.network.tower
        tokens, end = tower.encode_text_tokens(batch.ids)
        image_tokens = tower.encode_image_tokens(batch.inputs)
        twice, ends, columns = torch.cat([tokens, tokens]), torch.cat([end, end]), []
        for condition in tower.encode_text_tokens(self.condition_ids)[0]:
            if temperature is None:
                mask = self.network.keep_tokens(tokens, condition)
            else:
                mask = self.network.soft_mask(tokens, condition, temperature).to(tokens.dtype)
            columns.append(self.network(twice, ends, torch.cat([mask, mask]), image_tokens))
        scores_a, scores_b = torch.stack(columns, dim=1).chunk(2)
        return scores_a, scores_b

    def margins(self, batch: PairTensors) -> Tensor:
        scores_a, scores_b = self.scores(batch)
        return scores_a - scores_b

    def forward(self, batch: PairTensors) -> PairOutput:
        start = self.mask_temperature
        scores_a, scores_b = self.scores(batch, None if start is None else start * (1 - 0.95 * self.progress))
        losses = multi_dimension_losses(scores_a, scores_b, batch.labels_a)
        return PairOutput(globally_weighted(losses, batch.weights), (scores_a - scores_b).detach())


def build_pair_model(scorer: NetworkScorer, config: RewardTrainingConfig) -> PairModel:
    """The trainable module around a loaded scorer, with the configured parts unfrozen."""
    scorer.model.requires_grad_(True)
    if isinstance(scorer, MPSScorer):
        set_mask_threshold(scorer.model, config.mask_threshold)
        model: PairModel = MPSPairModel(scorer, config.dimensions, config.mask_temperature)
        tower = scorer.model.tower
    elif isinstance(scorer, ClipLikeScorer):
        model = ClipPairModel(scorer.model, config.loss, config.in_batch_negatives)
        tower = scorer.model
    else:
        raise RewardModelError("this scorer cannot be trained", found=scorer.name)
    freeze_text(tower.clip, config.trainable_text_blocks)
    freeze_image(tower.clip, config.trainable_image_blocks)
    return model


def freeze_text(clip: nn.Module, blocks: int | None) -> None:
    """Freeze embeddings, positions and all but the last `blocks` text blocks; norm and projection stay trainable."""
    if blocks is None:
        return
    if hasattr(clip, "text_model"):
        layers, frozen = clip.text_model.encoder.layers, [clip.text_model.embeddings]
    else:
        layers, frozen = clip.transformer.resblocks, [clip.token_embedding, clip.positional_embedding]
    _freeze(layers, blocks, frozen)


def freeze_image(clip: nn.Module, blocks: int | None) -> None:
    """Freeze the patch embedding and all but the last `blocks` image blocks; norm and projection stay trainable."""
    if blocks is None:
        return
    if hasattr(clip, "vision_model"):
        layers = clip.vision_model.encoder.layers
        frozen = [clip.vision_model.embeddings, clip.vision_model.pre_layrnorm]
    else:
        visual = clip.visual
        layers = visual.transformer.resblocks
        frozen = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
    _freeze(layers, blocks, frozen)


def _freeze(layers: nn.ModuleList, blocks: int, others: list[nn.Module | nn.Parameter]) -> None:
    if blocks > len(layers):
        raise RewardModelError("more trainable blocks than the tower has", found=f"{blocks} of {len(layers)}")
    for part in [*others, *layers[: len(layers) - blocks]]:
        part.requires_grad_(False)
