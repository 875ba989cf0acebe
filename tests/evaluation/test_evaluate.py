"""Scores, comparisons and the whole of ``evaluate.run`` on tiny pipelines."""

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from t2i_align.errors import UserError
from t2i_align.evaluation import evaluate, generate, score
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.scorers import open_scorer
from t2i_align.evaluation.summary import write_summary
from t2i_align.evaluation.table import ScoreTable
from t2i_align.shapes.render import render
from t2i_align.shapes.world import Scene, caption
from tests.evaluation.synthetic import BrightnessScorer, levels_of, make_evaluation, paint_model

QUICK = {"num_inference_steps": 2, "guidance_scale": 3.0, "show_progress": False, "replicates": 500}


def test_table_holds_a_row_per_picture_and_dimension(tmp_path):
    folder = paint_model(tmp_path / "base", ["a", "b"], np.array([[0, 51], [102, 255]]))
    table = score.run({"base": folder}, [BrightnessScorer()], tmp_path)
    assert table.shape == (2, 2) and table.dimensions == (("brightness", "overall"), ("brightness", "red"))
    np.testing.assert_allclose(table.matrix("base", "brightness", "overall"), [[0.0, 0.2], [0.4, 1.0]])
    written = pq.read_table(tmp_path / "scores.parquet")
    assert written.num_rows == 8
    assert {"model", "prompt_index", "prompt", "seed", "scorer", "version", "dimension", "score"} <= set(
        written.column_names
    )
    assert ScoreTable.read(tmp_path / "scores.parquet") == table


def test_scores_are_kept_and_only_changed_pictures_are_scored_again(tmp_path):
    levels = np.arange(10)[:, None] * 10
    folder = paint_model(tmp_path / "base", [str(i) for i in range(10)], levels)
    first, second = BrightnessScorer(), BrightnessScorer()
    score.run({"base": folder}, [first], tmp_path)
    levels[3] = 200
    paint_model(tmp_path / "base", [str(i) for i in range(10)], levels)
    table = score.run({"base": folder}, [second], tmp_path)
    assert (first.seen, second.seen) == (10, 1)
    assert table.matrix("base", "brightness", "overall")[3, 0] == pytest.approx(200 / 255)
    newer = BrightnessScorer()
    newer.version = "2"
    score.run({"base": folder}, [newer], tmp_path)
    assert newer.seen == 10


def test_undecodable_pictures_are_counted_and_left_out(tmp_path, caplog):
    base, tuned = levels_of(10, wins=10)
    for name, values in {"base": base, "tuned": tuned}.items():
        paint_model(tmp_path / name, [str(i) for i in range(10)], values)
    (tmp_path / "tuned" / "images" / "00002.png").write_bytes(b"not a picture")
    (tmp_path / "base" / "images" / "00005.png").unlink()
    with caplog.at_level(logging.WARNING):
        table = score.run(
            {"base": tmp_path / "base", "tuned": tmp_path / "tuned"}, [BrightnessScorer()], tmp_path, batch_size=3
        )
    assert table.missing("tuned") == 1 and table.missing("base") == 1
    assert "1 of 10 pictures of tuned have no score" in caplog.text
    tuned_scores = table.matrix("tuned", "brightness", "overall")
    assert np.isnan(tuned_scores[2, 0]) and np.isfinite(np.delete(tuned_scores, 2)).all()


def test_a_model_without_any_usable_picture_is_an_error(tmp_path):
    paint_model(tmp_path / "base", ["a"], np.array([[3]]))
    (tmp_path / "base" / "images" / "00000.png").write_bytes(b"")
    with pytest.raises(UserError, match="No picture of base"):
        score.run({"base": tmp_path / "base"}, [BrightnessScorer()], tmp_path)


def test_folder_without_manifest_is_explained(tmp_path):
    with pytest.raises(UserError, match="no generated pictures"):
        score.run({"base": tmp_path}, [BrightnessScorer()], tmp_path)


def test_unknown_scorers_are_explained():
    with pytest.raises(UserError, match="takes no checkpoint"):
        open_scorer("oracle=weights")
    with pytest.raises(UserError, match="nonsense"):
        open_scorer("nonsense")


def test_comparison_by_hand(tmp_path):
    base, tuned = levels_of(40, wins=30, ties=4)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned})
    result = evaluation.comparison("tuned", "base")
    assert result.win_rate.value == pytest.approx((30 + 2) / 40) and result.win_rate.n == 40
    assert result.tie_share == pytest.approx(0.1)
    assert result.mean_difference.value == pytest.approx((30 - 6) * 20 / 255 / 40)
    assert evaluation.mean("tuned").value == pytest.approx(evaluation.mean("base").value + (30 - 6) * 20 / 255 / 40)
    assert result.verdict.kind == "better" and result.p_value < 0.001
    assert evaluation.comparison("base", "tuned").win_rate.value == pytest.approx(1 - result.win_rate.value)


