"""What is refused before the first picture: defaults of another world, names that do not exist, unusable folders."""

import logging
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from t2i_align.cli import app
from t2i_align.errors import UserError
from t2i_align.evaluation import evaluate, generate, score
from t2i_align.evaluation.ahead import check_models, check_output_folder
from t2i_align.evaluation.best_of import BestOf
from t2i_align.evaluation.prompts import load_prompts
from t2i_align.evaluation.scorers import check_scorers
from t2i_align.evaluation.worlds import default_prompts, default_scorers, is_of_shapes
from t2i_align.paths import beside
from t2i_align.shapes import assets


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(generate, "load_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.fixture
def lora_of(tmp_path):
    """A finished run as far as it says what it was trained from."""

    def make(base: str, name: str) -> Path:
        run = tmp_path / name
        (run / "export").mkdir(parents=True)
        (run / "export" / "pytorch_lora_weights.safetensors").write_bytes(b"")
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"pretrained_model_name_or_path": base}}))
        return run

    return make


def test_models_of_the_shapes_world_are_known_by_what_they_were_trained_from(tiny_sdxl, tiny_sd, lora_of):
    assert is_of_shapes("shapes:base") and is_of_shapes(assets.base_model_path())
    run = lora_of("shapes:base", "dpo")
    assert is_of_shapes(run) and is_of_shapes(run / "export")
    assert not is_of_shapes(tiny_sdxl) and not is_of_shapes(tiny_sd)
    assert not is_of_shapes(lora_of(str(tiny_sdxl), "other")) and not is_of_shapes("owner/model")


def test_their_judge_and_prompts_are_the_oracle_and_the_packaged_ones(tiny_sdxl, lora_of):
    models = ["shapes:base", lora_of("shapes:base", "dpo")]
    assert list(default_scorers(None, models)) == ["oracle"] and default_prompts(None, models) == "shapes"
    assert default_scorers(["pickscore"], [tiny_sdxl]) == ["pickscore"]
    assert default_prompts("mine.txt", [tiny_sdxl]) == "mine.txt"
    with pytest.raises(UserError, match="No scorer was given") as error:
        default_scorers(None, [*models, tiny_sdxl])  # one stranger is enough
    assert str(tiny_sdxl) in error.value.found and "dpo" not in error.value.found
    assert "pickscore (4 GB)" in error.value.fix


def test_other_models_need_a_scorer_and_prompts_of_their_own(tiny_sdxl, tmp_path, no_pictures):
    models, out = {"base": tiny_sdxl, "tuned": tiny_sdxl}, tmp_path / "out"
    with pytest.raises(UserError, match="No scorer was given"):
        evaluate.run(models, ["a"], None, out)
    with pytest.raises(UserError, match="No prompts were given") as error:
        evaluate.run(models, None, ["clip_score"], out)
    assert "partiprompts" in error.value.fix
    with pytest.raises(UserError, match="No prompts were given"):
        generate.run({"base": tiny_sdxl}, None, out)
    assert not out.exists()
    words = [f"base={tiny_sdxl}", f"tuned={tiny_sdxl}", "--output-dir", str(out)]
    for command, extra, message in (
        ("evaluate", [], "No scorer was given"),
        ("evaluate", ["--scorer", "clip_score"], "No prompts were given"),
        ("generate", [], "No prompts were given"),
        ("generate", ["--best-of", "2"], "No scorer was given"),
    ):
        result = CliRunner().invoke(app, [command, *words, *extra])
        assert isinstance(result.exception, UserError | SystemExit) and result.exit_code != 0
        assert message in result.output + str(result.exception)
    assert not out.exists()


@pytest.mark.parametrize("scorer", ["oracle", "oracle:semantic", "taste:1000000", "shapes:pickscore"])
def test_a_judge_of_the_shapes_world_that_is_asked_for_warns(tiny_sdxl, caplog, scorer):
    with caplog.at_level(logging.WARNING):
        assert default_scorers([scorer], [tiny_sdxl]) == [scorer]
        assert f"{scorer} knows the shapes world alone" in caplog.text
        caplog.clear()
        default_scorers([scorer], ["shapes:base"])
        default_scorers(["pickscore=mine"], [tiny_sdxl])
        assert not caplog.text
        assert default_prompts("shapes", [tiny_sdxl]) == "shapes"
        assert "prompts are of the shapes world" in caplog.text


