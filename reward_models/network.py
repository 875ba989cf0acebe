"""A scorer made of one network and one image pipeline: what all but the ensemble share."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, Prompts, check_pixels, expand_prompts

# What prompts become: tensors whose first axis is the prompt.
TextFeatures: TypeAlias = tuple[Tensor, ...]
_CACHED_PROMPTS = 512


class NetworkScorer(BaseScorer):
    """A scorer with one network and one image pipeline, remembering the prompts it has encoded.

    Attributes:
        model: the network, frozen and in evaluation mode.
        preprocessor: the image pipeline.
    """

    model: nn.Module
    preprocessor: Preprocessor

    def __init__(self) -> None:
        self._cache: OrderedDict[str, TextFeatures] = OrderedDict()

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Encode P prompts to tensors with leading axis P."""

    @abstractmethod
    def score_features(self, text: TextFeatures, inputs: Tensor) -> Tensor:
        """Score N preprocessed pictures [N, 3, S, S] against N encoded prompts; float32 or wider [N]."""

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (self.preprocessor,)

    def read_as(self, decoding: str) -> None:
        """Take pictures in another decoding of `decode_image`; the version says so."""
        self.preprocessor = replace(self.preprocessor, decoding=decoding)
        self.version += f"+decoding={decoding}"

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        return self.score_inputs(prompts, prepared[self.preprocessing])

    def score_inputs(self, prompts: Prompts, inputs: Tensor) -> Tensor:
        """Score normalised pictures [N, 3, S, S], differentiable in `inputs`; [N] on the device."""
        inputs = inputs.to(self.device)
        return self.score_features(self.text_features(expand_prompts(prompts, len(inputs))), inputs)

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        check_pixels(pixels)
        return self.score_inputs(prompts, self.preprocessor.tensor(pixels.to(self.device)))

    def text_features(self, prompts: list[str]) -> TextFeatures:
        """Features of every prompt, encoding each distinct one once and remembering the last few hundred."""
        distinct = list(dict.fromkeys(prompts))
        known = {prompt: self._cache[prompt] for prompt in distinct if prompt in self._cache}
        new = [prompt for prompt in distinct if prompt not in known]
        if new:
            with torch.no_grad():
                encoded = self.encode_prompts(new)
            known.update({prompt: tuple(part[i] for part in encoded) for i, prompt in enumerate(new)})
        for prompt in distinct:
            self._cache[prompt] = known[prompt]
            self._cache.move_to_end(prompt)
        while len(self._cache) > _CACHED_PROMPTS:
            self._cache.popitem(last=False)
        rows = [known[prompt] for prompt in prompts]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def forget_prompts(self) -> None:
        """Empty the prompt cache; needed after the weights have changed."""
        self._cache.clear()
