"""Several models in one report: trained where missing, once, and judged together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2i_align.compare.config import load_comparison
from t2i_align.compare.run import run
from t2i_align.errors import UserError
from t2i_align.evaluation import scorers
from t2i_align.training import once
from tests.evaluation.synthetic import BrightnessScorer
from tests.training.runs import run_settings, write_pairs

SHIPPED = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def cheap_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scorers.BUILT_IN, "brightness", BrightnessScorer)


@pytest.fixture
def settings(tiny_sd: Path, tmp_path: Path) -> dict[str, Any]:
    pairs = write_pairs(tmp_path / "train.parquet", count=4)
    recipe = run_settings(
        tiny_sd, pairs, tmp_path / "unused", training={"max_train_steps": 1, "checkpointing_steps": 1}
    )
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "prompts.txt").write_text("a circle\na square\na star\n")
    return {
        "output_dir": str(tmp_path / "out"),
        "overrides": ["training.learning_rate=1e-2"],
        "models": {
            "base": {"model": str(tiny_sd)},
            "dpo": {"recipe": "dpo.yaml", "note": "one step"},
            "sft": {"recipe": "dpo.yaml", "overrides": ["objective.preset=sft"]},
        },
        "evaluation": {
            "prompts": str(tmp_path / "prompts.txt"),
            "scorers": ["brightness"],
            "num_inference_steps": 1,
            "drift": False,
        },
    }


def load(settings: dict[str, Any], folder: Path, *words: str):
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_comparison(file, words)


def quiet(line: str) -> None:
    """Say nothing."""


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    trained: list[str] = []
    real: Callable = once.train
    monkeypatch.setattr(
        once,
        "train",
        lambda config, **options: (trained.append(Path(config.output_dir).name), real(config, **options))[1],
    )
    return trained


def test_recipes_are_trained_once_and_judged_together(settings: dict, tmp_path: Path, monkeypatch) -> None:
    trained = counting(monkeypatch)
    comparison = load(settings, tmp_path)
    assert {name: one.training.learning_rate for name, one in comparison.runs.items()} == {"dpo": 1e-2, "sft": 1e-2}
    found = run(comparison, quiet, command="t2i-align compare compare.yaml")
    assert trained == ["dpo", "sft"] and list(found.models) == ["base", "dpo", "sft"] and found.baseline == "base"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "t2i-align compare compare.yaml" in page and "one step" in page
    assert not (tmp_path / "out" / "eval" / "report.html").exists()
    first = json.loads((tmp_path / "out" / "eval" / "evaluation.json").read_text())["comparisons"]

    with pytest.raises(UserError, match="need a --user"):
        run(load(settings, tmp_path, "evaluation.user_scale=0.5"), quiet)

    settings["models"]["sft"] = None  # left out, and a second launch: nothing is trained or drawn again
    again = run(load(settings, tmp_path), quiet)
    assert trained == ["dpo", "sft"] and list(again.models) == ["base", "dpo"]
    row = next(row for row in first if row["model"] == "dpo" and row["dimension"] == "overall")
    assert again.comparison("dpo").win_rate.value == row["win_rate"]["value"]


def test_recipes_lie_beside_the_file_that_names_them(settings: dict, tmp_path: Path) -> None:
    load(settings, tmp_path)
    (tmp_path / "below").mkdir()
    mine = tmp_path / "below" / "mine.yaml"
    mine.write_text("extends: ../compare.yaml\nmodels: {sft: null}\n")
    assert list(load_comparison(mine).runs) == ["dpo"]
    assert list(load_comparison(mine, [f"models.dpo.recipe={tmp_path / 'dpo.yaml'}"]).runs) == ["dpo"]
    with pytest.raises(UserError, match="does not exist"):
        load_comparison(mine, ["models.dpo.recipe=nowhere.yaml"])


def test_a_run_of_other_settings_is_not_taken_for_this_one(settings: dict, tmp_path: Path, monkeypatch) -> None:
    del settings["models"]["sft"]
    run(load(settings, tmp_path), quiet)
    monkeypatch.setattr(once, "train", lambda config, **_: pytest.fail("trained again"))
    with pytest.raises(UserError, match="run with other settings") as error:
        run(load(settings, tmp_path, "overrides=[training.learning_rate=1e-3]"), quiet)
    assert "training" in error.value.found


def test_mistakes_are_found_before_training(settings: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(once, "train", lambda config, **_: pytest.fail("trained"))
    with pytest.raises(UserError, match="no scorer 'pickscor'") as error:
        run(load(settings, tmp_path, "evaluation.scorers=[oracle,pickscor]"), quiet)
    assert "did you mean 'pickscore'" in error.value.fix
    with pytest.raises(UserError, match="does not exist"):
        run(load(settings, tmp_path, "evaluation.prompts=nowhere.txt"), quiet)
    with pytest.raises(UserError, match="model does not exist"):
        run(load(settings, tmp_path, f"models.base.model={tmp_path}/nowhere"), quiet)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(load(settings, tmp_path, f"output_dir={tmp_path}/taken"), quiet)
    for key, message in {"scorers": "No scorer was given", "prompts": "No prompts were given"}.items():
        evaluation = {name: value for name, value in settings["evaluation"].items() if name != key}
        with pytest.raises(UserError, match=message):
            run(load({**settings, "evaluation": evaluation}, tmp_path), quiet)
    for word, message in {
        "models.dpo.overrides=[objective.betta=3]": "model dpo",
        "models.base.recipe=dpo.yaml": "either a recipe or a model",
        "models.base.overrides=[seed=1]": "taken as it is",
        "control=nobody": "not among the models",
        "models={dpo: null, sft: null}": "needs two models",
        "evaluation.scorer=[oracle]": "did you mean scorers",
    }.items():
        with pytest.raises(UserError, match=message):
            load(settings, tmp_path, word)


def test_what_recipes_need_is_prepared_once(settings: dict, tmp_path: Path) -> None:
    made = tmp_path / "sheet" / "captions.txt"
    settings["models"] = {"base": settings["models"]["base"], "same": settings["models"]["base"]}
    settings["prepare"] = [{"makes": str(made), "command": f"shapes render --count 1 --output-dir {made.parent}"}]
    said: list[str] = []
    comparison = load(settings, tmp_path)
    with pytest.raises(UserError, match="Preparing failed"):
        broken = comparison.config.prepare[0].model_copy(update={"command": "shapes rendre"})
        run(type(comparison)(comparison.config.model_copy(update={"prepare": [broken]}), {}), said.append)
    run(comparison, said.append)
    assert made.exists() and sum(line.startswith("prepare") for line in said) == 2
    run(comparison, said.append)
    assert sum(line.startswith("prepare") for line in said) == 2


@pytest.mark.parametrize("path", ["shapes/compare.yaml", "sdxl/compare.yaml"])
def test_the_shipped_comparisons_are_valid(path: str) -> None:
    comparison = load_comparison(SHIPPED / path)
    assert comparison.config.baseline == "base" and len(comparison.config.entries) >= 5
    assert {one.output_dir for one in comparison.runs.values()} == {
        f"{comparison.config.output_dir}/runs/{name}" for name in comparison.runs
    }
