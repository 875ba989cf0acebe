"""What more pairs would bring: held-out accuracy of a head against the number of training pairs.

    python benchmarks/reward_learning_curve.py configs/shapes/rewards/pickscore.yaml --pairs 250 500 1000 2000 \
        --out curve/ max_train_steps=400

Every size is a subset of the next, drawn from all sources of the configuration at once, and trains for the same number
of steps from the same start. Writes curve.json and curve.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.training.loop import train
from reward_models.training.records import PreferenceRecord
from t2i_align.rewards.training import load_config, open_records


class Subset(Sequence[PreferenceRecord]):
    """Some records, read when asked for."""

    def __init__(self, records: Sequence[PreferenceRecord], indices: Sequence[int]) -> None:
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.records[self.indices[index]]


def measure(config: Path, overrides: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    """One row per size: accuracy, log loss and calibration of the best and of the last scorer."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = load_config(config, [*overrides, f"output_dir={folder}/run"])
            records, held_out = open_records(run)
            order = np.random.default_rng(run.seed).permutation(len(records))[:size].tolist()
            report = train(run.training, Subset(records, order), held_out).report
        row: dict[str, Any] = {"pairs": len(order)}
        for which in ("best", "final"):
            part = report[which]["overall"]
            row[which] = {key: part[key] for key in ("accuracy", "log_loss", "expected_calibration_error")}
        row["untied_held_out_pairs"] = report["final"]["overall"]["untied_pairs"]
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the number of pairs, with one standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    pairs = [row["pairs"] for row in rows]
    for which in ("best", "final"):
        values = np.array([row[which]["accuracy"] for row in rows])
        error = np.sqrt(values * (1 - values) / [row["untied_held_out_pairs"] for row in rows])
        axes.errorbar(pairs, values, error, marker="o", capsize=3, label=which)
    axes.axhline(0.8, color="0.7", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="training pairs", ylabel="accuracy on untied held-out pairs")
    axes.set_xticks(pairs, [f"{count:,}" for count in pairs], rotation=30)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Parse the command line, train once per size, write numbers and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.config, arguments.overrides, arguments.pairs)
    (arguments.out / "curve.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    plot(rows, arguments.out / "curve.png")


if __name__ == "__main__":
    main()
