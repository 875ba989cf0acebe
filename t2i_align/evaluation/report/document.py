"""Fills the page's template with an evaluation's numbers, pictures and curves."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from reward_models.files import write_text
from t2i_align.evaluation import breakdown
from t2i_align.evaluation.drift.measure import Drift
from t2i_align.evaluation.judges import about
from t2i_align.evaluation.report.curves import read_run
from t2i_align.evaluation.report.drift_section import drift_page
from t2i_align.evaluation.report.pictures import galleries
from t2i_align.evaluation.report.walk_section import walk_page
from t2i_align.evaluation.results import Comparison, Evaluation
from t2i_align.evaluation.verdict import MIN_UNITS, percent, span
from t2i_align.evaluation.walk import Walk

PACKAGES = ("t2i_align", "torch", "diffusers", "transformers", "peft", "numpy", "scipy")


def render(
    evaluation: Evaluation,
    output: str | Path,
    runs: Mapping[str, str | Path] | None = None,
    model: str | None = None,
    drift: Drift | None = None,
    walks: Sequence[Walk] = (),
) -> Path:
    """Write one self-contained HTML page: no file, font or address outside it is needed to read it.

    Args:
        evaluation: what to report.
        output: file to write.
        runs: model name -> its run folder, for training curves, configuration and environment.
        model: the model on trial; None reports on all that are neither baseline, control nor checkpoints.
        drift: what ``drift.measure`` found; None leaves the section out.
        walks: pictures between two users, see ``walk.measure``.

    Returns:
        ``output`` as a path.

    Raises:
        UserError: a run folder without metrics.
    """
    output = Path(output)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **_context(evaluation, runs or {}, model, drift),
            walks=[walk_page(walk, evaluation.primary) for walk in walks],
        )
    )
    write_text(output, page)
    return output


def _context(
    evaluation: Evaluation, runs: Mapping[str, str | Path], model: str | None, drift: Drift | None = None
) -> dict:
    candidates = [model] if model else evaluation.candidates
    several = len(candidates) > 1
    model = candidates[0]
    table = evaluation.comparisons()
    main = evaluation.comparison(model)
    scorer, dimension = evaluation.primary
    judged = None if evaluation.control in (None, *candidates) else evaluation.control
    return {
        "evaluation": evaluation,
        "candidates": candidates,
        "main": main,
        "rows": {name: evaluation.comparison(name) for name in candidates},
        "verdict": evaluation.overall(candidates) if several else main.verdict,
        "control": None if judged is None else evaluation.control_verdict(None if several else model),
        "score_name": f"{scorer} {dimension}",
        "single": _of_one_dimension(evaluation),
        "means": {name: evaluation.mean(name) for name in evaluation.models},
        "notes": evaluation.settings.get("notes") or {},
        "bars": [evaluation.comparison(name) for name in evaluation.models if name != evaluation.baseline],
        "dimension_bars": {name: [row for row in table if row.model == name] for name in candidates},
        "table": table,
        "table_means": {(row.model, row.scorer, row.dimension): _means(evaluation, row) for row in table},
        "groups": {
            group: {name: evaluation.by_group(name, group) for name in candidates}
            for group in evaluation.prompts.groups
        },
        "group_rows": [row for row in breakdown.rows(evaluation) if row[0] and row[2].model in candidates],
        "ranking": evaluation.ranking() if len(evaluation.models) > 2 else {},
        "galleries": galleries(evaluation, candidates),
        "drift": None if drift is None else drift_page(drift, candidates),
        "runs": [read_run(name, folder) for name, folder in runs.items()],
        "judges": _judges(evaluation),
        "min_units": MIN_UNITS,
        "missing": {name: n for name in evaluation.models if (n := evaluation.scores.missing(name))},
        "commands": _commands(evaluation, runs),
        "environment": _packages(),
        "written": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    }


def _judges(evaluation: Evaluation) -> dict[str, str]:
    """Scorer -> what it is."""
    names, specs = list(evaluation.scores.versions), evaluation.settings.get("scorers") or []
    asked = dict(zip(names, specs, strict=True)) if len(specs) == len(names) else {}
    return {name: about(name, asked.get(name, "")) for name in names}


def _of_one_dimension(evaluation: Evaluation) -> set[str]:
    """Scorers that give one number, whose dimension need not be named."""
    owners = [owner for owner, _ in evaluation.scores.dimensions]
    return {owner for owner in owners if owners.count(owner) == 1}


def _means(evaluation: Evaluation, row: Comparison) -> tuple[float, float]:
    """Mean scores of baseline and model on all their scored pictures."""
    before = evaluation.mean(row.baseline, row.scorer, row.dimension)
    return before.value, evaluation.mean(row.model, row.scorer, row.dimension).value


def _commands(evaluation: Evaluation, runs: Mapping[str, str | Path]) -> list[str]:
    """Shell commands that train the runs and repeat the evaluation."""
    settings = evaluation.settings
    if settings.get("command"):
        return [settings["command"]]
    train = [shlex.join(["t2i-align", "train", f"{folder}/config.yaml"]) for folder in runs.values()]
    evaluate = ["t2i-align", "evaluate"]
    of_runs = {name for steps in (settings.get("checkpoints") or {}).values() for name in steps.values()}
    evaluate += [f"{name}={path}" for name, path in evaluation.models.items() if name not in of_runs]
    evaluate += ["--baseline", evaluation.baseline]
    if evaluation.control:
        evaluate += ["--control", evaluation.control]
    if settings["prompts"] is not None:
        evaluate += ["--prompts", str(settings["prompts"])]
    else:
        evaluate += [word for prompt in evaluation.prompts.prompts for word in ("--prompt", prompt)]
    for scorer in settings["scorers"]:
        evaluate += ["--scorer", scorer]
    for name in ("limit", "seeds_per_prompt", "num_inference_steps", "guidance_scale", "seed", "height", "width"):
        if settings.get(name) is not None:
            evaluate += [f"--{name.replace('_', '-')}", str(settings[name])]
    evaluate += ["--shuffle-prompts"] if settings.get("shuffle_prompts") else []
    for name, negative in (settings.get("negative") or {}).items():
        evaluate += ["--negative-model", f"{name}={negative}"]
    if settings.get("negative_merge"):
        evaluate += ["--negative-merge", str(settings["negative_merge"])]
    for name, who in (settings.get("users") or {}).items():
        evaluate += ["--user", f"{name}={who}"]
    for name, who in (settings.get("towards") or {}).items():
        evaluate += ["--user-to", f"{name}={who}"]
    if settings.get("user_scale", 1.0) != 1.0:
        evaluate += ["--user-scale", str(settings["user_scale"])]
    if settings.get("user_guidance") is not None:
        evaluate += ["--user-guidance", str(settings["user_guidance"])]
    for name in ("base", "dtype", "negative_prompt", "sampler", "variant"):
        if settings.get(name) is not None:
            evaluate += [f"--{name.replace('_', '-')}", str(settings[name])]
    for name in ("proxy", "features"):
        if settings.get(name):
            evaluate += [f"--{name}", str(settings[name])]
    for name, folder in (settings.get("checkpoint_runs") or {}).items():
        evaluate += ["--checkpoints", f"{name}={folder}"]
    if evaluation.tolerance:
        evaluate += ["--tolerance", str(evaluation.tolerance)]
    if evaluation.confidence != 0.95:
        evaluate += ["--confidence", str(evaluation.confidence)]
    for name, folder in runs.items():
        evaluate += ["--run", f"{name}={folder}"]
    return [*train, shlex.join([*evaluate, "--output-dir", str(evaluation.folder)])]


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _environment() -> Environment:
    folder = files("t2i_align.evaluation") / "templates"

    def load(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": lambda share: _tie(percent(share)),
        "span": lambda rate: _tie(span(rate)),
        "tie": _tie,
        "score": _score,
        "signed": _signed,
        "p": _p_value,
    }
    environment.filters.update(filters)
    environment.globals["include_raw"] = lambda name: Markup(load(name))
    return environment


def _tie(text: str) -> str:
    """Keep per cent signs on the line of their number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _score(value: float | None) -> str:
    """Three digits after the point for small numbers, fewer for large ones."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _signed(value: float) -> str:
    """With a sign, minus as a minus."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) < 10 else f"{value:+.2f}".replace("-", "−")


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
