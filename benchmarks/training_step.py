"""Training step: pairs per second, peak memory and share of the floor, beside another script where one is given.

    python benchmarks/training_step.py --size shapes --json runs/training-step.json
    python benchmarks/training_step.py --size shapes --peer train_diffusion_dpo_sdxl.py --set live --set precomputed
    python benchmarks/training_step.py --size sdxl-1024 --pairs 8 --precision bf16 --peer train_diffusion_dpo_sdxl.py

Every contestant is a process of its own, started by its own command line on the same model folder and the same pairs.
They take turns: one optimiser step each, nobody else running, over and over; so a machine that slows down slows all of
them. Medians over the turns count. Memory is the most that tensors held at once, weights and optimiser included, in
one more step; that of the process, libraries included; and what was allocated on a GPU.

The floor is the step's own calls of the UNet, repeated in the same process on the same inputs, with a backward pass
where the step made one: what is left when everything but the network is free. CPU seconds tell more than wall seconds
where the machine is shared.

UNets of the published sizes have random weights (`random_models.py`); `--set NAME=key.path=value,...` adds a variant of
our own run, `--peer-arguments` replaces the arguments of a peer that is not the diffusers research script.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT, write_report
from turns import LISTEN, SPEAK

HERE = Path(__file__).parent
SIZES = {"shapes": ("shapes", 64), "sd15": ("sd15", 512), "sdxl-512": ("sdxl", 512), "sdxl-1024": ("sdxl", 1024)}
STEPS = 100000  # contestants are stopped, they never finish
PEER = (
    "--pretrained_model_name_or_path {model} --dataset_name {pairs} --dataset_split_name train "
    "--resolution {resolution} --train_batch_size {batch} --rank {rank} --max_train_steps {steps} "
    "--num_train_epochs {steps} --output_dir {output} --cache_dir {output}/datasets --checkpointing_steps {steps} "
    "--no_hflip --seed 0 --learning_rate 1e-5 --lr_warmup_steps 0"
)


@dataclass
class Contestant:
    """A training process that makes a step when told to."""

    name: str
    command: list[str]
    steps: list[dict[str, float]] = field(default_factory=list)
    floors: list[dict[str, float]] = field(default_factory=list)
    tensors: float | None = None

    def start(self, log: Path) -> None:
        """Launch, and wait for the first step."""
        hear, speak = os.pipe()
        listen, tell = os.pipe()
        environment = {**os.environ, LISTEN: str(listen), SPEAK: str(speak), "PYTHONPATH": os.pathsep.join([str(ROOT)])}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "turns.py"), *self.command],
            env=environment,
            pass_fds=(listen, speak),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        os.close(listen), os.close(speak)
        self._reports, self._tell, self._log = os.fdopen(hear), tell, log
        self._report()

    def step(self) -> None:
        """One optimiser step."""
        self.steps.append(self._ask("s"))

    def floor(self) -> None:
        """Its bare network passes."""
        self.floors.append(self._ask("f"))

    def count(self) -> None:
        """One more step, to count its tensors; compiled kernels make theirs where nobody sees them."""
        if not any("model.compile=true" in part for part in self.command):
            self.tensors = self._ask("m")["tensors"]

    def stop(self) -> None:
        """Leave without finishing the run."""
        os.write(self._tell, b"q")
        self._process.wait()

    def _ask(self, letter: str) -> dict[str, float]:
        os.write(self._tell, letter.encode())
        return self._report()

    def _report(self) -> dict[str, float]:
        line = self._reports.readline()
        if not line:
            sys.exit(f"{self.name} ended; the last lines of {self._log}:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)

    def row(self, batch: int, base: Contestant | None) -> dict[str, Any]:
        """What the table shows."""
        wall, cpu = (statistics.median(step[clock] for step in self.steps) for clock in ("wall", "cpu"))
        row = {"run": self.name, "pairs/s": batch / wall, "s/step": wall, "cpu s/step": cpu}
        row |= {"tensors MB": self.tensors, "process MB": self.steps[-1]["rss"], "GPU MB": self.steps[-1]["gpu"]}
        row["UNet calls"] = int(self.floors[-1]["calls"]) if self.floors else None
        for clock, seconds in (("wall", wall), ("cpu", cpu)):
            floor = statistics.median(one[clock] for one in self.floors) if self.floors else None
            row[f"floor/step ({clock})"] = None if floor is None else floor / seconds
        if base is not None:
            ratios = {clock: _ratio(self, base, clock) for clock in ("wall", "cpu")}
            row |= {f"speed-up ({clock})": ratio for clock, ratio in ratios.items()}
            row["tensors ratio"] = self.tensors / base.tensors if self.tensors and base.tensors else None
            row["process ratio"] = row["process MB"] / base.steps[-1]["rss"]
        return row


def _ratio(one: Contestant, base: Contestant, clock: str) -> float:
    """Median over the turns of base's time / one's: neighbours in time are compared."""
    return statistics.median(b[clock] / a[clock] for a, b in zip(one.steps, base.steps, strict=True))


def contest(contestants: list[Contestant], folder: Path, warm_up: int, rounds: int) -> None:
    """Warm everybody up, then take turns; the floors come afterwards, so that they do not touch the peak."""
    for contestant in contestants:
        print(f"starting {contestant.name}", flush=True)
        contestant.start(folder / f"{contestant.name}.log")
        for _ in range(warm_up):
            contestant.step()
        contestant.steps.clear()
    for phase in ("steps", "floors"):
        for number in range(rounds):
            order = contestants if number % 2 == 0 else contestants[::-1]
            for contestant in order:
                if phase == "steps":
                    contestant.step()
                else:
                    contestant.floor()
    for contestant in contestants:
        contestant.count()
        contestant.stop()


def ours(
    arguments: argparse.Namespace, folder: Path, model: Path | str, pairs: Path, resolution: int
) -> list[Contestant]:
    """One contestant per `--set`."""
    common = [
        f"model.pretrained_model_name_or_path={model}",
        f"model.lora.rank={arguments.rank}",
        f"data.source={pairs}",
        f"data.resolution={resolution}",
        f"data.cache_dir={folder / 'cache'}",
        f"training.train_batch_size={arguments.pairs}",
        f"training.max_train_steps={arguments.steps}",
        f"training.mixed_precision={arguments.precision}",
        "training.resume_from_checkpoint=latest",
    ]
    found = []
    for variant in arguments.set or ["live="]:
        name, _, settings = variant.partition("=")
        run = folder / f"run-{name}"
        subprocess.run(["rm", "-rf", str(run)], check=True)
        words = [f"output_dir={run}", *common, *(word for word in settings.split(",") if word)]
        found.append(Contestant(f"t2i_align-{name}", ["t2i_align", "train", str(HERE / "training_step.yaml"), *words]))
    return found


def peer(arguments: argparse.Namespace, folder: Path, model: Path, pairs: Path, resolution: int) -> Contestant:
    """The script to compare with."""
    words = shlex.split(
        arguments.peer_arguments.format(
            model=model,
            pairs=pairs.parent,
            resolution=resolution,
            batch=arguments.pairs,
            rank=arguments.rank,
            steps=STEPS,
            output=folder / "peer",
        )
    )
    if arguments.precision != "no":
        words += ["--mixed_precision", arguments.precision]
    return Contestant(arguments.peer.stem, [str(arguments.peer.resolve()), *words])


def inputs(size: str, folder: Path) -> tuple[Path, Path]:
    """Model folder and parquet file of pairs that everybody reads."""
    family, resolution = SIZES[size]
    if family != "shapes":
        from random_models import write_model, write_pairs

        return write_model(family, folder / "model"), write_pairs(folder / "pairs", resolution)
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from t2i_align.shapes.assets import resolve

    pairs = folder / "pairs" / "pairs.parquet"
    pairs.parent.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(resolve("shapes:pairs"))
    pq.write_table(table.filter(pc.not_equal(table["label_0"], 0.5)), pairs)
    return Path(resolve("shapes:base")), pairs


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="shapes")
    parser.add_argument("--pairs", type=int, default=16, help="pairs per step")
    parser.add_argument("--rank", type=int, default=8, help="of the LoRA")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--rounds", type=int, default=12, help="turns that count")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each before")
    parser.add_argument("--set", action="append", metavar="NAME=key=value,...", help="a variant of our run; repeatable")
    parser.add_argument("--steps", type=int, default=100, help="max_train_steps of our runs: at least the turns")
    parser.add_argument("--peer", type=Path, help="training script to take turns with")
    parser.add_argument("--peer-arguments", default=PEER, help="its arguments; see PEER in the source for the names")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "training-step", help="model, pairs, cache, logs"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = (arguments.folder / arguments.size).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    resolution = SIZES[arguments.size][1]
    model, pairs = inputs(arguments.size, folder)
    contestants = ours(arguments, folder, model, pairs, resolution)
    base = peer(arguments, folder, model, pairs, resolution) if arguments.peer else None
    contest([*contestants, *([base] if base else [])], folder, arguments.warm_up, arguments.rounds)
    rows = [one.row(arguments.pairs, base) for one in [*contestants, *([base] if base else [])]]
    title = (
        f"training step, {arguments.size}, LoRA rank {arguments.rank}, {arguments.pairs} pairs, {arguments.precision}"
    )
    write_report(arguments.json, title, rows, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
