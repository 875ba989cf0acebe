"""``summary.json``: the few numbers of a run with its control that other programs read."""

from __future__ import annotations

from pathlib import Path

from reward_models.files import write_json
from t2i_align.evaluation.results import Evaluation


def write_summary(
    evaluation: Evaluation,
    path: str | Path,
    train_seconds: float,
    *,
    tuned: str = "tuned",
    control: str | None = "control",
    **extra: object,
) -> dict:
    """Write and return the summary.

    Keys: ``win_rate``, ``win_rate_ci`` [low, high], ``oracle_base``, ``oracle_tuned`` (mean primary scores),
    ``control_win_rate``, ``control_win_rate_ci`` (None without a control), ``train_seconds``, ``prompts``,
    ``verdict``, and whatever ``extra`` adds.

    Args:
        train_seconds: time spent training the tuned model.
        tuned, control: names within the evaluation.
    """
    main = evaluation.comparison(tuned)
    null = None if control is None else evaluation.comparison(control).win_rate
    summary = {
        "win_rate": main.win_rate.value,
        "win_rate_ci": main.win_rate.interval,
        "oracle_base": evaluation.mean(evaluation.baseline).value,
        "oracle_tuned": evaluation.mean(tuned).value,
        "control_win_rate": None if null is None else null.value,
        "control_win_rate_ci": None if null is None else null.interval,
        "train_seconds": train_seconds,
        "prompts": main.win_rate.n,
        "verdict": main.verdict.headline,
        **extra,
    }
    write_json(path, summary, indent=1)
    return summary
