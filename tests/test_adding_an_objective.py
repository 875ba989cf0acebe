"""docs/adding-an-objective.md, followed step by step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from t2i_align.config.loading import load_config
from t2i_align.errors import UserError
from t2i_align.objectives import build, resolve
from t2i_align.study.config import Setting, load_study
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train
from tests.training.runs import write_pairs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-an-objective.md").read_text(encoding="utf-8")


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


def as_on_the_page(text: str, workplace: Path) -> Path:
    """A YAML file of the page; what it extends lies where the page says, seen from the repository."""
    name = text.splitlines()[0].removeprefix("# ")
    (workplace / name).write_text(text.replace("extends: ", f"extends: {ROOT}/"))
    return workplace / name


def test_it_trains_from_its_yaml(workplace: Path, tiny_sd: Path) -> None:
    """With a smaller model, pairs and budget than the page's."""
    small = {"model.pretrained_model_name_or_path": tiny_sd, "data.resolution": 32}
    small |= {"data.source": write_pairs(workplace / "pairs.parquet")}
    small |= {"data.heldout_source": "null", "data.heldout_fraction": 0.3}
    small |= {"training.train_batch_size": 2, "training.max_train_steps": 2, "training.lr_warmup_steps": 0}
    small |= {"validation.validation_prompts": "[a star]", "validation.num_inference_steps": 1}
    file = as_on_the_page(blocks("yaml")[0], workplace)
    result = train(load_config(file, [f"{key}={value}" for key, value in small.items()]))
    assert str(result.output_dir) == "runs/shapes-smooth-hinge"
    first = read_metrics(result.output_dir / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.125, abs=1e-6)  # m = 1/2: m^2 / 2


def test_it_stands_in_a_study_beside_the_others(workplace: Path) -> None:
    study = load_study(as_on_the_page(blocks("yaml")[1], workplace))
    assert study.methods["smooth_hinge"].settings == [Setting(5e-5, 2000)]
    assert {"dpo", "sft"} < set(study.methods) and study.output_dir == "runs/my-study"


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
