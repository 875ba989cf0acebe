"""The outcome of an evaluation: comparisons between models, with intervals, and how to keep them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.files import write_text
from t2i_align.errors import UserError
from t2i_align.evaluation import statistics
from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.ranking import elo
from t2i_align.evaluation.statistics import Estimate
from t2i_align.evaluation.table import SCORES_FILE, ScoreTable
from t2i_align.evaluation.verdict import Evidence, Verdict, judge, judge_all, judge_control

RESULTS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Comparison:
    """One model against another by one score.

    Attributes:
        win_rate: paired by prompt and seed, ties as half.
        tie_share: of the pairs.
        mean_difference: model minus baseline.
        p_value: two-sided, by randomly flipping the sign of each prompt's outcome.
        p_adjusted: after Holm's correction over ``compared`` comparisons: the models on trial, or the
            table it stands in.
        detectable_win_rate, detectable_difference: what this many prompts find with a power of 80 %.
        units: different prompts behind it, or users.
        constant: the one score that all pictures of both got; None where they differ.
    """

    model: str
    baseline: str
    scorer: str
    dimension: str
    win_rate: Estimate
    tie_share: float
    mean_difference: Estimate
    p_value: float
    detectable_win_rate: float
    detectable_difference: float
    p_adjusted: float
    compared: int
    units: int
    constant: float | None

    @property
    def evidence(self) -> Evidence:
        """What a verdict rests on."""
        return Evidence(self.win_rate, self.p_adjusted, self.compared, self.units, self.constant)

    @property
    def verdict(self) -> Verdict:
        """What may be said."""
        return judge(self.model, self.baseline, self.evidence, f"{self.scorer} {self.dimension}")

    def described(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"verdict": asdict(self.verdict)}


def corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """The same rows with Holm's correction over all of them."""
    adjusted = statistics.holm([row.p_value for row in rows])
    return [replace(row, p_adjusted=float(p), compared=len(rows)) for row, p in zip(rows, adjusted, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """Pictures, scores and how they were made.

    Attributes:
        folder: holds ``scores.parquet``, ``evaluation.json``, the report and one folder of pictures per
            model.
        models: name -> path or id, in the order given.
        baseline: the model that others are compared with.
        control: a run that must not win (shuffled labels), where there is one.
        prompts: the prompt set.
        settings: sampler, seeds, statistics; plain JSON values.
        scores: the table.
    """

    folder: Path
    models: Mapping[str, str]
    baseline: str
    control: str | None
    prompts: PromptSet
    settings: Mapping[str, Any]
    scores: ScoreTable
    confidence: float = 0.95
    replicates: int = statistics.REPLICATES
    tolerance: float = 0.0
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def subjects(self) -> list[str]:
        """Models on trial: neither baseline nor control."""
        return [name for name in self.models if name not in (self.baseline, self.control)]

    @property
    def on_trial(self) -> str:
        """The model of the verdict: the first subject that is no checkpoint, else the last checkpoint."""
        of_runs = [name for steps in (self.settings.get("checkpoints") or {}).values() for name in steps.values()]
        named = [name for name in self.subjects if name not in of_runs]
        return next(iter([*named, *of_runs[::-1], *([self.control] if self.control else [])]))

    @property
    def candidates(self) -> list[str]:
        """Models that a report is about: the subjects that are no checkpoints, or else the one on trial."""
        of_runs = {name for steps in (self.settings.get("checkpoints") or {}).values() for name in steps.values()}
        return [name for name in self.subjects if name not in of_runs] or [self.on_trial]

    @property
    def primary(self) -> tuple[str, str]:
        """(scorer, dimension) of the verdict, fixed in advance: the first dimension of the first scorer."""
        return self.scores.dimensions[0]

    def mean(self, model: str, scorer: str | None = None, dimension: str | None = None) -> Estimate:
        """Mean score of a model over prompts."""
        values = self._matrix(model, *self._which(scorer, dimension))
        return statistics.mean(values, confidence=self.confidence, replicates=self.replicates, users=self._users)

    def comparison(
        self,
        model: str,
        against: str | None = None,
        scorer: str | None = None,
        dimension: str | None = None,
        where: np.ndarray | None = None,
    ) -> Comparison:
        """Compare two models.

        Args:
            model, against: names; None is the baseline.
            scorer, dimension: None is the primary score.
            where: boolean ``[prompts]``; only these prompts count.

        Raises:
            UserError: no such model or score, or no picture is scored for both.
        """
        against = against or self.baseline
        scorer, dimension = self._which(scorer, dimension)
        family = [name for name in dict.fromkeys([model, *self.subjects]) if name != against]
        rows = [
            self._compared(name, against, scorer, dimension, where)
            for name in family
            if name == model or self._pairs(name, against, scorer, dimension, where)
        ]
        return corrected(rows)[0]

    def _compared(
        self, model: str, against: str, scorer: str, dimension: str, where: np.ndarray | None = None
    ) -> Comparison:
        """The comparison on its own, uncorrected, made once."""
        key = (model, against, scorer, dimension, None if where is None else where.tobytes())
        if key not in self._cache:
            self._cache[key] = self._compare(model, against, scorer, dimension, where)
        return self._cache[key]

    def comparisons(self) -> list[Comparison]:
        """Every other model against the baseline by every score, Holm-corrected over all of them."""
        return corrected(
            [
                self._compared(model, self.baseline, scorer, dimension)
                for model in self.models
                if model != self.baseline
                for scorer, dimension in self.scores.dimensions
            ]
        )

    def by_group(
        self, model: str, group: str, scorer: str | None = None, dimension: str | None = None
    ) -> dict[str, Comparison]:
        """Comparison of a model with the baseline within each label of a prompt group; None is the primary score."""
        which = self._which(scorer, dimension)
        labels = np.array(self.prompts.groups[group])
        return {
            str(label): self.comparison(model, None, *which, where=labels == label)
            for label in dict.fromkeys(labels)
            if self._pairs(model, self.baseline, *which, labels == label)
        }

    def ranking(self) -> dict[str, Estimate]:
        """Bradley-Terry strengths by the primary score on the Elo scale, the baseline at 1000."""
        scores = {name: self._matrix(name, *self.primary) for name in self.models}
        return elo(
            scores,
            self.baseline,
            tolerance=self.tolerance,
            confidence=self.confidence,
            replicates=self.replicates,
            users=self._users,
        )

    def verdict(self, model: str | None = None) -> Verdict:
        """What may be said about a model (the one on trial by default)."""
        return self.comparison(model or self.on_trial).verdict

    def overall(self, models: Sequence[str]) -> Verdict:
        """What may be said of several models at once, by the primary score."""
        return judge_all(
            self.baseline, {name: self.comparison(name).evidence for name in models}, " ".join(self.primary)
        )

    def control_verdict(self, model: str | None = None) -> Verdict | None:
        """What the control says about a model; None without a control."""
        if self.control is None:
            return None
        subject = model or next(iter(self.subjects), None)
        gap = None if subject is None else self.comparison(subject, self.control).evidence
        of_control = self.comparison(self.control).evidence
        return judge_control(self.control, self.baseline, of_control, subject or self.control, gap)

    def write(self) -> Path:
        """Write ``evaluation.json`` beside the tables: what was done and every number of the report.

        ``scores.parquet`` gets a column per group of prompts, ``comparisons.parquet`` holds every comparison
        within each label.
        """
        from t2i_align.evaluation import breakdown

        self.scores.write(self.folder / SCORES_FILE, self.prompts.groups)
        breakdown.write(self)
        described = {
            "models": dict(self.models),
            "baseline": self.baseline,
            "control": self.control,
            "prompt_set": {
                "name": self.prompts.name,
                "prompts": len(self.prompts),
                "groups": self.prompts.groups,
                "users": self.prompts.users,
            },
            "settings": dict(self.settings),
            "confidence": self.confidence,
            "replicates": self.replicates,
            "tolerance": self.tolerance,
            "scorers": self.scores.versions,
            "missing_scores": {name: self.scores.missing(name) for name in self.models},
            "verdicts": {name: asdict(self.verdict(name)) for name in self.subjects},
            "comparisons": [row.described() for row in self.comparisons()],
        }
        path = self.folder / RESULTS_FILE
        write_text(path, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, folder: str | Path) -> Evaluation:
        """Read an evaluation back, e.g. to render its report again.

        Raises:
            UserError: the folder holds no evaluation.
        """
        folder = Path(folder)
        if not (folder / RESULTS_FILE).is_file() or not (folder / SCORES_FILE).is_file():
            raise UserError(
                "The folder holds no evaluation.",
                str(folder),
                "run t2i-align evaluate with this output folder",
            )
        described = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        scores = ScoreTable.read(folder / SCORES_FILE)
        texts = {row.prompt_index: row.prompt for row in scores.rows}
        groups = {name: tuple(labels) for name, labels in described["prompt_set"]["groups"].items()}
        users = tuple(described["prompt_set"].get("users", ()))
        prompts = PromptSet(described["prompt_set"]["name"], tuple(texts[i] for i in sorted(texts)), groups, users)
        kept = ("models", "baseline", "control", "settings", "confidence", "replicates", "tolerance")
        return cls(folder=folder, prompts=prompts, scores=scores, **{key: described[key] for key in kept})

    def _compare(self, model: str, against: str, scorer: str, dimension: str, where: np.ndarray | None) -> Comparison:
        if not self._pairs(model, against, scorer, dimension, where):
            raise UserError(
                f"{model} and {against} have no prompt in common that was scored.",
                f"scorer {scorer}, {dimension}",
                "generate the pictures again with --overwrite",
            )
        scores, baseline = self._matrix(model, scorer, dimension), self._matrix(against, scorer, dimension)
        users = self._users
        if where is not None:
            scores, baseline = scores[where], baseline[where]
            users = None if users is None else users[where]
        options: dict[str, Any] = {"confidence": self.confidence, "replicates": self.replicates, "users": users}
        rate = statistics.win_rate(scores, baseline, tolerance=self.tolerance, **options)
        outcomes = statistics.paired_outcomes(scores, baseline, self.tolerance)
        p_value = statistics.sign_flip_p_value(outcomes - 0.5, users=users)
        texts = self.prompts.prompts if where is None else [self.prompts.prompts[i] for i in np.flatnonzero(where)]
        usable = ~np.isnan(outcomes).all(axis=1)
        return Comparison(
            model=model,
            baseline=against,
            scorer=scorer,
            dimension=dimension,
            win_rate=rate,
            tie_share=statistics.tie_share(scores, baseline, self.tolerance),
            mean_difference=statistics.mean_difference(scores, baseline, **options),
            p_value=p_value,
            p_adjusted=p_value,
            compared=1,
            units=rate.users or len({text for text, kept in zip(texts, usable, strict=True) if kept}),
            constant=statistics.only_value(np.concatenate([scores, baseline])),
            detectable_win_rate=statistics.minimum_detectable_win_rate(rate.users or rate.n, self.confidence),
            detectable_difference=statistics.minimum_detectable_difference(
                scores - baseline, self.confidence, users=users
            ),
        )

    @property
    def _users(self) -> np.ndarray | None:
        """``[prompts]`` labels of the people that the prompts belong to, where they are known."""
        return np.array(self.prompts.users) if self.prompts.users else None

    def _pairs(self, model: str, against: str, scorer: str, dimension: str, where: np.ndarray | None = None) -> int:
        both = self._matrix(model, scorer, dimension) - self._matrix(against, scorer, dimension)
        return int(np.count_nonzero(~np.isnan(both if where is None else both[where])))

    def _which(self, scorer: str | None, dimension: str | None) -> tuple[str, str]:
        scorer = scorer or self.primary[0]
        found = [name for owner, name in self.scores.dimensions if owner == scorer]
        if not found or (dimension is not None and dimension not in found):
            known = ", ".join(" ".join(pair) for pair in self.scores.dimensions)
            raise UserError("There is no such score.", f"{scorer} {dimension or ''}".strip(), f"use one of: {known}")
        return scorer, dimension or found[0]

    def _matrix(self, model: str, scorer: str, dimension: str) -> np.ndarray:
        if model not in self.models:
            raise UserError("There is no such model here.", model, f"use one of: {', '.join(self.models)}")
        return self.scores.matrix(model, scorer, dimension)
