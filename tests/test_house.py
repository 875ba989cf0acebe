"""Rules of the house that no single room can check: imports, sizes, paths, promises of the front page."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("t2i_align", "reward_models")
TOP_LEVEL = ("*.md", "*.in", "*.lock", "*.toml", "*.cfg", "Makefile", "MANIFEST.in", ".ci/run", ".gitignore")
FOLDERS = (*PACKAGES, "tests", "configs", "docs", "notebooks", "benchmarks", "findings")
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
    ".txt",
    ".json",
    ".html",
    ".j2",
    ".css",
    ".ipynb",
    ".sh",
}
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = re.compile(
    r"os\.(fork|forkpty|get[eg]?[gu]id|killpg|mkfifo|sched_\w+|setsid|sysconf|uname)$|signal\.SIG(KILL|USR\d)$"
)
OPTIONAL = {"xformers", "bitsandbytes", "wandb", "deepspeed", "gradio"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def text_files() -> Iterator[Path]:
    for pattern in TOP_LEVEL:
        yield from ROOT.glob(pattern)
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_SUFFIXES)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """First parts of the absolutely imported modules."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_module_imports() -> None:
    """Names that nothing defines and modules that moved show up here, whichever room they are in."""
    failures = {}
    for path in SOURCES:
        try:
            importlib.import_module(module(path))
        except Exception as error:
            failures[name(path)] = repr(error)
    assert failures == {}


def test_optional_dependencies_are_imported_where_used() -> None:
    assert [name(path) for path in SOURCES if imported(iter(tree(path).body)) & OPTIONAL] == []


def test_the_packages_import_on_every_system() -> None:
    """Nobody here runs Windows: what only POSIX has is imported where it is used, behind a look at the platform."""
    assert [name(path) for path in SOURCES if imported(iter(tree(path).body)) & POSIX_ONLY] == []
    for path in SOURCES:
        calls = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert not [call for call in calls if POSIX_CALLS.match(call)], name(path)


def test_files_are_of_readable_size() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (*SOURCES, *TESTS)}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


MOVES = {  # what is moved here are whole folders, or a finished file to another place
    "reward_models/checkpoints.py",
    "reward_models/training/loop.py",
    "reward_models/training/run_folder.py",
    "t2i_align/compare/run.py",
    "t2i_align/data/cache_index.py",
    "t2i_align/export/run.py",
    "t2i_align/training/checkpoints.py",
}


def moves(node: ast.AST) -> bool:
    """A call of `os.replace`, `shutil.move` or their like, or of a path's method (one argument; a string's has two)."""
    if isinstance(node, ast.ImportFrom):
        return node.module in ("os", "shutil") and bool({"replace", "rename", "move"} & {a.name for a in node.names})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    of_module = ast.unparse(node.func.value) in ("os", "shutil")
    method = len(node.args) == 1 and not node.keywords
    return node.func.attr in ("replace", "rename", "renames", "move") and (of_module or method)


def test_files_are_replaced_in_one_place() -> None:
    """`complete_file` cleans up after errors and shares its temporary names with nobody, which is easily forgotten."""
    found = {name(path) for path in SOURCES if any(map(moves, ast.walk(tree(path))))}
    assert found == {"reward_models/files.py", *MOVES}


WRITERS = {"save_file", "save_pretrained", "save_lora_weights"}  # safetensors keeps what they write to its owner
SHARED_BY = {  # function that writes into a folder -> function that shares or moves the whole folder
    "t2i_align/backbones/pieces.py:write_pieces": "t2i_align/training/checkpoints.py:_publish",
    "t2i_align/training/checkpoints.py:_write_rest": "t2i_align/training/checkpoints.py:_publish",
    "t2i_align/export/weights.py:save_lora": "t2i_align/export/run.py:_publish",
    "t2i_align/export/weights.py:save_unet": "t2i_align/export/run.py:_publish",
    "t2i_align/shapes/tokenizer.py:save_tokenizer": "t2i_align/shapes/pretrain.py:write_pipeline",
}


def calls(node: ast.AST) -> set[str]:
    """Last names of what is called anywhere inside."""
    found = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
    return {function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "") for function in found}


def test_everything_written_by_safetensors_is_shared() -> None:
    """Files that others on the machine cannot read look like any other to whoever wrote them."""
    functions = {
        f"{name(path)}:{node.name}": calls(node)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
    }
    shared = {place for place, called in functions.items() if called & {"share", "complete_file"}}
    writing = {place for place, called in functions.items() if called & WRITERS}
    assert writing - shared == set(SHARED_BY)
    assert set(SHARED_BY.values()) <= shared


