"""How long until something happens: import, help, a checked configuration, and a run's first optimiser step on shapes.

    python benchmarks/startup.py --out runs/startup.json

Every row is the best of several processes of its own on a warm disk. Seconds of the processor stand beside seconds of
the clock: on a machine with other work only the former say something. The first step is there when its row is in the
run's metrics.jsonl.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common import write_report

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "shapes" / "dpo.yaml"
BOUNDS = {"import t2i_align": 0.3, "t2i-align --help": 0.5, "first step, cache there": 10.0}  # seconds
POLL = 0.01


def started(words: list[str], output: IO[bytes]) -> subprocess.Popen:
    """A process of this interpreter, in the repository, that writes into a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=output, stderr=output)


def cost(words: list[str], done: Callable[[], bool] | None = None) -> tuple[float, float]:
    """Seconds of the clock and of the processor until a process ends, or until ``done``, when it is killed.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = started(words, output)
        reached = False
        while done is not None and process.poll() is None and not reached:
            time.sleep(POLL)
            reached = done()
        if reached:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0) if process.returncode is None else (0, process.returncode, None)
        wall = time.perf_counter() - begin
        if usage is None or (status != 0 and not reached):
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with status {status}:\n{output.read().decode()}")
    return wall, usage.ru_utime + usage.ru_stime


def first_step(folder: Path, cache: Path) -> tuple[float, float]:
    """Until the first logged step of a new run."""
    run = Path(tempfile.mkdtemp(dir=folder))
    metrics = run / "run" / "metrics.jsonl"
    words = ["-m", "t2i_align", "train", str(CONFIG), f"output_dir={run / 'run'}", f"data.cache_dir={cache}"]
    return cost([*words, "training.logging_steps=1"], lambda: metrics.is_file() and '"loss"' in metrics.read_text())


def best(measure: Callable[[], tuple[float, float]], rounds: int) -> tuple[float, float]:
    """Smallest seconds of either kind over several rounds."""
    walls, processors = zip(*(measure() for _ in range(rounds)), strict=True)
    return min(walls), min(processors)


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        building = first_step(Path(folder), cache)  # also warms the disk
        short = {
            "python -c pass": ["-c", "pass"],
            "import t2i_align": ["-c", "import t2i_align"],
            "t2i-align --help": ["-m", "t2i_align", "--help"],
            "t2i-align config check": ["-m", "t2i_align", "config", "check", str(CONFIG)],
            "import torch, diffusers, peft": [
                "-c",
                "import torch, peft; from diffusers import StableDiffusionXLPipeline",
            ],
        }
        measured = {name: best(lambda words=words: cost(words), arguments.rounds) for name, words in short.items()}
        measured["first step, cache there"] = best(lambda: first_step(Path(folder), cache), arguments.rounds)
        measured["first step, cache built first"] = building
    rows = [
        {"what": name, "clock s": round(wall, 2), "processor s": round(processor, 2), "bound s": BOUNDS.get(name)}
        for name, (wall, processor) in measured.items()
    ]
    write_report(arguments.out, "Start-up", rows, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
