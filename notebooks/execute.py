"""Run the notebooks and keep them with their pictures:

    python notebooks/execute.py                        all of them (make notebooks)
    python notebooks/execute.py 2_first_alignment      those named

They run in a temporary folder, so nothing of an earlier run is found; those of one call share the latent cache. What is
saved holds no timings and no paths, and a hash of the code it was made by: the tests refuse pictures of other code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
HASH = "made_by"
NO_WIDGETS = "ignore:IProgress not found"  # tqdm misses ipywidgets, which would only make its bars prettier


def paths() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook as saved."""
    return nbformat.read(path, as_version=4)


def code_hash(notebook: Any) -> str:
    """Of the code cells; text may change without running anything again."""
    digest = hashlib.blake2b(digest_size=8)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    return digest.hexdigest()


def workplace(folder: Path) -> Path:
    """A folder to run in, beside a copy of the recipes as notebooks/ is beside configs/."""
    shutil.copytree(FOLDER.parent / "configs", folder / "configs")
    place = folder / FOLDER.name
    place.mkdir()
    return place


def run(notebook: Any, place: Path, manager: Any = None) -> Any:
    """Run all cells, replacing their outputs; returns the notebook.

    Args:
        notebook: changed in place.
        place: working folder.
        manager: of a kernel to run in, which is left alive; None starts one for this notebook.

    Raises:
        CellExecutionError: a cell failed.
    """
    client = NotebookClient(notebook, km=manager, timeout=None, record_timing=False, coalesce_streams=True)
    return client.execute(cwd=str(place), env={**os.environ, "PYTHONWARNINGS": NO_WIDGETS})


def cleaned(notebook: Any) -> Any:
    """Without what differs from machine to machine, and with the hash of its code."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "t2i_align": {HASH: code_hash(notebook)},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def main(names: list[str]) -> None:
    """Run and save the named notebooks, or all."""
    with tempfile.TemporaryDirectory() as folder:
        place = workplace(Path(folder))
        for path in paths():
            if not names or path.stem in names:
                print(path.name, flush=True)
                nbformat.write(cleaned(run(read(path), place)), path)


if __name__ == "__main__":
    main(sys.argv[1:])
