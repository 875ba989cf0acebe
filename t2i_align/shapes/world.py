"""What exists in the shapes world, and how it is put into words.

A scene is one figure on one background. A caption names some of its six attributes and leaves the others open;
`parse_caption` reads back exactly the attributes that `caption` wrote.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

IMAGE_SIZE = 64  # pixels per side

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (250, 202, 30),
    "green": (42, 157, 62),
    "teal": (22, 172, 178),
    "blue": (40, 88, 214),
    "purple": (128, 58, 178),
    "pink": (240, 120, 182),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (252, 252, 252),
    "cream": (250, 236, 205),
    "pale blue": (196, 222, 246),
    "pale green": (204, 238, 204),
    "grey": (165, 168, 173),
    "charcoal": (44, 47, 56),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted")
SIZES: dict[str, float] = {"small": 9.0, "medium": 12.5, "large": 16.0}  # half extent of the figure, pixels
POSITIONS: dict[str, tuple[float, float]] = {  # centre of the figure (x, y), pixels from the top left corner
    "in the centre": (32.0, 32.0),
    "on the left": (20.0, 32.0),
    "on the right": (44.0, 32.0),
    "at the top": (32.0, 20.0),
    "at the bottom": (32.0, 44.0),
}

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
}
ATTRIBUTES = tuple(VALUES)


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn.

    The first six fields are what a caption can name. `dx`, `dy` (pixels) and `scale` (a factor) are jitter that no
    caption mentions. `softness` (blur, standard deviation in pixels) and `shading` (the fraction of light lost across
    the background) are flaws: 0 in a good picture, and positive in part of the base model's training data, so that
    its samples, like those of real models, differ in quality as well as in content.
    """

    shape: str
    colour: str
    size: str
    texture: str
    position: str
    background: str
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    softness: float = 0.0
    shading: float = 0.0
    shading_angle: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the figure (x, y) in pixels."""
        x, y = POSITIONS[self.position]
        return x + self.dx, y + self.dy

    @property
    def radius(self) -> float:
        """Half of the figure's longer side in pixels."""
        return SIZES[self.size] * self.scale

    def attributes(self) -> dict[str, str]:
        """The nameable attributes by name."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def sample_scene(rng: np.random.Generator, flaw_rate: float = 0.0, **fixed: str) -> Scene:
    """Draw a scene uniformly; `fixed` sets attributes, and each flaw is present with probability `flaw_rate`."""
    chosen = {name: fixed.get(name) or values[rng.integers(len(values))] for name, values in VALUES.items()}
    dx, dy = rng.uniform(-1.5, 1.5, size=2)
    scale = rng.uniform(0.96, 1.04)
    softness = rng.uniform(0.7, 1.5) * (rng.random() < flaw_rate)
    shading = rng.uniform(0.15, 0.4) * (rng.random() < flaw_rate)
    angle = rng.uniform(0.0, 2 * np.pi)
    return Scene(**chosen, dx=dx, dy=dy, scale=scale, softness=softness, shading=shading, shading_angle=angle)


def caption(scene: Scene, keep: Collection[str] = ATTRIBUTES) -> str:
    """Describe `scene`, naming only the attributes in `keep`.

    >>> caption(Scene("star", "red", "large", "striped", "on the left", "pale blue"))
    'a large red striped star on the left, on a pale blue background'
    """
    return caption_of({name: value for name, value in scene.attributes().items() if name in keep})


def caption_of(asked: Mapping[str, str]) -> str:
    """The sentence that asks for the attributes `asked` (name to value) and for nothing else."""
    texture = asked.get("texture")
    words = [
        asked.get("size"),
        texture if texture == "plain" else None,  # "plain red", but "red striped"
        asked.get("colour"),
        texture if texture != "plain" else None,
        asked.get("shape", "shape"),
    ]
    noun = " ".join(word for word in words if word)
    sentence = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    if "position" in asked:
        sentence += f" {asked['position']}"
    if "background" in asked:
        sentence += f", on a {asked['background']} background"
    return sentence


def _alternatives(values: Collection[str]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(sorted(values, key=len, reverse=True)) + r")\b")


_BACKGROUND = re.compile(r"\b(" + "|".join(BACKGROUNDS) + r") background\b")
_PATTERNS = {name: _alternatives(values) for name, values in VALUES.items() if name != "background"}


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that `text` asks for: the inverse of `caption_of`.

    Text from elsewhere is read leniently: words in any order, unknown words ignored, the first of two contradicting
    words wins. Nothing recognised gives an empty dictionary.
    """
    text = " ".join(text.lower().replace("center", "centre").split())
    asked: dict[str, str] = {}
    background = _BACKGROUND.search(text)
    if background:
        asked["background"] = background.group(1)
        text = text[: background.start()] + text[background.end() :]
    for name, pattern in _PATTERNS.items():
        found = pattern.search(text)
        if found:
            asked[name] = found.group(1)
    return {name: asked[name] for name in ATTRIBUTES if name in asked}


def sample_keep(rng: np.random.Generator, drop_rate: float) -> tuple[str, ...]:
    """A random set of attributes to name: each is left out with probability `drop_rate`."""
    return tuple(name for name in ATTRIBUTES if rng.random() >= drop_rate)


def split_prompts(num_train: int, num_heldout: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Two lists of different captions with no caption in common.

    Each names five or six attributes, so that there is something to get right. Deterministic in `seed`, and the
    held-out list does not depend on `num_train`.
    """
    heldout = _draw_captions(num_heldout, np.random.default_rng([seed, 1]), excluded=set())
    train = _draw_captions(num_train, np.random.default_rng([seed, 0]), excluded=set(heldout))
    return train, heldout


def _draw_captions(count: int, rng: np.random.Generator, excluded: set[str]) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        left_out = rng.integers(2 * len(ATTRIBUTES))  # half of the captions name everything
        text = caption(sample_scene(rng), [name for i, name in enumerate(ATTRIBUTES) if i != left_out])
        if text not in excluded:
            drawn[text] = None
    return list(drawn)
