"""The oracle on right renders, on renders wrong in one thing, and on pictures of nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from t2i_align.shapes.colour import rgb_to_lab
from t2i_align.shapes.measure import measure
from t2i_align.shapes.oracle import DIMENSIONS, Oracle, attribute_scores
from t2i_align.shapes.render import render
from t2i_align.shapes.world import ATTRIBUTES, BACKGROUNDS, VALUES, Scene, caption, parse_caption, sample_scene

COUNT = 48
RNG = np.random.default_rng(5)
SCENES = [sample_scene(RNG) for _ in range(COUNT)]
PROMPTS = [caption(scene) for scene in SCENES]


def score(scenes: list[Scene]) -> dict[str, np.ndarray]:
    return Oracle().score(PROMPTS, [render(scene) for scene in scenes])


@pytest.fixture(scope="module")
def right() -> dict[str, np.ndarray]:
    return score(SCENES)


def test_right_renders_score_high(right: dict[str, np.ndarray]) -> None:
    assert set(right) == {*DIMENSIONS, "overall"}
    assert all(values.dtype == np.float32 and values.shape == (COUNT,) for values in right.values())
    assert right["overall"].mean() > 0.97 and right["overall"].min() > 0.9
    expected = 0.5 * right["semantic"] + 0.25 * right["aesthetic"] + 0.25 * right["detail"]
    np.testing.assert_allclose(right["overall"], expected, atol=1e-6)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_one_wrong_attribute_costs_semantics_and_little_else(attribute: str, right: dict[str, np.ndarray]) -> None:
    values = VALUES[attribute]
    wrong = [
        replace(scene, **{attribute: values[(values.index(getattr(scene, attribute)) + 1) % len(values)]})
        for scene in SCENES
    ]
    change = {name: scores - right[name] for name, scores in score(wrong).items()}
    assert change["semantic"].mean() == pytest.approx(-1 / 6, abs=0.03)  # one attribute of six
    assert change["semantic"].max() < -0.08
    assert abs(change["aesthetic"].mean()) < 0.03
    assert abs(change["detail"].mean()) < 0.03


def test_an_attribute_left_open_costs_nothing() -> None:
    scene = SCENES[0]
    other = replace(scene, colour="red" if scene.colour != "red" else "blue")
    prompt = caption(scene, [name for name in ATTRIBUTES if name != "colour"])
    scores = Oracle().score([prompt, prompt], [render(scene), render(other)])["semantic"]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)


def test_softness_costs_detail(right: dict[str, np.ndarray]) -> None:
    change = {n: s - right[n] for n, s in score([replace(s, softness=0.8) for s in SCENES]).items()}
    assert change["detail"].mean() < -0.25
    assert change["semantic"].mean() > -0.05 and abs(change["aesthetic"].mean()) < 0.02


def test_shading_costs_aesthetics(right: dict[str, np.ndarray]) -> None:
    change = {n: s - right[n] for n, s in score([replace(s, shading=0.25, shading_angle=1.0) for s in SCENES]).items()}
    assert change["aesthetic"].mean() < -0.25
    assert change["semantic"].mean() > -0.02 and abs(change["detail"].mean()) < 0.03


def test_contrast_clutter_and_crowding_cost_aesthetics() -> None:
    clean = Scene("circle", "blue", "medium", "plain", "in the centre", "white")
    faint = replace(clean, colour="teal", background="grey")
    crowded = replace(clean, position="on the left", dx=-8.5)
    cluttered = render(clean)
    cluttered.paste((200, 30, 30), (50, 50, 58, 58))
    images = [render(clean), render(faint), render(crowded), cluttered]
    scores = Oracle().score(["a shape"] * 4, images)["aesthetic"]
    assert scores[0] > 0.95
    assert (scores[1:] < scores[0] - 0.03).all()


def test_scores_are_graded() -> None:
    """Between right and wrong there is more and less wrong, so that pairs of mistakes can be told apart."""
    scene = Scene("circle", "red", "medium", "plain", "in the centre", "white")
    prompt = caption(scene)
    moved = [replace(scene, dx=float(dx)) for dx in (0, 4, 6, 9)]
    position = Oracle().score([prompt] * 4, [render(s) for s in moved])["semantic"]
    assert (np.diff(position) < -0.01).all()
    softer = [replace(scene, softness=s) for s in (0.0, 0.6, 0.9, 1.2)]
    assert (np.diff(Oracle().score([prompt] * 4, [render(s) for s in softer])["detail"]) < -0.05).all()


def test_pictures_of_nothing_score_low() -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(4)]
    blobs = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(4)]
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "red", BACKGROUNDS["grey"])]
    scores = Oracle().score(PROMPTS[:12], noise + blobs + flat)
    assert all(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1 for values in scores.values())
    assert scores["overall"].max() < 0.2
    assert scores["aesthetic"].max() < 0.1 and scores["detail"].max() < 0.1


def test_any_size_and_mode_is_read() -> None:
    image = render(SCENES[0])
    other = [image.convert("RGBA"), image.convert("P", palette=Image.Palette.ADAPTIVE), image.resize((128, 128))]
    scores = Oracle().score([PROMPTS[0]] * 4, [image, *other])["semantic"]
    np.testing.assert_allclose(scores, scores[0], atol=0.08)
    assert Oracle().score(["a red star"], [image.convert("L")])["overall"].shape == (1,)


def test_scores_do_not_depend_on_the_company() -> None:
    images = [render(scene) for scene in SCENES[:6]]
    together = Oracle().score(PROMPTS[:6], images)["overall"]
    alone = [Oracle().score([p], [i])["overall"][0] for p, i in zip(PROMPTS, images, strict=False)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_unrelated_prompt_asks_for_a_figure() -> None:
    assert parse_caption("an astronaut riding a horse") == {}
    scores = Oracle().score(["an astronaut riding a horse"] * 2, [render(SCENES[0]), Image.new("RGB", (64, 64))])
    assert scores["semantic"][0] > 0.95 and scores["semantic"][1] == 0


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        Oracle().score(["a", "b"], [render(SCENES[0])])
    assert Oracle().score([], [])["overall"].shape == (0,)


def test_every_attribute_is_recognised() -> None:
    scores = attribute_scores(measure([render(scene) for scene in SCENES]))
    for name, values in VALUES.items():
        assert scores[name].shape == (COUNT, len(values))
        truth = [values.index(getattr(scene, name)) for scene in SCENES]
        assert (scores[name].argmax(axis=1) == truth).all()


def test_lab_of_known_colours() -> None:
    lab = rgb_to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.05)
