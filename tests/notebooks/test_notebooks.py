"""The notebooks run, and what is kept of them belongs to their code."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from notebooks import execute
from t2i_align.config.loading import load_config

ROOT = Path(__file__).parents[2]
NOTEBOOKS = execute.paths()
NAMES = [path.stem for path in NOTEBOOKS]
SDXL_LINE = r"```python\n([^\n]+)\n```"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[list[Any]]]]:
    """Code cells of every notebook after it ran. Two kernels share them, one per core of a small machine.

    A kernel runs several, as importing the frameworks takes longer than most notebooks.
    """
    with ThreadPoolExecutor(max_workers=2) as workers:
        places = [execute.workplace(tmp_path_factory.mktemp("notebooks")) for _ in range(2)]
        queues = [NOTEBOOKS[first::2] for first in range(2)]
        results: dict[Path, Future[list[Any]]] = {path: Future() for path in NOTEBOOKS}
        for queue, place in zip(queues, places, strict=True):
            workers.submit(run_all, queue, place, results)
        yield results


def run_all(queue: list[Path], place: Path, results: dict[Path, Future[list[Any]]]) -> None:
    """Run notebooks one after another in one kernel; a failure belongs to its notebook alone."""
    manager = NotebookClient(execute.read(queue[0])).create_kernel_manager()
    try:
        for path in queue:
            notebook = execute.read(path)
            notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # nothing of the notebook before
            try:
                results[path].set_result(code_cells(execute.run(notebook, place, manager))[1:])
            except BaseException as error:
                results[path].set_exception(error)
    finally:
        run_sync(manager.shutdown_kernel)(now=True)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[str]:
    """What a cell shows, in order: pictures, text, tables, streams."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown = [name for name in ("image/png", "text/markdown", "text/html") if name in data]
        found.append(shown[0] if shown else output.get("name", output.output_type))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs_and_shows_what_is_kept(path: Path, executed: dict[Path, Future[list[Any]]]) -> None:
    cells = executed[path].result()
    for number, (cell, before) in enumerate(zip(cells, code_cells(execute.read(path)), strict=True), start=1):
        shown = [kind for kind in kinds(cell) if kind != "stderr"]  # another machine may have its own warnings
        assert shown == kinds(before), f"code cell {number}: {cell.source[:200]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_kept_with_the_pictures_of_its_code(path: Path) -> None:
    notebook = execute.read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.t2i_align[execute.HASH] == execute.code_hash(notebook), "run: make notebooks"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert shown.count("image/png") >= 2
    assert not {"stderr", "error"} & set(shown)
    for cell in cells:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_says_which_line_changes_for_sdxl(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    text = next(c.source for c in execute.read(path).cells if c.cell_type == "markdown" and "## On SDXL" in c.source)
    assert "One line changes" in text
    (line,) = re.findall(SDXL_LINE, text)
    names = {"load_config": load_config, "train": lambda run: run, "file": "mapo", "name": "mapo", "changes": []}
    exec(line, names)  # a configuration that is not valid raises
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(cell.source for cell in execute.read(path).cells)):
        assert (path.parent / target).is_file(), target
    for recipe in re.findall(r"\.\./(configs/[\w/.]+\.yaml)", text):
        assert (ROOT / recipe).is_file(), recipe


def test_there_are_six_small_ones_and_a_page_that_names_them() -> None:
    assert [name.partition("_")[0] for name in NAMES] == list("123456")
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 3 * 2**20
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert all(path.name in page for path in NOTEBOOKS)


def test_a_changed_cell_is_noticed() -> None:
    notebook = execute.read(NOTEBOOKS[0])
    before = execute.code_hash(notebook)
    notebook.cells[0].source += " text"
    assert execute.code_hash(notebook) == before
    code_cells(notebook)[0].source += "\n"
    assert execute.code_hash(notebook) != before
