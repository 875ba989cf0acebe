"""docs/adding-an-objective.md, followed step by step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from t2i_align.errors import UserError
from t2i_align.objectives import build, resolve
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train
from tests.training.runs import run_config, write_pairs

PAGE = (Path(__file__).parents[1] / "docs" / "adding-an-objective.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's file, where the page's commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smooth_hinge.py").write_text(blocks("python")[0])
    return tmp_path


def test_the_file_is_short_and_the_numbers_are_those_of_the_page(workplace: Path) -> None:
    file, check = blocks("python")
    assert len(file.splitlines()) <= 60 and file.startswith("# smooth_hinge.py")
    exec(compile(check, "adding-an-objective.md", "exec"), {})


def test_it_trains_from_its_yaml(workplace: Path, tiny_sd: Path) -> None:
    settings = yaml.safe_load(blocks("yaml")[0])
    assert settings["extends"] == "configs/base/shapes.yaml"
    pairs = write_pairs(workplace / "pairs.parquet")
    config = run_config(tiny_sd, pairs, workplace / "run", training={"max_train_steps": 2} | settings["training"])
    config = config.model_copy(update={"objective": type(config.objective).model_validate(settings["objective"])})
    train(config)
    first = read_metrics(workplace / "run" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.125, abs=1e-6)  # m = 1/2: m^2 / 2


def test_what_a_run_writes_down_resolves_again(workplace: Path) -> None:
    objective = build("smooth_hinge.py", target=0.5)
    assert resolve(objective.config) == objective


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "not there"), ("x = 1\n", "defines no PRESET"), ("import nowhere_to_be_found\n", "cannot be run")],
)
def test_mistakes_are_explained(workplace: Path, content: str | None, says: str) -> None:
    if content is not None:
        (workplace / "mine.py").write_text(content)
    with pytest.raises(UserError, match=says):
        build("mine.py")
