"""The study's table: markdown to read, parquet and JSON to compute with, and a plot of the intervals."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from reward_models.files import complete_file, write_json, write_text
from t2i_align.errors import UserError
from t2i_align.evaluation import statistics
from t2i_align.evaluation.statistics import Estimate
from t2i_align.evaluation.verdict import Evidence
from t2i_align.study.config import StudyConfig, all_methods

ROWS_FILE, MARKDOWN_FILE, PARQUET_FILE, PLOT_FILE = "table.json", "table.md", "table.parquet", "table.png"


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name, preset, kind, judged_as, note: see `study.config.Method`.
        learning_rate, beta, tuned_over: chosen, out of so many combinations.
        seeds: trainings; seed_list: which.
        win_rate: against the base, paired by prompt and noise, all seeds pooled; interval over prompts.
        p_value: two-sided, by flipping the sign of each prompt's outcome.
        p_adjusted: after Holm's correction over all rows of the table; compared: how many those are.
        constant: the one score that all pictures got; None where they differ.
        seed_win_rates: of each training.
        score, base_score: mean score of the judge; dimensions: mean difference to the base by dimension.
        heldout_accuracy, d_winner: held-out implicit accuracy and d_w at the end, mean over seeds.
        train_seconds: per training.
        reads: what of the data beyond labels.
        tuning: setting -> mean score on tuning prompts, where there was a choice.
        made: date of the last judgement.
        failure: why there are no numbers.
    """

    name: str
    preset: str
    kind: str
    judged_as: str = "model"
    note: str = ""
    learning_rate: float | None = None
    beta: float | None = None
    tuned_over: int = 1
    seeds: int = 0
    seed_list: tuple[int, ...] = ()
    win_rate: Estimate | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    compared: int = 1
    constant: float | None = None
    seed_win_rates: tuple[float, ...] = ()
    score: float | None = None
    base_score: float | None = None
    dimensions: dict[str, float] = field(default_factory=dict)
    heldout_accuracy: float | None = None
    d_winner: float | None = None
    train_seconds: float | None = None
    reads: tuple[str, ...] = ()
    tuning: dict[str, float] = field(default_factory=dict)
    made: str = ""
    failure: str = ""

    @property
    def verdict(self) -> str:
        """What interval and corrected p-value say together."""
        if self.win_rate is None or self.p_adjusted is None:
            return f"failed: {self.failure}"
        evidence = Evidence(self.win_rate, self.p_adjusted, self.compared, self.win_rate.n, self.constant)
        match evidence.outcome:
            case "few":
                return evidence.shortage
            case "constant":
                return "the judge gave every picture the same score"
            case "better":
                return "better than the base" if self.kind == "method" else "better than the base (control)"
            case "worse":
                return "worse than the base"
        return "no difference shown"

    @classmethod
    def read(cls, values: dict[str, Any]) -> Row:
        """From JSON."""
        values = {name: values[name] for name in (f.name for f in fields(cls)) if name in values}
        if values.get("win_rate") is not None:
            values["win_rate"] = Estimate(**values["win_rate"])
        tuples = {name: tuple(values.get(name, ())) for name in ("seed_list", "seed_win_rates", "reads")}
        return cls(**{**values, **tuples})


class StudyFolderError(UserError):
    """The study's folder holds results of other settings: going on would mix them."""