def test_verdicts_are_corrected_for_the_models_that_were_compared(tmp_path):
    """26 of 40 has an exact two-sided p of 0.081; 28 of 40 of 0.017: alone enough, among four models not."""
    base, lucky = levels_of(40, wins=28)
    alone = make_evaluation(tmp_path / "a", {"base": base, "lucky": lucky})
    assert alone.verdict("lucky").kind == "better"
    others = {f"m{i}": levels_of(40, wins=20 + i % 2)[1] for i in range(3)}
    many = make_evaluation(tmp_path / "b", {"base": base, "lucky": lucky, **others})
    row = many.comparison("lucky")
    assert row.p_value == pytest.approx(0.0166, abs=0.003) and row.p_adjusted == pytest.approx(4 * row.p_value)
    assert row.win_rate.low > 0.5 and many.verdict("lucky").kind == "inconclusive"
    assert many.overall(["lucky"]).headline == "No evidence of improvement of lucky"
    assert {one.compared for one in many.comparisons()} == {8}  # by two scores


def test_the_same_prompt_again_is_no_further_evidence(tmp_path):
    base, tuned = levels_of(40, wins=40)
    repeated = PromptSet("repeated", tuple(f"prompt {i % 4}" for i in range(40)))
    assert make_evaluation(tmp_path / "a", {"base": base, "tuned": tuned}).verdict("tuned").kind == "better"
    evaluation = make_evaluation(tmp_path / "b", {"base": base, "tuned": tuned}, repeated)
    assert evaluation.verdict("tuned").headline == "tuned: too few prompts for a verdict (4 of 20)"


def test_a_judge_without_an_opinion_is_named(tmp_path):
    flat = levels_of(30, wins=0, ties=30)[0]
    evaluation = make_evaluation(tmp_path, {"base": flat * 0, "tuned": flat * 0})
    verdict = evaluation.verdict("tuned")
    assert verdict.kind == "inconclusive" and "the judge gave every picture the same score (0.000)" in verdict.headline
    evaluation.write()
    assert '"constant": 0.0' in (tmp_path / "evaluation.json").read_text()


def test_shuffled_labels_never_look_like_success(tmp_path):
    base, tuned = levels_of(60, wins=45)
    _, control = levels_of(60, wins=33)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned, "control": control}, control="control")
    assert evaluation.subjects == ["tuned"]
    assert evaluation.verdict("control").headline.startswith("No evidence of improvement")
    assert evaluation.control_verdict().kind == "better"
    rows = evaluation.comparisons()
    assert [(row.model, row.dimension) for row in rows] == [
        ("tuned", "overall"),
        ("tuned", "red"),
        ("control", "overall"),
        ("control", "red"),
    ]
    assert all(row.p_adjusted >= row.p_value for row in rows)
    assert list(evaluation.ranking()) == ["base", "tuned", "control"]


def test_missing_pictures_take_no_part(tmp_path):
    base, tuned = levels_of(20, wins=10)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned})
    rows = tuple(row for row in evaluation.scores.rows if not (row.model == "tuned" and row.prompt_index < 5))
    fewer = Evaluation(**{**evaluation.__dict__, "scores": ScoreTable(rows), "_cache": {}})
    assert fewer.comparison("tuned").win_rate.n == 15


def test_groups_are_compared_apart(tmp_path):
    base, tuned = np.full((6, 1), 100), np.array([120, 120, 120, 80, 80, 80])[:, None]
    prompts = PromptSet("p", tuple("abcdef"), {"category": ("x", "x", "x", "y", "y", "y")})
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned}, prompts)
    groups = evaluation.by_group("tuned", "category")
    assert {label: row.win_rate.value for label, row in groups.items()} == {"x": 1.0, "y": 0.0}


def test_unknown_names_are_explained(tmp_path):
    base, tuned = levels_of(5, wins=3)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned})
    with pytest.raises(UserError, match="no such model"):
        evaluation.comparison("other")
    with pytest.raises(UserError, match="no such score"):
        evaluation.comparison("tuned", dimension="beauty")


