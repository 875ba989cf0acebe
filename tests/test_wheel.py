"""What an installation without a checkout holds: the wheel is built and compared with what the repository tracks."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from t2i_align import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("t2i_align", "reward_models")
FOLDERS = (*PACKAGES, "configs")
BUILD = "from setuptools import build_meta; build_meta.build_wheel({0!r}); build_meta.build_sdist({0!r})"


def tracked() -> set[str]:
    """Files of the repository, with those that git does not know yet; without git, all that is there."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.splitlines() if _is_clone() else []
    found = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
    return {Path(name).as_posix() for name in found if (ROOT / name).is_file()}


def _is_clone() -> bool:
    return (ROOT / ".git").exists() and shutil.which("git") is not None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a wheel and a source archive of a copy of the checkout, which stays clean."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        if (
            name.split("/")[0] in FOLDERS
            or "/" not in name
            or name.startswith(("docs/", "findings/", "benchmarks/", ".ci/"))
        ):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(str(folder))],
        cwd=folder / "source",
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def in_wheel(name: str) -> str:
    return f"t2i_align/recipes/{name.removeprefix('configs/')}" if name.startswith("configs/") else name


def test_wheel_holds_exactly_what_the_repository_tracks(wheel: zipfile.ZipFile) -> None:
    """Every module, recipe, template and file of the built-in world; no tests, no leftovers."""
    expected = {in_wheel(name) for name in tracked() if name.split("/")[0] in FOLDERS}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    for name in ("recipes/sdxl/dpo_lora.yaml", "shapes/data/pairs/train.parquet", "evaluation/templates/report.css"):
        assert f"t2i_align/{name}" in held


def test_files_of_the_wheel_are_those_of_the_repository(wheel: zipfile.ZipFile) -> None:
    for name in tracked():
        if name.split("/")[0] in FOLDERS:
            assert wheel.read(in_wheel(name)) == (ROOT / name).read_bytes(), name


def test_wheel_is_for_every_system_and_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    info = f"t2i_align-{__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert wheel.filename is not None and wheel.filename.endswith("-py3-none-any.whl")
    assert "Requires-Python: <3.14,>=3.11\n" in metadata
    for requirement in setup["options"]["install_requires"].split():
        assert f"Requires-Dist: {requirement}\n" in metadata
    assert "t2i-align = t2i_align.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_installed_command_works_without_a_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, place = tmp_path / "site", tmp_path / "place"
    wheel.extractall(site)
    place.mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run([sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True)

    copied = run("-m", "t2i_align", "configs", "copy", "shapes/compare", "sdxl/dpo_lora")
    assert copied.returncode == 0, copied.stderr
    checked = run("-m", "t2i_align", "config", "check", "configs/shapes/compare.yaml", "configs/sdxl/dpo_lora.yaml")
    assert checked.returncode == 0, checked.stderr
    where = run("-c", "import t2i_align; from t2i_align import demo; print(t2i_align.__file__, demo.folder())")
    assert where.stdout.split() == [str(site / "t2i_align" / "__init__.py"), str(site / "t2i_align" / "recipes")]


def test_source_archive_holds_what_its_wheel_and_its_make_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked() if name.split("/")[0] in (*FOLDERS, "docs", "findings", "benchmarks")}
    assert wanted <= held
    assert {"Makefile", "requirements.lock", "README.md", "CHANGELOG.md", "LICENSE", ".ci/run"} <= held
