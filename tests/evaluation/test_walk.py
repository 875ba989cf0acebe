"""The way from one user to another, in an evaluation and its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_align.errors import UserError
from t2i_align.evaluation import evaluate
from t2i_align.evaluation.report.walk_section import walk_page
from t2i_align.evaluation.users import UserChoice
from t2i_align.evaluation.walk import STEPS, Walk
from t2i_align.personal.files import save_personal
from t2i_align.personal.who import blend, split_terms
from tests.evaluation.synthetic import BrightnessScorer
from tests.personal.common import TABLE, add_adapter, open_up

SIZE = {"num_inference_steps": 1, "height": 32, "width": 32, "show_progress": False}
MODELS = ("base", "anna", "ben")


@pytest.fixture(scope="module")
def judged(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    adapter = add_adapter(tiny_sd, TABLE)
    open_up(adapter)
    table = save_personal(adapter, folder / "table")
    models = {"base": tiny_sd, "anna": table, "ben": table}
    users = UserChoice({"anna": "anna", "ben": "ben"})
    prompts, scorers = ["a fox", "a cat"], [BrightnessScorer()]
    settings = {"users": users, "towards": {"anna": "ben"}, "base": tiny_sd, "drift": False, **SIZE}
    evaluate.run(models, prompts, scorers, folder / "out", seeds_per_prompt=2, **settings)
    return folder / "out"


def pixels(folder: Path, index: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"images/{index:05d}.png")).astype(int)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Up to one level of 255: the way is drawn in other batches than the pictures at its ends."""
    return np.abs(first - second).max() <= 1


def test_the_way_begins_and_ends_at_the_users_own_pictures(judged: Path) -> None:
    for prompt in range(2):
        first, last = (pixels(judged / "_between" / f"anna-{step}", prompt) for step in (0, STEPS - 1))
        assert same(first, pixels(judged / "anna", 2 * prompt)) and same(last, pixels(judged / "ben", 2 * prompt))
        assert not same(first, last)
    assert not (judged / "_between" / "ben-0").exists()


def test_the_report_shows_it_and_how_to_repeat_it(judged: Path) -> None:
    text = (judged / "report.html").read_text(encoding="utf-8")
    assert "from anna to ben" in text and "Mean brightness overall" in text
    assert text.count('of the second user"') == 2 * STEPS
    assert "--user-to anna=ben" in text and 'href="#users"' in text


def test_how_a_score_moves_is_said() -> None:
    def page(*values: float):
        shares = tuple(np.linspace(0, 1, len(values)))
        return walk_page(Walk("m", "a", "b", shares, (), (), {("taste", "own"): values}), ("taste", "own"))

    assert page(0.1, 0.2, 0.3).sentence == "Mean taste own rises at every step, from 0.100 to 0.300."
    assert page(0.3, 0.2, 0.1).kind == "better" and "falls at every step" in page(0.3, 0.2, 0.1).sentence
    assert "not at every step" in page(0.1, 0.3, 0.2).sentence and "not at every" in page(0.1, float("nan")).sentence
    assert page(0.1, float("nan")).means == [("taste own", [0.1, None])]


def test_users_between_two_in_one_word() -> None:
    assert blend("anna", "ben", 0.0) == "anna" and blend("anna", "ben", 1.0) == "ben"
    assert split_terms(blend("0.5*anna+0.5*carl", "ben", 0.25)) == [(0.375, "anna"), (0.375, "carl"), (0.25, "ben")]


def test_both_ends_are_known_before_the_first_picture(tiny_sd: Path, judged: Path, tmp_path: Path) -> None:
    models = {"base": tiny_sd, "anna": judged.parent / "table"}
    for who, message in (({}, "starts at the model's user"), ({"anna": "anna"}, "Unknown user")):
        choice = {"users": UserChoice(who), "towards": {"anna": "nobody"}, "base": tiny_sd}
        with pytest.raises(UserError, match=message):
            evaluate.run(models, ["a fox"], [BrightnessScorer()], tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()
