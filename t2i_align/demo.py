"""The main job on the embedded world: align, run the control, judge both, report.

The control is the same run on shuffled labels. If it won too, the gain would not come from the preferences.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from t2i_align import progress
from t2i_align.config.loading import load_config
from t2i_align.config.recipes import folder
from t2i_align.config.schema import RunConfig
from t2i_align.evaluation import evaluate
from t2i_align.evaluation.summary import write_summary
from t2i_align.training.run import TrainResult, train

RECIPE = "shapes/dpo.yaml"
SUMMARY = "summary.json"
NUM_PROMPTS = 128
BATCH_SIZE = 50


def run(output_dir: str | Path, say: Callable[[str], None] = progress.say) -> dict:
    """Align the packaged SDXL with Diffusion-DPO and prove it; returns the content of ``summary.json``.

    Everything is resumable: run it again after an interruption, or to see the report again.

    Args:
        output_dir: receives ``dpo/`` and ``control/`` (run folders), ``eval/``, ``summary.json``, ``report.html``.
        say: prints a line of progress.

    Raises:
        UserError: see the steps; also when the recipes are missing.
    """
    started = time.perf_counter()
    output_dir = Path(output_dir)
    config = load_config(folder() / RECIPE)
    say("[1/3] Diffusion-DPO on the packaged preference pairs")
    tuned = _train(config, output_dir / "dpo", shuffle_labels=False)
    say("[2/3] the control: the same run on shuffled labels")
    control = _train(config, output_dir / "control", shuffle_labels=True)
    say(f"[3/3] base, tuned and control draw {NUM_PROMPTS} held-out prompts, judged by the oracle")
    evaluation = evaluate.run(
        {
            "base": config.model.pretrained_model_name_or_path,
            "tuned": str(tuned.output_dir),
            "control": str(control.output_dir),
        },
        "shapes",
        ["oracle"],
        output_dir / "eval",
        control="control",
        runs={"tuned": tuned.output_dir, "control": control.output_dir},
        limit=NUM_PROMPTS,
        num_inference_steps=config.validation.num_inference_steps,
        guidance_scale=config.validation.guidance_scale,
        batch_size=BATCH_SIZE,
        report=False,
    )
    report = _report(evaluation, output_dir, tuned, control)
    seconds = round(time.perf_counter() - started, 1)
    summary = write_summary(
        evaluation,
        output_dir / SUMMARY,
        round(tuned.train_seconds, 1),
        seconds=seconds if tuned.trained or control.trained else _seconds_before(output_dir) or seconds,
        report=report.name,
    )
    _conclude(summary, report, print if say is progress.say else say)  # the result is said to --quiet too
    return summary


def _seconds_before(output_dir: Path) -> float | None:
    """What the whole job took when it was done: showing its report again takes no time worth a record."""
    file = output_dir / SUMMARY
    return json.loads(file.read_text(encoding="utf-8"))["seconds"] if file.is_file() else None


def _train(config: RunConfig, output_dir: Path, *, shuffle_labels: bool) -> TrainResult:
    training = config.training.model_copy(update={"resume_from_checkpoint": "latest"})
    data = config.data.model_copy(update={"shuffle_labels": shuffle_labels})
    if data.cache_dir is not None:  # one cache serves both runs: the pictures are the same
        data = data.model_copy(update={"cache_dir": str(output_dir.parent / "cache")})
    update = {"output_dir": str(output_dir), "training": training, "data": data}
    return train(config.model_copy(update=update), may_change=False)


def _report(evaluation: evaluate.Evaluation, output_dir: Path, tuned: TrainResult, control: TrainResult) -> Path:
    from t2i_align.evaluation.drift import measure
    from t2i_align.evaluation.report import render

    runs = {"tuned": tuned.output_dir, "control": control.output_dir}
    return render(evaluation, output_dir / evaluate.REPORT_FILE, runs, drift=measure(evaluation))


def _conclude(summary: dict, report: Path, say: Callable[[str], None]) -> None:
    low, high = summary["win_rate_ci"]
    control_low, control_high = summary["control_win_rate_ci"]
    say("")
    say(summary["verdict"])
    say(f"  win rate against the base   {summary['win_rate']:.3f}  [{low:.3f}, {high:.3f}]")
    say(f"  control, shuffled labels    {summary['control_win_rate']:.3f}  [{control_low:.3f}, {control_high:.3f}]")
    say(f"  oracle score                {summary['oracle_base']:.3f} -> {summary['oracle_tuned']:.3f}")
    say(f"  training                    {summary['train_seconds']:.0f} s, all of it {summary['seconds']:.0f} s")
    say(f"Open {report}")
