"""Synthetic people with tastes: what they like about the attributes that a caption leaves open.

A user is a weight for every value of the tasted attributes, for example +1.2 for red and -0.4 for blue, and one for
brightness. The taste score of a picture is read from its pixels by the oracle's measurements, so a user can judge
any picture; and the opposite user, all weights negated, likes what the first dislikes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .measure import measure, to_array
from .oracle import attribute_scores, presence
from .world import ATTRIBUTES, VALUES, caption, sample_scene

TASTES = ("colour", "brightness", "size", "texture", "position")
UNSEEN_OFFSET = 1_000_000  # ids of unseen users start here: the splits never meet, whatever their sizes


@dataclass(frozen=True)
class User:
    """One person.

    Attributes:
        user_id: unique in the population, the `user_id` of preference pairs.
        weights: taste per feature, e.g. `{"colour=red": 0.8, "brightness": -1.1}`.
    """

    user_id: int
    weights: dict[str, float]

    def opposite(self) -> User:
        """The person who likes what this one dislikes; the id is negative."""
        return User(-self.user_id - 1, {name: -weight for name, weight in self.weights.items()})

    @property
    def tastes(self) -> tuple[str, ...]:
        """The attributes this user cares about."""
        return tuple(dict.fromkeys(name.partition("=")[0] for name in self.weights))


def feature_names(tastes: Sequence[str] = TASTES) -> list[str]:
    """One feature per value of each attribute, and one for brightness."""
    return [name for taste in tastes for name in _features_of(taste)]


def _features_of(taste: str) -> list[str]:
    if taste == "brightness":
        return ["brightness"]
    return [f"{taste}={value}" for value in VALUES[taste]]


def make_user(user_id: int, seed: int = 0, tastes: Sequence[str] = ("colour", "brightness")) -> User:
    """The user `user_id` of the population `seed`: normal weights of mean 0 within each attribute.

    A function of its arguments alone: the size of a population does not change who is in it.
    """
    rng = np.random.default_rng([seed, user_id])
    weights: dict[str, float] = {}
    for taste in tastes:
        names = _features_of(taste)
        drawn = rng.standard_normal(len(names))
        if len(names) > 1:
            drawn -= drawn.mean()
        weights.update(zip(names, drawn.tolist(), strict=True))
    return User(user_id, weights)


def population(
    num_train: int, num_unseen: int, seed: int = 0, tastes: Sequence[str] = ("colour", "brightness")
) -> tuple[list[User], list[User]]:
    """Users to train on and users never met in training."""
    train = [make_user(i, seed, tastes) for i in range(num_train)]
    unseen = [make_user(UNSEEN_OFFSET + i, seed, tastes) for i in range(num_unseen)]
    return train, unseen


def picture_features(images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
    """Everything a taste can be about, float `[N]` per feature, and `presence`, how much there is a figure at all.

    Values of an attribute are degrees in [0, 1]; brightness is the mean of the picture in [-1, 1].
    """
    measured = measure(images)
    features: dict[str, np.ndarray] = {"presence": presence(measured)}
    for attribute, scores in attribute_scores(measured).items():
        for i, value in enumerate(VALUES[attribute]):
            features[f"{attribute}={value}"] = scores[:, i]
    features["brightness"] = to_array(images).mean(axis=(1, 2, 3)) / 127.5 - 1
    return features


def taste_from_features(user: User, features: dict[str, np.ndarray]) -> np.ndarray:
    """`taste_score` of pictures whose features are known: one measurement serves many users."""
    liking = sum(weight * features[name] for name, weight in user.weights.items())
    return (features["presence"] / (1 + np.exp(-liking))).astype(np.float32)


def taste_score(user: User, images: Sequence[Image.Image]) -> np.ndarray:
    """How much `user` likes each picture: float32 `[N]` in [0, 1].

    A picture of a clear figure that leaves the user cold scores 0.5; one of nothing scores 0.
    """
    return taste_from_features(user, picture_features(images))


def open_prompts(count: int, seed: int = 0, tastes: Sequence[str] = ("colour", "brightness")) -> list[str]:
    """Captions that leave every tasted attribute open (and the background, where brightness is one)."""
    left_open = {*tastes, "background"} if "brightness" in tastes else set(tastes)
    rng = np.random.default_rng([seed, 4])
    keep = [name for name in ATTRIBUTES if name not in left_open]
    return [caption(sample_scene(rng), keep) for _ in range(count)]
