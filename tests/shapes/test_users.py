"""Synthetic users: who they are, and what they make of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from t2i_align.shapes.render import render
from t2i_align.shapes.users import TASTES, User, feature_names, make_user, open_prompts, population, taste_score
from t2i_align.shapes.world import Scene, parse_caption, sample_scene


def test_population_is_seeded_and_its_splits_are_disjoint() -> None:
    train, unseen = population(30, 10)
    assert len({user.user_id for user in train + unseen}) == 40
    assert population(5, 10)[1] == unseen and population(5, 10)[0] == train[:5]
    assert population(30, 10, seed=1)[0] != train


def test_weights_within_an_attribute_sum_to_zero() -> None:
    user = make_user(3, tastes=TASTES)
    assert list(user.weights) == feature_names(TASTES)
    assert user.tastes == TASTES
    colours = [weight for name, weight in user.weights.items() if name.startswith("colour=")]
    assert sum(colours) == pytest.approx(0, abs=1e-9) and np.std(colours) > 0.3


def test_taste_is_read_from_pixels() -> None:
    red, blue = (
        render(Scene("circle", colour, "large", "plain", "in the centre", "white")) for colour in ("red", "blue")
    )
    user = User(0, {"colour=red": 1.0, "colour=blue": -1.0})
    liked, disliked = taste_score(user, [red, blue])
    assert liked == pytest.approx(1 / (1 + np.exp(-1)), abs=0.02)
    assert disliked == pytest.approx(1 / (1 + np.exp(1)), abs=0.02)


def test_brightness() -> None:
    bright, dark = (
        render(Scene("circle", "red", "small", "plain", "in the centre", ground)) for ground in ("white", "charcoal")
    )
    scores = taste_score(User(0, {"brightness": 1.0}), [bright, dark])
    assert scores[0] > 0.65 and scores[1] < 0.4


def test_opposite_users_disagree() -> None:
    rng = np.random.default_rng(0)
    images = [render(sample_scene(rng)) for _ in range(24)]
    user = make_user(1)
    mine, theirs = taste_score(user, images), taste_score(user.opposite(), images)
    assert np.corrcoef(mine, theirs)[0, 1] < -0.95
    assert user.opposite().opposite() == user


def test_nobody_likes_nothing() -> None:
    assert taste_score(make_user(0), [Image.new("RGB", (64, 64), "white")])[0] == 0


def test_open_prompts_leave_the_tasted_attributes_open() -> None:
    prompts = open_prompts(20)
    assert prompts == open_prompts(20)
    for prompt in prompts:
        assert set(parse_caption(prompt)) == {"shape", "size", "texture", "position"}
