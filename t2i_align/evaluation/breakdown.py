"""Every comparison of an evaluation as one table, over all prompts and within each kind of prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reward_models.files import complete_file
from t2i_align.evaluation.results import Comparison, Evaluation, corrected

COMPARISONS_FILE = "comparisons.parquet"

Row = tuple[str, str, Comparison]
"""(group, label, comparison); both empty for all prompts together."""


def rows(evaluation: Evaluation) -> list[Row]:
    """All models against the baseline by all scores: first over all prompts, then by label of each group.

    Holm's correction runs over all rows of one group (or over the rows of all prompts): looking at many kinds of
    prompts is many comparisons.
    """
    table: list[Row] = [("", "", row) for row in evaluation.comparisons()]
    for group in evaluation.prompts.groups:
        found = list(_within(evaluation, group))
        rows_of = corrected([row for _, row in found])
        table += [(group, label, row) for (label, _), row in zip(found, rows_of, strict=True)]
    return table


def _within(evaluation: Evaluation, group: str) -> Iterator[tuple[str, Comparison]]:
    for model in evaluation.models:
        if model != evaluation.baseline:
            for scorer, dimension in evaluation.scores.dimensions:
                yield from evaluation.by_group(model, group, scorer, dimension).items()


def write(evaluation: Evaluation) -> Path:
    """Write ``comparisons.parquet`` into the evaluation's folder.

    Columns: group, label, model, baseline, scorer, dimension, prompts, win_rate, win_rate_low, win_rate_high,
    tie_share, mean_difference, mean_difference_low, mean_difference_high, p_value, p_adjusted, detectable_win_rate,
    detectable_difference.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = evaluation.folder / COMPARISONS_FILE
    with complete_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([_flat(*row) for row in rows(evaluation)]), temporary)
    return path


def _flat(group: str, label: str, row: Comparison) -> dict[str, str | int | float | None]:
    return {
        "group": group,
        "label": label,
        "model": row.model,
        "baseline": row.baseline,
        "scorer": row.scorer,
        "dimension": row.dimension,
        "prompts": row.win_rate.n,
        "win_rate": row.win_rate.value,
        "win_rate_low": row.win_rate.low,
        "win_rate_high": row.win_rate.high,
        "tie_share": row.tie_share,
        "mean_difference": row.mean_difference.value,
        "mean_difference_low": row.mean_difference.low,
        "mean_difference_high": row.mean_difference.high,
        "p_value": row.p_value,
        "p_adjusted": row.p_adjusted,
        "detectable_win_rate": row.detectable_win_rate,
        "detectable_difference": row.detectable_difference,
    }
