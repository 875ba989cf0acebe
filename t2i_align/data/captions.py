"""Captions that fit a picture less well, made without a language model: words exchanged, dropped, moved.

For objectives with a caption per picture (DCPO), where the data have one. A perturbation depends on the caption and the
strength alone, so it is the same in every epoch, process and cache.
"""

from __future__ import annotations

import re
from typing import Literal

import torch

from t2i_align.randomness import addressed_generator

Strength = Literal["weak", "medium", "strong"]
# Share of the words that are touched; a strong perturbation also reorders the parts between commas.
SHARES: dict[str, float] = {"weak": 0.15, "medium": 0.35, "strong": 0.6}
SEED = 0
# Words of which one can stand for another and say something else.
KINDS: tuple[tuple[str, ...], ...] = (
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "cream", "cyan"),
    ("one", "two", "three", "four", "five", "six", "seven", "several", "many"),
    ("tiny", "small", "large", "huge", "tall", "short", "wide", "narrow"),
    ("left", "right", "top", "bottom", "above", "below", "behind", "beside", "under", "over", "centre", "corner"),
    ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond", "hexagon"),
    ("striped", "dotted", "checkered", "plain", "shiny", "rough", "smooth", "wooden", "metal", "glass"),
    ("man", "woman", "boy", "girl", "child", "person", "dog", "cat", "horse", "bird", "fish", "robot"),
    ("house", "castle", "tower", "bridge", "street", "forest", "beach", "mountain", "desert", "city", "garden", "sea"),
    ("morning", "noon", "evening", "night", "sunset", "dawn", "summer", "winter", "autumn", "spring"),
    ("happy", "sad", "angry", "calm", "old", "young", "new", "ancient", "modern", "bright", "dark", "quiet"),
    ("photo", "painting", "drawing", "sketch", "render", "watercolour", "cartoon", "sculpture"),
)
_KIND_OF = {word: kind for kind in KINDS for word in kind}
_FUNCTION_WORDS = frozenset(
    ["a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "by", "for", "from", "is", "are", "it", "its"]
)
_WORD = re.compile(r"[^\W\d_]+|\d+")


def perturb(caption: str, strength: Strength) -> str:
    """The caption, changed; at least one word differs wherever there are two words to work with.

    A word of a known kind becomes another of its kind; other words of content are dropped, or change places with the
    next one where dropping would leave nothing.
    """
    words = list(_WORD.finditer(caption))
    content = [index for index, match in enumerate(words) if match.group().lower() not in _FUNCTION_WORDS]
    if not content:
        return caption
    draw = _Draw(caption, strength)
    count = max(1, round(SHARES[strength] * len(content)))
    known = [index for index in content if words[index].group().lower() in _KIND_OF]
    order = draw.shuffled(known) + draw.shuffled([index for index in content if index not in known])
    chosen = set(order[:count])
    pieces, last = [], 0
    for index, match in enumerate(words):
        pieces.append(caption[last : match.start()])
        pieces.append(_changed(match.group(), draw, len(content)) if index in chosen else match.group())
        last = match.end()
    result = _tidy("".join([*pieces, caption[last:]]))
    if strength == "strong" and result.count(",") > 0:
        result = ", ".join(draw.shuffled([part.strip() for part in result.split(",")]))
    return result or caption


class _Draw:
    """Random choices addressed by the caption."""

    def __init__(self, caption: str, strength: str) -> None:
        self._generator = addressed_generator(SEED, "perturb", strength, caption)

    def below(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self._generator))

    def shuffled(self, items: list) -> list:
        return [items[index] for index in torch.randperm(len(items), generator=self._generator).tolist()]


def _changed(word: str, draw: _Draw, content_words: int) -> str:
    """Another word of its kind, another number, or nothing (a lone word of content is said the other way round)."""
    lower = word.lower()
    if lower in _KIND_OF:
        others = [other for other in _KIND_OF[lower] if other != lower]
        other = others[draw.below(len(others))]
        return other.capitalize() if word[0].isupper() else other
    if word.isdigit():
        return str(int(word) + 1 + draw.below(4))
    return "" if content_words > 1 else f"no {word}"


def _tidy(text: str) -> str:
    """Without the double spaces and stray commas that dropped words leave."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.;:])", r"\1", text)
    text = re.sub(r"(,\s*){2,}", ", ", text)
    return text.strip(" ,")
