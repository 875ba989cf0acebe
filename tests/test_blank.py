"""A blank folder would be the current one: refused in every kind of file, and on the command line."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.config.fields import keys

from .training.runs import run_settings

REPOSITORY = Path(__file__).parents[1]
FILES = {  # of every kind that is run: command, file
    "run": ("train", "configs/shapes/dpo.yaml"),
    "reward": ("rewards train", "configs/shapes/rewards/pickscore.yaml"),
    "noisy reward": ("rewards train", "configs/shapes/lrm.yaml"),
    "personal reward": ("rewards train", "configs/shapes/personal_head.yaml"),
    "study": ("study", "configs/shapes/study.yaml"),
    "compare": ("compare", "configs/shapes/compare.yaml"),
}


def invoke(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_output_dir_is_refused(kind, value, tmp_path, monkeypatch):
    command, file = FILES[kind]
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump({"extends": str(REPOSITORY / file), "output_dir": value}))
    monkeypatch.chdir(tmp_path)
    result = invoke(*command.split(), str(copy))
    assert result.exit_code == 2, result.output
    assert "output_dir" in result.output and "is blank" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["copy.yaml"]


def text_keys() -> list[str]:
    return [key.path for key in keys().values() if key.type.split(" or ")[0] == "text" and key.section != "objective"]


@pytest.mark.parametrize("path", text_keys())
def test_no_text_of_a_run_may_be_blank(path, tmp_path):
    settings = run_settings(tmp_path / "model", tmp_path / "pairs.parquet", tmp_path / "run")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    result = invoke("config", "check", str(file), f"{path}=''")
    assert result.exit_code == 2
    assert f"{path}: is blank" in result.output


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    from t2i_align.config.loading import load_config

    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_settings(tmp_path, tmp_path, Path("unused"))))
    assert load_config(file, ["output_dir=~/runs/a"]).output_dir == str(tmp_path / "runs/a")


@pytest.mark.parametrize("words", [("demo", "-o", ""), ("export", "run", "--output-dir", " "), ("data", "convert", "")])
def test_blank_words_on_the_command_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 2 and "is blank" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_may_be_blank():
    result = invoke("personal", "interpolate", "RUN", "a", "b", "--prompt", "", "--output", "x.png")
    assert "is blank" not in result.output