class Table:
    """Rows by name; those of earlier launches are kept, as long as all rows share what the caption says of them.

    Args:
        folder: of the study.
        study: what the rows share, and which methods there are.
        command: that runs the whole study.

    Raises:
        StudyFolderError: the folder's table was made with other shared settings.
    """

    def __init__(self, folder: Path, study: StudyConfig, command: str) -> None:
        self._folder, self._study, self._command = folder, study, command
        self.rows: dict[str, Row] = {}
        path = folder / ROWS_FILE
        if path.is_file():
            described = json.loads(path.read_text(encoding="utf-8"))
            _require_same(folder, described.get("shared", {}), self._shared)
            methods = dict(all_methods(study))
            self.rows = {one["name"]: Row.read(one) for one in described["rows"] if one["name"] in methods}
            _require_p_values(folder, self.rows.values())
            self._correct()

    @property
    def _shared(self) -> dict[str, Any]:
        """What holds of every row."""
        judging = self._study.judging.model_dump(mode="json", exclude={"batch_size"})
        return json.loads(json.dumps({"run": self._study.run, "judging": judging}))

    @property
    def missing(self) -> list[str]:
        """Methods and controls that have no row yet."""
        return [name for name, _ in all_methods(self._study) if name not in self.rows]

    def add(self, row: Row) -> None:
        """Put in or replace a row."""
        self.rows[row.name] = row
        self._correct()

    def _correct(self) -> None:
        """Holm's correction over all rows: who looks at forty methods finds a lucky one."""
        judged = [row for row in self.rows.values() if row.p_value is not None]
        adjusted = statistics.holm([row.p_value for row in judged if row.p_value is not None])
        for row, p in zip(judged, adjusted, strict=True):
            self.rows[row.name] = replace(row, p_adjusted=float(p), compared=len(judged))

    @property
    def ordered(self) -> list[Row]:
        """Methods by win rate, then controls, then what failed."""

        def place(row: Row) -> tuple:
            return (row.win_rate is None, row.kind != "method", -(row.win_rate.value if row.win_rate else 0.0))

        return sorted(self.rows.values(), key=place)

    def write(self) -> None:
        """Write all files; each whole or not at all."""
        described = {"caption": self.caption(), "shared": self._shared, "rows": [asdict(row) for row in self.ordered]}
        write_json(self._folder / ROWS_FILE, described, indent=1)
        write_text(self._folder / MARKDOWN_FILE, self.markdown())
        self._write_parquet()
        from t2i_align.study.plot import draw

        draw(self.ordered, self._folder / PLOT_FILE)

    def caption(self) -> dict[str, Any]:
        """When, where and how the table was made."""
        today = date.today().isoformat()
        days = sorted({row.made or today for row in self.rows.values()}) or [today]
        training = self._study.run.get("training", {})
        judging = self._study.judging
        return {
            "date": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "command": self._command,
            "steps": training.get("max_train_steps"),
            "batch": training.get("train_batch_size", 4) * training.get("gradient_accumulation_steps", 1),
            "pairs": str(self._study.run["data"]["source"]),
            "seeds": list(self._study.seeds),
            "judge": judging.scorer,
            "prompts": judging.num_prompts,
            "not_run": self.missing,
        }

    def markdown(self) -> str:
        """The table as a page of its own."""
        caption = self.caption()
        head = (
            "| method | lr | beta | win rate against the base [95 %] | by seed | score | held-out accuracy "
            "| held-out d_w | s / run | reads | verdict |"
        )
        lines = [head, "|" + " --- |" * 11, *(_line(row, self._study.seeds) for row in self.ordered)]
        base = next((row.base_score for row in self.ordered if row.base_score is not None), None)
        notes = [f"- `{row.name}`: {row.note}" for row in self.ordered if row.note]
        words = (
            f"{caption['date']}, {caption['machine']}. `{caption['command']}`. Every run: {caption['steps']} steps of "
            f"{caption['batch']} pairs or lists of {caption['pairs']}, seeds {', '.join(map(str, caption['seeds']))}. "
            f"Judged by {caption['judge']} on {caption['prompts']} held-out prompts, against the base on the same noise"
            + ("" if base is None else f" (its mean score: {base:.3f})")
            + ". Rates and betas in bold were chosen on prompts of the training pairs. Intervals are over prompts, "
            "seeds pooled. A verdict needs the interval and the p-value after Holm's correction over all "
            "rows. What a method reads beyond labels is the judge's own score."
            + (f" Not run yet: {', '.join(caption['not_run'])}." if caption["not_run"] else "")
        )
        return "\n".join(["# Method table", "", words, "", *lines, "", *notes]).rstrip() + "\n"

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = []
        for row in self.ordered:
            values = asdict(row)
            rate = values.pop("win_rate") or {}
            dimensions = values.pop("dimensions")
            values |= {"win_rate": rate.get("value"), "low": rate.get("low"), "high": rate.get("high")}
            values |= {"dimensions": json.dumps(dimensions), "reads": ", ".join(row.reads)}
            values |= {"tuning": json.dumps(row.tuning), "seed_list": list(row.seed_list)}
            values |= {"seed_win_rates": list(row.seed_win_rates), "verdict": row.verdict}
            flat.append(values)
        with complete_file(self._folder / PARQUET_FILE) as temporary:
            pq.write_table(pa.Table.from_pylist(flat), temporary)


def _require_p_values(folder: Path, rows: Iterable[Row]) -> None:
    """Refuse rows of an earlier version, whose verdicts cannot be corrected for the number of methods."""
    old = [row.name for row in rows if row.win_rate is not None and row.p_value is None]
    if old:
        raise StudyFolderError(
            "The study's table was made before it kept p-values.",
            f"{folder / ROWS_FILE}: {', '.join(old)}",
            f"delete {ROWS_FILE} and run the study again: runs and pictures that are there are used",
        )


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a table of other settings; one without a record of them is taken as it is."""
    changed = [
        f"{section}.{key}"
        for section, values in found.items()
        for key in sorted({*values, *wanted[section]})
        if values.get(key) != wanted[section].get(key)
    ]
    if changed:
        raise StudyFolderError(
            "The study's folder holds a table made with other settings.",
            f"{folder / ROWS_FILE}: {', '.join(changed)}",
            "choose another output_dir, or delete the folder",
        )


def _line(row: Row, seeds: Sequence[int]) -> str:
    name = f"`{row.name}`" + (" (control)" if row.kind == "control" else "")
    name += " as negative model" if row.judged_as == "negative" else ""
    if row.seed_list and list(row.seed_list) != list(seeds):
        name += f" (seeds {', '.join(map(str, row.seed_list))} only)"
    if row.win_rate is None:
        return f"| {name} |" + " |" * 9 + f" {row.verdict} |"
    rate = row.win_rate
    bold = "**" if row.tuned_over > 1 else ""
    beta = "preset's" if row.beta is None else f"{bold}{row.beta:g}{bold}"
    cells = [
        name,
        bold + _number(row.learning_rate, "g") + bold,
        beta,
        f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]",
        ", ".join(f"{value:.2f}" for value in row.seed_win_rates),
        _number(row.score, ".3f"),
        _number(row.heldout_accuracy, ".3f"),
        _number(row.d_winner, ".1e"),
        _number(row.train_seconds, ".0f"),
        ", ".join(row.reads) or "labels",
        row.verdict,
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
