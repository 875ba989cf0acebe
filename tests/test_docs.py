"""The documentation keeps its word: links lead somewhere, code parses, commands and messages exist, the site builds."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

from t2i_align.cli import app
from t2i_align.config.loading import load_config
from t2i_align.evaluation.judges import JUDGES
from t2i_align.objectives.listing import list_presets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for name in ("t2i_align", "reward_models") for path in (ROOT / name).rglob("*.py")
)
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Words of every ``t2i-align`` line in the page's shell blocks; continuation lines joined, comments dropped."""
    found = []
    for block in blocks(page, "", "bash", "sh"):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            if line.startswith("t2i-align "):
                found.append(shlex.split(line, comments=True)[1:])
    return found


def anchor(heading: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"(?ms)^```.*?^```|^ {4}[^\n]*$|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
            assert fragment in {anchor(heading) for heading in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_blocks_are_code(page):
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)
    for block in blocks(page, "json"):
        for text in block.splitlines() if block.startswith('{"') else [block]:  # JSON lines, or one document
            json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_exist(page):
    for words in commands(page):
        command, rest = typer.main.get_command(app), list(words)
        while isinstance(command, click.Group) or hasattr(command, "commands"):
            options = [word for word in rest if not word.startswith("-")]
            assert options and options[0] in command.commands, words
            rest = rest[rest.index(options[0]) + 1 :]
            command = command.commands[options[0]]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("-") and not re.fullmatch(r"-\d.*", word):
                assert word.partition("=")[0] in known | {"--help"}, words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_judges_of_commands_exist(page):
    for words in commands(page):
        for option, word in zip(words, words[1:], strict=False):
            for scorer in word.split(",") if option == "--scorer" else []:
                name = scorer.removeprefix("shapes:").partition("=")[0].partition(":")[0]
                assert name in JUDGES or name.endswith((".yaml", ".py")), words


def test_the_quick_start_judges_sdxl_by_reward_models():
    found = [words for words in commands(ROOT / "docs" / "quick-start.md") if words[0] == "evaluate"]
    sdxl = next(words for words in found if any("stable-diffusion-xl" in word for word in words))
    judges = {word.partition("=")[0] for option, word in zip(sdxl, sdxl[1:], strict=False) if option == "--scorer"}
    assert {"hpsv2.1", "pickscore"} <= judges and "oracle" not in judges
    assert sdxl[sdxl.index("--prompts") + 1] != "shapes" and int(sdxl[sdxl.index("--seeds-per-prompt") + 1]) > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_training_commands_are_valid_configurations(page):
    for words in commands(page):
        if words[0] == "train" and len(words) > 1 and words[1].startswith("configs/"):
            assert load_config(ROOT / words[1], words[2:]).output_dir


def test_quoted_messages_are_those_of_the_program():
    quoted = re.findall(r'\*\*"([^"]+)"', (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"))
    assert len(quoted) > 10
    for message in quoted:
        assert message in SOURCES, message


@pytest.mark.parametrize("page", METHODS, ids=lambda path: path.stem)
def test_a_method_page_says_all_that_is_promised(page):
    text = page.read_text(encoding="utf-8")
    for part in ("**When.**", "**How.**", "## Knobs", "## Expected curve", "## Failure signs"):
        assert part in text, part
    assert any(words[0] == "train" for words in commands(page))


def test_every_presets_paper_is_in_the_index():
    index = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for row in list_presets():
        assert f"`{row.name}`" in index, row.name
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", row.paper):
            assert f"https://arxiv.org/abs/{number}" in index, row.name


def test_every_page_is_in_the_site_and_the_site_builds(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config as load_site

    def pages(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = {str(path.relative_to(ROOT / "docs")) for path in PAGES[1:]}
    assert set(pages(settings["nav"])) == written
    build(load_site(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "methods" / "dpo.html").is_file()