@pytest.mark.parametrize(
    ("word", "message", "fix"),
    [
        ("pickscor", "no scorer 'pickscor'", "did you mean 'pickscore'"),
        ("imagereward", "no scorer 'imagereward'", "did you mean 'image_reward'"),
        ("orcle", "no scorer 'orcle'", "did you mean 'oracle'"),
        ("taste:me", "numbered user", "taste:1000003"),
        ("oracle=weights", "takes no checkpoint", "write oracle"),
        ("pickscore,mps", "One scorer is wanted", "single"),
    ],
)
def test_unknown_scorers_are_refused_with_the_nearest_name(word, message, fix, tiny_sdxl, tmp_path, no_pictures):
    with pytest.raises(UserError, match=message) as error:
        evaluate.run({"base": tiny_sdxl, "tuned": tiny_sdxl}, ["a"], [word], tmp_path / "out")
    assert fix in error.value.fix
    with pytest.raises(UserError, match=message):
        generate.run({"base": tiny_sdxl}, ["a"], tmp_path / "out", best_of=BestOf(2, [word]))
    assert not (tmp_path / "out").exists()


def test_known_scorers_pass():
    check_scorers(
        ["oracle", "oracle:detail", "taste:1000000:brightness", "mps:aesthetic", "shapes:pickscore", "hpsv2.1"]
    )


def test_paths_that_do_not_exist_are_answered_with_the_nearest(tiny_sdxl, tmp_path, monkeypatch, no_pictures):
    (tmp_path / "runs" / "mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/min", "./runs/min", str(tmp_path / "runs" / "min"), "runs/min/export"):
        with pytest.raises(UserError, match="The model does not exist") as error:
            generate.run({"base": tiny_sdxl, "mine": name}, ["a"], tmp_path / "out")
        assert error.value.found == name and "mini'?" in error.value.fix
    with pytest.raises(UserError, match="checkpoint of the scorer pickscore does not exist") as error:
        evaluate.run({"base": tiny_sdxl, "b": tiny_sdxl}, ["a"], ["pickscore=runs/min"], tmp_path / "out")
    assert "did you mean 'runs/mini'" in error.value.fix
    with pytest.raises(UserError, match="not on this machine"):  # a hub id, and no network
        generate.run({"base": tiny_sdxl, "mine": "owner/model"}, ["a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_id_that_is_in_the_cache_is_none_of_the_folders_here(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from t2i_align.evaluation.ahead import check_path

    (tmp_path / "owner").mkdir()
    (tmp_path / "cache" / "models--owner--model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    check_path("owner/model", "model", "")
    check_path("elsewhere/model:file.pt@main", "checkpoint", "")
    with pytest.raises(UserError, match="does not exist"):
        check_path("owner/modle", "model", "")


def test_base_models_are_looked_for_too(lora_of, tmp_path):
    with pytest.raises(UserError, match="base model does not exist"):
        check_models([lora_of(f"{tmp_path}/gone", "orphan")])


def test_what_lies_beside_a_path(tmp_path):
    assert beside(tmp_path / "nothing") == ""
    (tmp_path / "dpo").mkdir()
    assert beside(tmp_path / "dpoo") == f"did you mean '{tmp_path / 'dpo'}'? "
    assert beside(tmp_path / "xyz" / "deep") == f"{tmp_path} holds: dpo; "


def test_suites_and_prompt_files_are_answered_with_the_nearest(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n")
    for name, near in {
        "partiprompt": "partiprompts",
        "hpd2:photo": "hpdv2",
        "shape": "shapes",
        str(tmp_path / "prompt.txt"): str(tmp_path / "prompts.txt"),
    }.items():
        with pytest.raises(UserError, match="does not exist") as error:
            load_prompts(name)
        assert f"did you mean '{near}'?" in error.value.fix


def test_output_folders_that_cannot_be_used(tiny_sdxl, tmp_path, monkeypatch, no_pictures):
    file, run = tmp_path / "file", tmp_path / "run"
    file.write_text("")
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (run / name).write_text("")
    for folder, message in {
        file: "is a file",
        file / "deeper": "part of the output folder's path is a file",
        run: "holds other results",
        tiny_sdxl: "holds other results",
    }.items():
        for attempt in (
            lambda out: evaluate.run({"base": tiny_sdxl, "b": tiny_sdxl}, ["a"], ["oracle"], out),
            lambda out: generate.run({"base": tiny_sdxl}, ["a"], out),
        ):
            with pytest.raises(UserError, match=message):
                attempt(folder)
    check_output_folder(run / "eval")
    with pytest.raises(UserError, match="holds other files") as error:  # runs/base is somebody's run
        generate.run({"run": tiny_sdxl}, ["a"], tmp_path)
    assert "config.yaml" in error.value.found and sorted(p.name for p in run.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
    ]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        generate.run({"base": tiny_sdxl}, ["a"], tmp_path / "new")


def test_an_interrupted_start_may_go_on(tiny_sdxl, tmp_path):
    (tmp_path / "base" / "images").mkdir(parents=True)
    quick = {"num_inference_steps": 1, "show_progress": False}
    folders = generate.run({"base": tiny_sdxl}, ["a"], tmp_path, **quick)
    assert len(score.read_manifest(folders["base"])) == 1
