"""Captions and their inverse, and the split of the prompts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from t2i_align.shapes.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    VALUES,
    Scene,
    caption,
    parse_caption,
    sample_scene,
    split_prompts,
)

STAR = Scene("star", "red", "large", "striped", "on the left", "pale blue")


def test_the_world_is_as_large_as_promised() -> None:
    assert len(COLOURS) >= 8 and len(SHAPES) >= 8
    assert len(SIZES) == 3 and len(POSITIONS) >= 5 and len(BACKGROUNDS) >= 4
    assert len(set(TEXTURES) - {"plain"}) >= 2


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (ATTRIBUTES, "a large red striped star on the left, on a pale blue background"),
        (("colour", "shape"), "a red star"),
        (("size",), "a large shape"),
        (("background",), "a shape, on a pale blue background"),
        ((), "a shape"),
    ],
)
def test_captions_name_what_is_kept(keep: tuple[str, ...], expected: str) -> None:
    assert caption(STAR, keep) == expected


def test_article_and_word_order() -> None:
    scene = Scene("ring", "orange", "small", "plain", "at the top", "grey")
    assert caption(scene, ("colour", "shape")) == "an orange ring"
    assert caption(scene, ("colour", "shape", "texture")) == "a plain orange ring"


def test_parsing_inverts_every_choice_of_attributes() -> None:
    rng = np.random.default_rng(0)
    for count in range(len(ATTRIBUTES) + 1):
        for keep in combinations(ATTRIBUTES, count):
            scene = sample_scene(rng)
            asked = {name: value for name, value in scene.attributes().items() if name in keep}
            assert parse_caption(caption(scene, keep)) == asked


def test_every_value_survives_the_round_trip() -> None:
    for name, values in VALUES.items():
        for value in values:
            scene = sample_scene(np.random.default_rng(1), **{name: value})
            assert parse_caption(caption(scene))[name] == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a photo of a cat", {}),
        ("STAR, red!", {"shape": "star", "colour": "red"}),
        ("a stardust rendering", {}),  # only whole words count
        ("a blue circle in the center", {"shape": "circle", "colour": "blue", "position": "in the centre"}),
        ("a shape, on a pale blue background", {"background": "pale blue"}),
    ],
)
def test_foreign_text_is_read_leniently(text: str, expected: dict[str, str]) -> None:
    assert parse_caption(text) == expected


def test_scenes_are_a_function_of_the_seed() -> None:
    assert sample_scene(np.random.default_rng(7)) == sample_scene(np.random.default_rng(7))
    assert sample_scene(np.random.default_rng(7)) != sample_scene(np.random.default_rng(8))


def test_flaws_only_where_they_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert all(scene.softness == 0 and scene.shading == 0 for scene in (sample_scene(rng) for _ in range(50)))
    flawed = [sample_scene(rng, flaw_rate=0.5) for _ in range(400)]
    assert 0.4 < np.mean([scene.softness > 0 for scene in flawed]) < 0.6
    assert 0.4 < np.mean([scene.shading > 0 for scene in flawed]) < 0.6


def test_prompt_splits_share_no_caption() -> None:
    train, heldout = split_prompts(200, 80)
    assert len(set(train)) == 200 and len(set(heldout)) == 80
    assert not set(train) & set(heldout)
    asked = [parse_caption(prompt) for prompt in train + heldout]
    assert all(5 <= len(names) <= 6 for names in asked)
    assert split_prompts(10, 80)[1] == heldout
    assert split_prompts(200, 80) == (train, heldout)
    assert split_prompts(200, 80, seed=1)[0] != train
