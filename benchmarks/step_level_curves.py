"""Win rate against wall time and UNet passes: runs of any kind, side by side.

    OMP_NUM_THREADS=1 python benchmarks/step_level_curves.py runs/curves --seeds 0 1 2 \
        --run "dpo=configs/shapes/dpo.yaml@25,50,100" --run "lpo=configs/shapes/lpo.yaml@16,32" \
        --run "all steps=configs/shapes/lpo.yaml rollout.highest_timestep=null@8,24"

A run is NAME=CONFIG [key=value ...]@STEPS: it is stopped at each of those steps, judged by the oracle on held-out
prompts against the base model on the same noise, and continued. Seconds are those inside optimiser steps, rollouts
included, of the fastest seed. Writes curves.json after every point and goes on where it was; curves.png at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2i_align.config.loading import load_config
from t2i_align.evaluation import generate, score, statistics
from t2i_align.evaluation.prompts import PromptSet, load_prompts
from t2i_align.evaluation.scorers import open_scorer
from t2i_align.training.metrics import read_metrics
from t2i_align.training.run import train

BASE = "shapes:base"


class Run(NamedTuple):
    """One line of the figure."""

    name: str
    config: str
    overrides: list[str]
    steps: list[int]


def parse(text: str) -> Run:
    """NAME=CONFIG [key=value ...]@STEPS."""
    name, rest = text.split("=", 1)
    words, steps = rest.rsplit("@", 1)
    config, *overrides = words.split()
    return Run(name, config, overrides, [int(step) for step in steps.split(",")])


def rows_through_unet(folder: Path, config: Any, steps: int) -> int:
    """Forward rows plus twice the backward rows, as counted by the trainer; arithmetic for an offline run."""
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "passes/unet_forward" in row]
    if last:
        return int(last[-1]["passes/unet_forward"] + 2 * last[-1]["passes/unet_backward"])
    pictures = 2 * config.training.train_batch_size * config.training.gradient_accumulation_steps * steps
    return pictures * (1 + 1 + 2)  # policy, reference, backward


def win_rate(folder: Path, models: dict[str, str], prompts: PromptSet) -> tuple[list[float], list[float], np.ndarray]:
    """Per-prompt oracle scores of the base model and of one trained model, and their outcomes."""
    drawn = generate.run(
        models, prompts, folder, num_inference_steps=20, guidance_scale=3.0, batch_size=50, show_progress=False
    )
    table = score.run(drawn, [open_scorer("oracle")], folder / "scores" / list(models)[-1])
    scorer, dimension = table.dimensions[0]
    base, tuned = (np.nanmean(table.matrix(model, scorer, dimension), axis=1) for model in models)
    return base.tolist(), tuned.tolist(), statistics.paired_outcomes(tuned, base)


def measure(run: Run, seed: int, out: Path, prompts: PromptSet, done: list[dict[str, Any]]) -> None:
    """Every point of one run with one seed that is not there yet."""
    for steps in run.steps:
        name = f"{re.sub('[^A-Za-z0-9]+', '-', run.name)}-{seed}"
        if any((point["run"], point["seed"], point["steps"]) == (run.name, seed, steps) for point in done):
            continue
        folder = out / "runs" / name
        settings = [f"output_dir={folder}", f"seed={seed}", f"training.max_train_steps={steps}", "report_to=[]"]
        settings += ["training.resume_from_checkpoint=latest", "training.checkpoints_total_limit=1"]
        config = load_config(run.config, [*run.overrides, *settings])
        seconds = train(config).train_seconds  # of all launches of the run
        models = {"base": BASE, f"{name}-{steps}": str(folder)}
        base, tuned, outcomes = win_rate(out / "pictures", models, prompts)
        point = {"run": run.name, "seed": seed, "steps": steps, "seconds": round(seconds, 1)}
        point |= {"unet_rows": rows_through_unet(folder, config, steps), "win_rate": float(np.nanmean(outcomes))}
        done.append(
            {**point, "score": float(np.mean(tuned)), "base": float(np.mean(base)), "outcomes": outcomes.tolist()}
        )
        print(json.dumps({**point, "score": done[-1]["score"]}), flush=True)
        write(out / "curves.json", done)


def write(path: Path, points: list[dict[str, Any]]) -> None:
    """All of it or nothing."""
    described = {"date": date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps({**described, "points": points}) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def summarise(points: list[dict[str, Any]], runs: list[Run]) -> list[dict[str, Any]]:
    """Points of all seeds together: outcomes averaged within a prompt, interval over prompts."""
    rows = []
    for run in runs:
        for steps in run.steps:
            group = [point for point in points if (point["run"], point["steps"]) == (run.name, steps)]
            if not group:
                continue
            outcomes = np.array([point["outcomes"] for point in group])
            estimate = statistics.mean(outcomes.mean(axis=0))
            rows.append(
                {
                    "run": run.name,
                    "steps": steps,
                    "seeds": len(group),
                    "seconds": min(point["seconds"] for point in group),  # the seed least disturbed by other work
                    "unet_rows": float(np.median([point["unet_rows"] for point in group])),
                    "win_rate": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "by_seed": [round(point["win_rate"], 3) for point in group],
                }
            )
    return rows


def plot(rows: list[dict[str, Any]], runs: list[Run], path: Path) -> None:
    """Two panels: over seconds, and over rows through the UNet."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (key, label) in zip(
        panels,
        (("seconds", "seconds of training"), ("unet_rows", "rows through the UNet, backward rows twice")),
        strict=True,
    ):
        for run in runs:
            mine = [row for row in rows if row["run"] == run.name]
            x, y = [row[key] for row in mine], np.array([[row[k] for k in ("win_rate", "low", "high")] for row in mine])
            axes.errorbar(x, y[:, 0], [y[:, 0] - y[:, 1], y[:, 2] - y[:, 0]], marker="o", capsize=3, label=run.name)
        axes.axhline(0.5, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.set(xlabel=label, xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("win rate against the base model")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line, measure what is missing, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--run", type=parse, action="append", required=True, metavar="NAME=CONFIG [key=value ...]@STEPS"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-prompts", type=int, default=128)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "curves.json"
    points = json.loads(kept.read_text(encoding="utf-8"))["points"] if kept.is_file() else []
    prompts = load_prompts("shapes", arguments.num_prompts)
    for seed in arguments.seeds:
        for run in arguments.run:
            measure(run, seed, arguments.out, prompts, points)
    rows = summarise(points, arguments.run)
    plot(rows, arguments.run, arguments.out / "curves.png")
    for row in rows:
        interval = f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        cost = f"{row['seconds']:7.0f} s {row['unet_rows']:8.0f} rows"
        print(f"{row['run']:24} {row['steps']:4} steps {cost}  {interval}  {row['by_seed']}")


if __name__ == "__main__":
    main()
