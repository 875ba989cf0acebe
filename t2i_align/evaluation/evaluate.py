"""Is it better? Pictures, scores, intervals and a report in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i_align.backbones import sampler_name
from t2i_align.errors import UserError
from t2i_align.evaluation import generate, score, statistics, walk
from t2i_align.evaluation.ahead import check_checkpoints, check_models, check_output_folder
from t2i_align.evaluation.checkpoints import expand
from t2i_align.evaluation.manifest import read_settings
from t2i_align.evaluation.prompts import PromptSet, load_prompts
from t2i_align.evaluation.results import Evaluation
from t2i_align.evaluation.scorers import Scorer, check_scorers
from t2i_align.evaluation.users import UserChoice
from t2i_align.evaluation.worlds import default_prompts, default_scorers
from t2i_align.processes import Processes

REPORT_FILE = "report.html"


def run(
    models: Mapping[str, str | Path],
    prompts: str | Path | PromptSet | Sequence[str] | None,
    scorers: Sequence[str | Scorer] | None,
    output_dir: str | Path,
    *,
    baseline: str | None = None,
    control: str | None = None,
    runs: Mapping[str, str | Path] | None = None,
    checkpoints: Mapping[str, str | Path] | None = None,
    drift: bool = True,
    proxy: str | None = None,
    features: str | None = None,
    limit: int | None = None,
    shuffle_prompts: bool = False,
    seeds_per_prompt: int = 1,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    sampler: str | None = None,
    variant: str | None = None,
    base: str | Path | None = None,
    negative: Mapping[str, str | Path] | None = None,
    negative_merge: float = 0.0,
    users: UserChoice = generate.NOBODY,
    towards: Mapping[str, str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    tolerance: float = 0.0,
    confidence: float = 0.95,
    replicates: int = statistics.REPLICATES,
    overwrite: bool = False,
    show_progress: bool = True,
    report: bool = True,
    notes: Mapping[str, str] | None = None,
    command: str = "",
) -> Evaluation:
    """Generate, score, compare and report; interrupted evaluations go on where they stopped.

    Args:
        models: name -> model, see ``generate.run``.
        prompts: see ``load_prompts``; None, those of the shapes world, is for models of that world.
        scorers: see ``open_scorer``; the first dimension of the first one gives the verdict. None, the oracle of the
            shapes world, is for models of that world.
        output_dir: pictures per model, ``scores.parquet``, ``evaluation.json``, ``report.html``.
        baseline: name of the model that the others are compared with; None is ``base``, or else the first.
        control: name of the model that must not win (trained on shuffled labels).
        runs: model name -> its run folder, for training curves and configuration in the report. A model that is a run
            folder, or an export or checkpoint inside one, needs no mention.
        checkpoints: name -> run folder of which every checkpoint is judged too, for score against training step.
        drift: measure what changed beside the scores, see ``drift.measure``, for the report.
        proxy: score the models were trained on, ``SCORER`` or ``SCORER:DIMENSION``; it must be among the scores.
        features: CLIP-based reward model by which variety is measured.
        limit: only the first prompts.
        shuffle_prompts: bring the prompts into a fixed random order first, so that a limited set is a fair sample.
        towards: model name -> a user to whom the report shows the way from the model's own, see ``walk``.
        tolerance: score differences up to this size are ties.
        confidence, replicates: of the bootstrap intervals.
        report: write ``report.html``.
        notes: model name -> what a reader of the report must know of it.
        command: that repeats all of this, where it is not ``t2i-align evaluate``.

    Sampling arguments are those of ``generate.run``.

    Raises:
        UserError: fewer than two models, an unknown baseline or control, and everything the steps raise.
    """
    started = time.perf_counter()
    output_dir = Path(output_dir)
    check_output_folder(output_dir)
    paths = {name: str(path) for name, path in models.items()}
    baseline = baseline or ("base" if "base" in paths else next(iter(paths), ""))
    processes = Processes.here()
    if processes.is_main:
        expand(checkpoints or {}, output_dir / "checkpoints")
    processes.wait()
    exported, steps = expand(checkpoints or {}, output_dir / "checkpoints")  # which finds them there
    runs = {**run_folders(paths), **(runs or {})}
    paths |= exported
    _check(paths, baseline, control, scorers)
    check_models([*paths.values(), *(negative or {}).values()], base)
    scorers = default_scorers(scorers, paths.values(), base)
    prompts = default_prompts(prompts, paths.values(), base)
    walk.check(paths, towards or {}, users, base)
    prompt_set = load_prompts(prompts, limit, shuffle_prompts)
    sampling: dict[str, Any] = {
        "seeds_per_prompt": seeds_per_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt,
        "sampler": None if sampler is None else sampler_name(sampler),
        "variant": variant,
    }
    handling: dict[str, Any] = {
        "batch_size": batch_size,
        "base": base,
        "users": users,
        "device": device,
        "dtype": dtype,
        "overwrite": overwrite,
        "show_progress": show_progress,
    }
    folders = generate.run(
        paths, prompt_set, output_dir, negative=negative, negative_merge=negative_merge, **handling, **sampling
    )
    table = score.run(folders, scorers, output_dir, first_prompts=len(prompt_set), device=device)
    walks = []
    if towards:
        one_each = {**sampling, "seeds_per_prompt": 1}
        walks = walk.measure(
            paths, towards, prompts=prompt_set, scorers=scorers, output_dir=output_dir, **handling, **one_each
        )
    evaluation = Evaluation(
        folder=output_dir,
        models=paths,
        baseline=baseline,
        control=control,
        prompts=prompt_set,
        settings={
            **sampling,
            "base": None if base is None else str(base),
            "negative": {name: str(path) for name, path in (negative or {}).items()},
            "negative_merge": negative_merge,
            "users": dict(users.who),
            "user_scale": users.scale,
            "user_guidance": users.guidance_scale,
            "towards": dict(towards or {}),
            "dtype": read_settings(folders[baseline])["dtype"],
            "prompts": _source(prompts),
            "limit": limit,
            "checkpoints": steps,
            "checkpoint_runs": {name: str(folder) for name, folder in (checkpoints or {}).items()},
            "proxy": proxy,
            "features": features,
            "shuffle_prompts": shuffle_prompts,
            "scorers": [spec if isinstance(spec, str) else spec.name for spec in scorers],
            "notes": dict(notes or {}),
            "command": command,
            "seconds": round(time.perf_counter() - started, 1),
        },
        scores=table,
        confidence=confidence,
        replicates=replicates,
        tolerance=tolerance,
    )
    if processes.is_main:
        evaluation.write()
    if report and processes.is_main:
        from t2i_align.evaluation.drift import measure
        from t2i_align.evaluation.report import render

        measured = measure(evaluation, features=features, proxy=proxy, device=device) if drift else None
        render(evaluation, output_dir / REPORT_FILE, runs, drift=measured, walks=walks)
    processes.wait()
    return evaluation


def _source(prompts: str | Path | PromptSet | Sequence[str]) -> str | None:
    """What to ask for to get the same prompts again; None where only the texts themselves will do."""
    if isinstance(prompts, PromptSet):
        return prompts.name
    return str(prompts) if isinstance(prompts, str | Path) else None


def _check(
    models: Mapping[str, str], baseline: str, control: str | None, scorers: Sequence[str | Scorer] | None
) -> None:
    if len(models) < 2:
        raise UserError(
            "A comparison needs two models.",
            f"{len(models)} given",
            "name a base and a tuned one: base=... tuned=...",
        )
    for what, name in {"baseline": baseline, "control": control}.items():
        if name is not None and name not in models:
            raise UserError(f"The {what} is not among the models.", name, f"use one of: {', '.join(models)}")
    if control == baseline:
        raise UserError("The control cannot be the baseline.", baseline, "give the control a model of its own")
    if scorers is None:
        return
    if not scorers:
        raise UserError("No scorer was given.", "", "name at least one, e.g. --scorer oracle")
    check_scorers(scorers)
    check_checkpoints(scorers)


def run_folders(models: Mapping[str, str]) -> dict[str, Path]:
    """Run folders among the models, or right above them where a model is an export or a checkpoint."""
    found = {}
    for name, model in models.items():
        for folder in (Path(model), Path(model).parent):
            if (folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file():
                found[name] = folder
                break
    return found
