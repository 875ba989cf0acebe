"""The method table on a tiny model and a judge that looks at brightness: controls, resuming, tuning, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from t2i_align.errors import UserError
from t2i_align.evaluation import scorers
from t2i_align.evaluation.statistics import Estimate
from t2i_align.objectives.presets import PRESETS
from t2i_align.study import run as study_run
from t2i_align.study.config import NO_TRAINING, RANDOM_LABELS, all_methods, load_study
from t2i_align.study.table import Row, StudyFolderError, Table
from t2i_align.training import once
from tests.training.runs import write_pairs

SHIPPED = Path(__file__).parents[2] / "configs" / "shapes" / "study.yaml"


class Brightness:
    """A judge that costs nothing."""

    name, version, dimensions = "brightness", "1", ("overall", "red")

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        pixels = [np.asarray(image, dtype=np.float64) / 255 for image in images]
        return {"overall": np.array([p.mean() for p in pixels]), "red": np.array([p[..., 0].mean() for p in pixels])}


@pytest.fixture(autouse=True)
def cheap_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scorers.BUILT_IN, "brightness", Brightness)


@pytest.fixture
def settings(tiny_sd: Path, tmp_path: Path) -> dict[str, Any]:
    pairs = write_pairs(tmp_path / "train.parquet", count=8)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a circle\na square\na star\n")
    return {
        "output_dir": str(tmp_path / "study"),
        "seeds": [0],
        "run": {
            "model": {"pretrained_model_name_or_path": str(tiny_sd), "lora": {"rank": 2}},
            "data": {"source": str(pairs), "resolution": 32},
            "training": {"train_batch_size": 2, "max_train_steps": 2, "checkpointing_steps": 2},
        },
        "judging": {"scorer": "brightness", "prompts": str(prompts), "num_inference_steps": 2, "tuning_prompts": 2},
        "methods": {
            "sft": {"objective": {"preset": "sft"}, "learning_rate": 1e-2},
            "dpo": {"objective": {"preset": "dpo"}, "learning_rate": 1e-2, "beta": 100.0},
        },
    }


def load(settings: dict[str, Any], tmp_path: Path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_study(file)


def quiet(line: str) -> None:
    """Say nothing."""


def test_the_shipped_study_is_valid_and_holds_every_preset() -> None:
    study = load_study(SHIPPED)
    names = dict(all_methods(study))
    assert {RANDOM_LABELS, NO_TRAINING} < set(names)
    assert {method.objective["preset"] for method in study.methods.values()} == set(PRESETS)
    assert all(name == method.objective["preset"] for name, method in study.methods.items())


def test_a_study_trains_judges_and_writes_its_table(settings: dict, tmp_path: Path) -> None:
    settings["seeds"] = [0, 1]
    names = ["dpo", NO_TRAINING]
    table = study_run.run(load(settings, tmp_path), quiet, only=names, command="t2i-align study x")
    assert set(table.rows) == set(names)
    still = table.rows[NO_TRAINING]
    assert still.win_rate is not None and still.win_rate.value == 0.5  # the same model draws the same pictures
    assert still.verdict.startswith("too few prompts for a verdict (") and still.dimensions == {
        "overall": 0.0,
        "red": 0.0,
    }
    row = table.rows["dpo"]
    assert (row.seeds, row.learning_rate, row.beta, len(row.seed_win_rates)) == (2, 1e-2, 100.0, 2)
    assert row.win_rate is not None and row.win_rate.value == pytest.approx(np.mean(row.seed_win_rates))
    folder = tmp_path / "study"
    text = (folder / "table.md").read_text()
    for part in (
        "`dpo`",
        "`zero_learning_rate` (control)",
        "t2i-align study x",
        "2 steps of 2 pairs",
        "must be the base",
    ):
        assert part in text
    assert pq.read_table(folder / "table.parquet").num_rows == 2
    assert Image.open(folder / "table.png").size[0] > 500
    assert json.loads((folder / "table.json").read_text())["caption"]["seeds"] == [0, 1]


def test_a_killed_study_goes_on_where_it_was(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    real = once.train

    def counted(config, **options):
        trained.append(Path(config.output_dir).parent.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(config, **options)

    monkeypatch.setattr(once, "train", counted)
    study = load(settings, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study_run.run(study, quiet)
    assert trained == ["dpo", RANDOM_LABELS]
    assert set(json.loads((tmp_path / "study" / "table.json").read_text())["rows"][0]) >= {"name", "win_rate"}
    study_run.run(study, quiet)
    assert trained[2:] == [RANDOM_LABELS, NO_TRAINING, "sft"]
    table = study_run.run(study, quiet)
    assert len(trained) == 5 and set(table.rows) == {"dpo", RANDOM_LABELS, NO_TRAINING, "sft"}


def test_other_settings_in_the_same_folder_are_refused(settings: dict, tmp_path: Path) -> None:
    study_run.run(load(settings, tmp_path), quiet, only=["dpo"])
    settings["run"]["training"]["max_train_steps"] = 3
    with pytest.raises(UserError, match="other settings"):
        study_run.run(load(settings, tmp_path), quiet, only=["dpo"])


def test_a_run_of_a_version_with_fewer_keys_is_kept(settings: dict, tmp_path: Path) -> None:
    study_run.run(load(settings, tmp_path), quiet, only=["dpo"])
    for done in (tmp_path / "study" / "runs" / "dpo").glob("*/trial.json"):
        record = json.loads(done.read_text())
        del record["settings"]["personal"]
        done.write_text(json.dumps(record))
    assert study_run.run(load(settings, tmp_path), quiet, only=["dpo"]).rows["dpo"].win_rate


def test_settings_given_as_lists_are_tuned_on_training_prompts(settings: dict, tmp_path: Path) -> None:
    settings["methods"]["dpo"]["learning_rate"] = [0.0, 1e-2]
    table = study_run.run(load(settings, tmp_path), quiet, only=["dpo"])
    row = table.rows["dpo"]
    assert row.tuned_over == 2 and row.learning_rate in (0.0, 1e-2)
    chosen = max(row.tuning, key=row.tuning.__getitem__)
    assert chosen == f"lr-{row.learning_rate:g}-beta-100" and len(row.tuning) == 2
    folders = sorted(path.name for path in (tmp_path / "study" / "runs" / "dpo").iterdir())
    assert len([name for name in folders if name.endswith("seed-1000")]) == 2 and len(folders) == 3


def test_methods_that_read_rewards_get_the_judges_scores(settings: dict, tmp_path: Path) -> None:
    settings["methods"]["gapo"] = {"objective": {"preset": "gapo"}, "learning_rate": 1e-3}
    table = study_run.run(load(settings, tmp_path), quiet, only=["gapo"])
    assert table.rows["gapo"].reads == ("scores",) and table.rows["gapo"].win_rate is not None
    scored = pq.read_table(tmp_path / "study" / "pairs.parquet")
    assert {"score_0", "score_1"} <= set(scored.column_names) and scored.num_rows == 8


def test_a_negative_model_is_judged_through_the_base(settings: dict, tmp_path: Path) -> None:
    settings["methods"]["npo"] = {"objective": {"preset": "npo"}, "learning_rate": 1e-2, "judged_as": "negative"}
    table = study_run.run(load(settings, tmp_path), quiet, only=["npo"])
    assert table.rows["npo"].win_rate is not None and "as negative model" in table.markdown()


def test_a_method_that_cannot_train_is_a_row_that_says_why(settings: dict, tmp_path: Path) -> None:
    settings["methods"]["dcpo"] = {"objective": {"preset": "dcpo"}, "learning_rate": 1e-3}
    table = study_run.run(load(settings, tmp_path), quiet, only=["dcpo"])
    assert table.rows["dcpo"].win_rate is None and "caption" in table.rows["dcpo"].verdict


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s["methods"].pop("sft"), "controls need"),
        (lambda s: s.update(seed=3), "did you mean seeds"),
        (lambda s: s["methods"]["dpo"].update(objective={"beta": 3}), "needs a preset"),
        (lambda s: s["methods"]["dpo"].update(learning_rate=[]), "at least one"),
        (lambda s: s["methods"]["dpo"]["objective"].update(link="hinj"), "method dpo"),
    ],
)
def test_mistakes_are_explained(settings: dict, tmp_path: Path, change, says: str) -> None:
    change(settings)
    with pytest.raises(UserError, match=says):
        load(settings, tmp_path)


def test_an_unknown_method_is_refused(settings: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such method"):
        study_run.run(load(settings, tmp_path), quiet, only=["dpoo"])


def test_the_caption_is_the_whole_studys_whatever_was_run_first(settings: dict, tmp_path: Path) -> None:
    study_run.run(load(settings, tmp_path), quiet, only=["dpo"], command="t2i-align study x")
    text = (tmp_path / "study" / "table.md").read_text()
    assert f"Not run yet: {RANDOM_LABELS}, {NO_TRAINING}, sft." in text and "--only" not in text
    settings["seeds"] = [1]
    table = study_run.run(load(settings, tmp_path), quiet, only=[NO_TRAINING], command="t2i-align study x")
    assert "`dpo` (seeds 0 only)" in table.markdown() and "seeds 1." in table.markdown()
    assert table.rows["dpo"].made and not table.rows["dpo"].tuning


def test_rows_of_another_budget_or_judge_are_not_mixed_in(settings: dict, tmp_path: Path) -> None:
    study_run.run(load(settings, tmp_path), quiet, only=[NO_TRAINING])
    settings["judging"]["num_prompts"] = 2
    with pytest.raises(UserError, match=r"judging\.num_prompts"):
        study_run.run(load(settings, tmp_path), quiet, only=["dpo"])


def test_pictures_of_a_replaced_training_are_drawn_again(settings: dict, tmp_path: Path) -> None:
    table = study_run.run(load(settings, tmp_path), quiet, only=["dpo"])
    settings["methods"]["dpo"]["learning_rate"] = 0.0
    again = study_run.run(load(settings, tmp_path), quiet, only=["dpo"])
    assert again.rows["dpo"].score != table.rows["dpo"].score and again.rows["dpo"].win_rate.value == 0.5


def test_a_study_killed_while_judging_goes_on(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SIGKILL leaves: some pictures, a manifest cut inside a line, no row."""
    study = load(settings, tmp_path)
    whole = study_run.run(study, quiet, only=["dpo"]).rows["dpo"]
    pictures = tmp_path / "study" / "judged" / "pictures" / "dpo-0"
    lines = (pictures / "manifest.jsonl").read_text().splitlines()
    (pictures / "manifest.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    (pictures / "images" / "00002.png").unlink()
    (tmp_path / "study" / "table.json").unlink()
    monkeypatch.setattr(once, "train", lambda config, **_: pytest.fail("trained again"))
    assert study_run.run(study, quiet, only=["dpo"]).rows["dpo"] == whole


def test_rows_are_ordered_and_survive_json(settings: dict, tmp_path: Path) -> None:
    def row(name: str, value: float, kind: str = "method") -> Row:
        return Row(
            name,
            "dpo",
            kind,
            win_rate=Estimate(value, value - 0.1, value + 0.1, 40),
            p_value=0.001,
            seed_win_rates=(value,),
        )

    table = Table(tmp_path, load(settings, tmp_path), "x")
    broken = Row(NO_TRAINING, "dpo", "control")
    for one in (row("sft", 0.3), row(RANDOM_LABELS, 0.9, "control"), row("dpo", 0.8), broken, row("gone", 0.9)):
        table.add(one)
    assert [one.name for one in table.ordered] == ["gone", "dpo", "sft", RANDOM_LABELS, NO_TRAINING]
    table.write()
    again = Table(tmp_path, load(settings, tmp_path), "x")
    assert table.rows["sft"].verdict == "worse than the base"
    assert (table.rows["dpo"].compared, again.rows["dpo"].compared) == (4, 3)  # the correction follows the rows
    assert replace(again.rows["dpo"], compared=4, p_adjusted=0.004) == table.rows["dpo"]
    assert "gone" not in again.rows  # no method of this study


def test_a_studys_verdicts_are_corrected_for_its_number_of_methods(settings: dict, tmp_path: Path) -> None:
    def row(name: str, p: float, prompts: int = 40, **other) -> Row:
        return Row(name, "dpo", "method", win_rate=Estimate(0.6, 0.51, 0.69, prompts), p_value=p, **other)

    table = Table(tmp_path, load(settings, tmp_path), "x")
    table.add(row("dpo", 0.03))
    assert table.rows["dpo"].verdict == "better than the base"
    table.add(row("sft", 0.001))
    table.add(row("other", 0.04))
    assert table.rows["sft"].verdict == "better than the base" and table.rows["sft"].p_adjusted == pytest.approx(0.003)
    assert table.rows["dpo"].verdict == "no difference shown" and table.rows["dpo"].p_adjusted == pytest.approx(0.06)
    table.add(row("sft", 0.001, prompts=19))
    assert table.rows["sft"].verdict == "too few prompts for a verdict (19 of 20)"
    table.add(row("sft", 0.001, constant=0.0))
    assert table.rows["sft"].verdict == "the judge gave every picture the same score"
    table.write()
    rows = json.loads((tmp_path / "table.json").read_text())
    for one in rows["rows"]:
        del one["p_value"]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    with pytest.raises(StudyFolderError, match="before it kept p-values"):
        Table(tmp_path, load(settings, tmp_path), "x")
