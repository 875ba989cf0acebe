"""The packaged recipes as a user without a checkout meets them: a table, copies that work, and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2i_align import cli
from t2i_align.config import recipes
from t2i_align.config.layers import merge
from t2i_align.config.loading import load_config
from t2i_align.config.recipe_table import rows
from t2i_align.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_checkout_has_its_own_recipes() -> None:
    assert recipes.folder() == CONFIGS
    assert set(recipes.names()) == files(CONFIGS)


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "t2i_align"
    monkeypatch.setattr(recipes, "PACKAGE", package)
    (tmp_path / "configs" / "shapes").mkdir(parents=True)  # another project's folder beside the packages
    with pytest.raises(UserError, match="are missing"):
        recipes.folder()
    (package / "recipes" / "base").mkdir(parents=True)
    (package / "recipes" / "base" / "common.yaml").touch()
    assert recipes.folder() == package / "recipes"


@pytest.mark.parametrize("name", recipes.names())
def test_a_copy_holds_all_that_a_recipe_reads(name: str, place: Path) -> None:
    """As a user: alone in an empty folder, the copied file resolves to what the original does."""
    copies = recipes.copy([name])
    assert {copy.path.relative_to("configs").as_posix() for copy in copies} == recipes.needed(name)
    if name.endswith(".yaml"):
        assert merge(Path("configs") / name).values == merge(CONFIGS / name).values


def test_a_comparison_brings_its_recipes_and_prompts() -> None:
    models = {f"shapes/{name}.yaml" for name in ("compare", "sft", "dpo", "mapo", "lpo", "ppd")}
    common = {"shapes/compare_prompts.jsonl", "base/shapes.yaml", "base/common.yaml"}
    assert recipes.needed("shapes/compare.yaml") == models | common


@pytest.mark.parametrize(
    "word", ["sdxl/dpo_lora.yaml", "sdxl/dpo_lora", "configs/sdxl/dpo_lora.yaml", "./sdxl/dpo_lora"]
)
def test_names_may_be_written_as_pages_and_people_write_them(word: str) -> None:
    assert recipes.find(word) == ["sdxl/dpo_lora.yaml"]


def test_a_folder_names_what_is_in_it() -> None:
    assert recipes.find("configs/accelerate/") == sorted(f"accelerate/{path.name}" for path in CONFIGS.glob("acc*/*"))


@pytest.mark.parametrize(("word", "near"), [("dpo", "shapes/dpo.yaml"), ("sdxl/dpo_lra", "sdxl/dpo_lora.yaml")])
def test_an_unknown_name_is_answered_with_the_nearest(word: str, near: str, place: Path) -> None:
    with pytest.raises(UserError, match="no recipe") as caught:
        recipes.copy(["shapes/dpo", word])
    assert near in caught.value.fix and files(place) == set()


def test_changed_files_are_never_overwritten_unasked(place: Path) -> None:
    recipes.copy(["shapes/dpo"])
    mine = place / "configs" / "shapes" / "dpo.yaml"
    mine.write_text("seed: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="in the way") as caught:
        recipes.copy([])
    assert Path(caught.value.found) == mine.relative_to(place)
    assert mine.read_text(encoding="utf-8") == "seed: 1\n" and len(files(place)) == 3, "nothing else was copied either"
    copies = recipes.copy(["shapes/dpo"], overwrite=True)
    assert [copy.path.name for copy in copies if not copy.kept] == ["dpo.yaml"]
    assert mine.read_bytes() == (CONFIGS / "shapes" / "dpo.yaml").read_bytes()


def test_the_table_has_every_file_that_a_command_takes() -> None:
    table = {row.name: row for row in rows()}
    unlisted = {name for name in recipes.names() if name not in table}
    assert unlisted == {
        *(f"base/{name}.yaml" for name in ("common", "sd15", "sdxl", "shapes")),
        "shapes/rewards/common.yaml",
        "shapes/compare_prompts.jsonl",
    }
    assert all(row.purpose and not row.purpose.startswith("#") for row in table.values())
    assert table["sdxl/lpo.yaml"][1:4] == ("train", "dpo, lpo rollouts", "stable-diffusion-xl-base-1.0")
    assert table["shapes/study.yaml"][1:4] == ("study", "", "shapes:base")
    assert table["accelerate/ddp.yaml"].command == "accelerate launch"


def test_the_table_agrees_with_the_runs_it_names() -> None:
    for row in rows():
        if row.command == "train":
            config = load_config(CONFIGS / row.name)
            assert row.objective.partition(",")[0] == config.objective.preset, row.name
            assert config.model.pretrained_model_name_or_path.endswith(row.model), row.name


def test_the_commands(place: Path) -> None:
    run = CliRunner()
    listed = run.invoke(cli.app, ["configs", "list"])
    assert listed.exit_code == 0 and listed.stdout.splitlines()[0].split() == [
        "file", "command", "objective", "model", "purpose",
    ]  # fmt: skip
    copied = run.invoke(cli.app, ["configs", "copy", "shapes/sft"])
    assert copied.stdout.splitlines() == [
        str(Path("configs") / name) for name in sorted(recipes.needed("shapes/sft.yaml"))
    ]
    again = run.invoke(cli.app, ["configs", "copy", "--all"])
    assert again.stdout.count("(there already)") == 3 and files(place / "configs") == files(CONFIGS)
    for words in (["configs", "copy"], ["configs", "copy", "shapes/sft", "--all"]):
        assert run.invoke(cli.app, words).exit_code == 2
    elsewhere = run.invoke(cli.app, ["configs", "copy", "shapes/compare", "--to", "mine"])
    assert "shapes/compare.yaml: names files in configs/" in elsewhere.stderr


@pytest.mark.parametrize("path", ["configs/sdxl/lpo.yaml", "sdxl/lpo.yaml", "sdxl/lpo"])
def test_training_a_recipe_that_is_not_there_says_how_to_get_it(path: str, place: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load_config(path)
    assert caught.value.fix.endswith("t2i-align configs copy sdxl/lpo.yaml")


def test_another_missing_file_points_to_the_list(place: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load_config("mine.yaml")
    assert caught.value.fix.endswith("t2i-align configs list")