def test_evaluation_is_read_back_as_written(tmp_path):
    base, tuned = levels_of(12, wins=9, draws=2)
    prompts = PromptSet("p", tuple("abcdefghijkl"), {"style": ("s",) * 12})
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned}, prompts, replicates=300)
    evaluation.write()
    again = Evaluation.read(tmp_path)
    assert again == evaluation
    assert again.comparison("tuned") == evaluation.comparison("tuned")
    with pytest.raises(UserError, match="no evaluation"):
        Evaluation.read(tmp_path / "base")


def test_summary_has_the_agreed_keys(tmp_path):
    base, tuned = levels_of(30, wins=24)
    _, control = levels_of(30, wins=15)
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned, "control": control}, control="control")
    summary = write_summary(evaluation, tmp_path / "summary.json", 12.5, seed=3)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["win_rate"] == pytest.approx(0.8) and summary["control_win_rate"] == pytest.approx(0.5)
    low, high = summary["win_rate_ci"]
    assert 0.5 < low < 0.8 < high
    assert summary["control_win_rate_ci"][0] < 0.5 and summary["train_seconds"] == 12.5 and summary["seed"] == 3
    assert summary["oracle_tuned"] > summary["oracle_base"]


def test_whole_evaluation_and_its_resumption(tiny_sdxl, tmp_path, monkeypatch):
    models = {"base": tiny_sdxl, "tuned": tiny_sdxl}
    scorer = BrightnessScorer()
    result = evaluate.run(models, ["a", "b", "c"], [scorer], tmp_path, batch_size=2, **QUICK)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "scores.parquet").is_file()
    assert result.comparison("tuned", "base").win_rate.value == 0.5  # the same weights draw the same pictures
    assert result.comparison("tuned").tie_share == 1.0
    assert scorer.seen == 6
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("the model was loaded"))
    fewer = evaluate.run(models, ["a", "b", "c"], [scorer], tmp_path, limit=2, **QUICK)
    assert scorer.seen == 6 and fewer.comparison("tuned").win_rate.n == 2
    described = json.loads((tmp_path / "evaluation.json").read_text())
    assert described["verdicts"]["tuned"]["kind"] == "inconclusive"


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"base": "x"}, {}, "two models"),
        ({"a": "x", "b": "y"}, {"baseline": "c"}, "baseline is not among"),
        ({"a": "x", "b": "y"}, {"control": "c"}, "control is not among"),
        ({"a": "x", "b": "y"}, {"control": "a"}, "cannot be the baseline"),
        ({"a": "x", "b": "y"}, {"scorers": []}, "No scorer"),
    ],
)
def test_bad_requests_are_explained_before_any_work(tmp_path, models, options, message):
    with pytest.raises(UserError, match=message):
        evaluate.run(models, ["a"], options.pop("scorers", ["oracle"]), tmp_path, **options)


def test_oracle_prefers_the_picture_that_was_asked_for():
    scenes = [
        Scene("circle", "red", "large", "plain", "in the centre", "white"),
        Scene("square", "blue", "small", "plain", "on the left", "cream"),
    ]
    oracle = open_scorer("oracle")
    captions, images = [caption(scene) for scene in scenes], [render(scene) for scene in scenes]
    right, wrong = oracle.score(captions, images), oracle.score(captions, images[::-1])
    assert tuple(right) == oracle.dimensions == ("overall", "semantic", "aesthetic", "detail")
    assert (right["overall"] > wrong["overall"]).all() and right["overall"].shape == (2,)
    assert oracle.name == "oracle" and oracle.version


def test_results_by_kind_of_prompt_are_kept_as_tables(tmp_path):
    base, tuned = levels_of(40, wins=30)
    prompts = PromptSet("p", tuple(map(str, range(40))), {"category": ("x",) * 25 + ("y",) * 15})
    evaluation = make_evaluation(tmp_path, {"base": base, "tuned": tuned}, prompts, replicates=300)
    evaluation.write()
    rows = pq.read_table(tmp_path / "comparisons.parquet").to_pylist()
    assert [(row["group"], row["label"], row["dimension"], row["prompts"]) for row in rows] == [
        ("", "", "overall", 40),
        ("", "", "red", 40),
        ("category", "x", "overall", 25),
        ("category", "y", "overall", 15),
        ("category", "x", "red", 25),
        ("category", "y", "red", 15),
    ]
    assert rows[0]["win_rate"] == pytest.approx(0.75)
    assert rows[2]["win_rate"] == pytest.approx(evaluation.by_group("tuned", "category")["x"].win_rate.value)
    assert all(row["p_adjusted"] >= row["p_value"] and row["win_rate_low"] <= row["win_rate"] for row in rows)
    scores = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert {(row["prompt_index"] < 25, row["category"]) for row in scores} == {(True, "x"), (False, "y")}
