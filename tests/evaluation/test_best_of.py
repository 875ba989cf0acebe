"""Best-of-n and refinement: the right picture is kept, its price is counted, its worth is estimated without bias."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.errors import UserError
from t2i_align.evaluation import generate
from t2i_align.evaluation.best_of import BestOf, best_of_chances, candidate_seed, gains
from tests.evaluation.synthetic import BrightnessScorer, paint_model

QUICK = {"num_inference_steps": 4, "guidance_scale": 3.0, "show_progress": False, "batch_size": 2}


class Darkness(BrightnessScorer):
    name = "darkness"

    def score(self, prompts, images):
        return {name: -values for name, values in super().score(prompts, images).items()}


def test_chances_equal_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).normal(size=(3, 5))
    for n in range(1, 6):
        expected = [
            np.mean([row[list(subset)].max() for subset in itertools.combinations(range(5), n)]) for row in scores
        ]
        np.testing.assert_allclose((best_of_chances(scores, n) * scores).sum(axis=1), expected)


def test_the_first_candidate_is_the_plain_picture_and_the_best_is_kept(tiny_sdxl, tmp_path):
    generate.run({"base": tiny_sdxl}, ["a", "b"], tmp_path / "plain", **QUICK)
    choice = BestOf(3, [BrightnessScorer(), Darkness()], refine=(0.5,))
    folder = generate.run({"base": tiny_sdxl}, ["a", "b"], tmp_path / "best", best_of=choice, **QUICK)["base"]
    rows = [json.loads(line) for line in (folder / "best_of.jsonl").read_text().splitlines()]
    brightness = BrightnessScorer()
    for row in rows:
        plain = Image.open(tmp_path / "plain" / "base" / "images" / f"{row['index']:05d}.png")
        kept = Image.open(folder / "images" / f"{row['index']:05d}.png")
        first, second = row["rounds"]
        assert brightness.score([""], [plain])["overall"][0] == pytest.approx(first["brightness"][0], abs=1e-3)
        assert second["brightness"][0] == pytest.approx(max(first["brightness"]))  # the kept one stays in the pool
        assert brightness.score([""], [kept])["overall"][0] == pytest.approx(max(second["brightness"]))
        assert first["darkness"] == [-value for value in first["brightness"]]
        assert row["passes"] == [
            3 * 4 * 2,
            3 * 4 * 2 + 3 * 2 * 2,
        ]  # candidates x steps x guidance; half the steps again
        assert row["seeds"][0] != row["seeds"][1] and len(set(row["seeds"])) == 3
    table = gains(folder)
    assert [row.what for row in table] == ["best of 1", "best of 2", "best of 3", "round 1"]
    assert [row.passes for row in table] == [8, 16, 24, 36]
    values = [row.gains["brightness"].value for row in table]
    assert values[0] == pytest.approx(0) and values == sorted(values) and values[1] > 0
    assert table[2].gains["darkness"].value == pytest.approx(-values[2])
    assert table[1].divergence == pytest.approx(np.log(2) - 0.5)


def test_finished_pictures_are_not_drawn_again_and_other_choices_are_refused(tiny_sdxl, tmp_path, monkeypatch):
    options = {**QUICK, "num_inference_steps": 1}
    generate.run({"base": tiny_sdxl}, ["a"], tmp_path, best_of=BestOf(2, [BrightnessScorer()]), **options)
    with pytest.raises(UserError, match="other settings"):
        generate.run({"base": tiny_sdxl}, ["a"], tmp_path, best_of=BestOf(3, [BrightnessScorer()]), **options)
    with pytest.raises(UserError, match="other settings"):
        generate.run({"base": tiny_sdxl}, ["a"], tmp_path, **options)
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("the model was loaded"))
    generate.run({"base": tiny_sdxl}, ["a"], tmp_path, best_of=BestOf(2, [BrightnessScorer()]), **options)


def test_gains_by_hand(tmp_path):
    paint_model(tmp_path, ["a", "b"], np.zeros((2, 1)))
    rows = [
        {"index": 0, "prompt_index": 0, "passes": [10.0], "rounds": [{"pick": [1.0, 3.0], "other": [5.0, 4.0]}]},
        {"index": 1, "prompt_index": 1, "passes": [10.0], "rounds": [{"pick": [2.0, 2.0], "other": [0.0, 8.0]}]},
        {"index": 7, "prompt_index": 7, "passes": [99.0], "rounds": [{"pick": [9.0, 0.0], "other": [0.0, 8.0]}]},
    ]
    (tmp_path / "best_of.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = gains(tmp_path)
    assert (one.passes, two.passes) == (5.0, 10.0)
    assert two.gains["pick"].value == pytest.approx(0.5)
    assert two.gains["other"].value == pytest.approx((-0.5 + 4.0) / 2)
    with pytest.raises(UserError, match="best-of-n"):
        gains(tmp_path / "images")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (BestOf(1, ["oracle"]), "two pictures"),
        (BestOf(2, []), "a scorer"),
        (BestOf(2, ["oracle"], (0.5, 1.5)), "share of the steps"),
        (BestOf(2, ["nonsense"]), "no scorer 'nonsense'"),
    ],
)
def test_bad_choices_are_explained_before_a_model_is_loaded(choice, message):
    with pytest.raises(UserError, match=message):
        choice.open("cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--scorer", "oracle"], "belong to --best-of"), (["--best-of", "2", "--refine", "much"], "takes numbers")],
)
def test_the_command_line_explains_itself(tmp_path, words, message):
    result = CliRunner().invoke(app, ["generate", "shapes:base", "-o", str(tmp_path), *words])
    assert result.exit_code == 2 and message in result.output


def test_candidates_have_seeds_of_their_own():
    assert candidate_seed(5, 0) == 5
    assert len({candidate_seed(seed, number) for seed in (5, 6) for number in range(4)}) == 8