def test_reward_models_stand_alone() -> None:
    for path in SOURCES:
        if path.is_relative_to(ROOT / "reward_models"):
            assert "t2i_align" not in imported(ast.walk(tree(path))), name(path)


def test_text_is_read_in_one_place() -> None:
    """`str.splitlines` breaks lines at U+2028 and its like, which prompts may hold; csv has more ways to be wrong."""
    for path in SOURCES:
        readers = {"csv"} & imported(ast.walk(tree(path)))
        assert not readers or name(path) == "reward_models/text_tables.py", name(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "splitlines":
                assert ".read" not in ast.unparse(node.func.value), f"{name(path)}:{node.lineno}"


def test_torch_load_never_unpickles_code() -> None:
    for path in (*SOURCES, *TESTS):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only")
                assert safe == "True", f"{name(path)}:{node.lineno}"


def test_no_test_is_skipped() -> None:
    skips = re.compile(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)$")
    for path in TESTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute):
                assert not skips.match(ast.unparse(node)), f"{name(path)}:{node.lineno}"


def test_no_file_names_a_machine_or_a_package_index() -> None:
    folders = "|".join(("work", "root", "home", "Users"))
    pattern = re.compile(rf"(?<![\w.])/({folders})/|--(extra-)?index-url|\bpy[p]i\b|python[h]osted")
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not pattern.search(line), f"{name(path)}:{number}: {line.strip()[:100]}"


def test_findings_are_complete_and_pinned() -> None:
    """Their form only: they need a network, so no test runs them."""
    table = (ROOT / "findings" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "findings").iterdir()} == {"README.md", *(path.name for path in FINDINGS)}
    assert sorted(re.findall(r"(?m)^\| `(\w+\.sh)`", table)) == [path.name for path in FINDINGS] != []
    for path in FINDINGS:
        text = path.read_text(encoding="utf-8")
        assert os.access(path, os.X_OK) and text.startswith("#!/usr/bin/env bash\n"), path.name
        assert all(f"\n# {part}:" in text for part in ("Package", "Input", "Expected", "Seen")), path.name
        assert "\nset -euo pipefail\n" in text and "exit 1" in text, path.name
        assert not re.search(r"https?:|index|find-links|t2i_align|reward_models|\|\| true", text), path.name
        installed = {word for line in text.splitlines() if "pip install" in line for word in _requirements(line)}
        assert installed and all(re.fullmatch(r"[\w.-]+==\d[\w.]*", word) for word in installed), path.name
        named = re.search(r"# Package:\s+(\S+) (\d[\w.]*\d)", text)
        assert named and "==".join(named.groups()) in installed and " ".join(named.groups()) in table, path.name


def _requirements(line: str) -> list[str]:
    """What pip is told to install in a line of a shell script: neither options nor shell variables."""
    return [word for word in line.partition("pip install")[2].split() if not word.startswith(("-", '"'))]


def test_undefined_names_are_always_reported() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "F" in lint["select"]
    ignored = [
        *lint.get("ignore", ()),
        *(rule for rules in lint.get("per-file-ignores", {}).values() for rule in rules),
    ]
    assert not {"F", "F8", "F82", "F821"} & set(ignored)


def test_lock_pins_and_hashes_every_direct_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = {match[1].lower().replace("_", "-") for match in re.finditer(r"(?m)^([\w.-]+)==[^\s]+.*\\$", lock)}
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    wanted = {re.split(r"[=<>; ]", line)[0].lower().replace("_", "-") for line in lines if line and line[0] != "#"}
    assert wanted <= pinned
    assert lock.count("--hash=sha256:") >= len(pinned)


def test_package_requires_only_what_the_lock_holds() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = setup["options"]["install_requires"].split()
    listed = {line.lower().replace("_", "-") for line in _names(ROOT / "requirements.in")}
    assert {re.split(r"[=<>]", word)[0].lower().replace("_", "-") for word in required} <= listed


def _names(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield re.split(r"[=<>; ]", line)[0]


def test_front_page_names_both_commands_and_links_to_what_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", readme, flags=re.DOTALL)
    assert [block.strip() for block in blocks if block.startswith("make ")] == ["make demo", "make test"]
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / link).is_file(), link


def test_changelog_and_licence_exist() -> None:
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog\n")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_make_runs_the_named_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "lint", "lock", "docs", "clean"):
        assert re.search(rf"(?m)^{target}:", makefile), target
    assert "--require-hashes -r requirements.lock" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
