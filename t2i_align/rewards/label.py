"""Pair data sets rewritten by reward models: margins and labels added, or pairs filtered, and how scorers agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.agreement import Agreement, agree
from reward_models.dominance import MPCF, DominanceRule, dominance_mask, mpo_rule
from reward_models.errors import unknown_name
from reward_models.labels import PairLabels, label_pairs, mean_probability
from reward_models.scorer import BaseScorer
from t2i_align.data.convert import Progress as Writing
from t2i_align.data.convert import new_parquet, write_pairs
from t2i_align.data.wording import counted
from t2i_align.errors import UserError
from t2i_align.rewards.pairs import SCORES_SUFFIX, ScoredPairs, relabelled, score_source

LABELS = ("keep", "soft", "hard")
RULES = ("mpo", *(f"mpcf{strategy}" for strategy in MPCF))
AGREEMENT_FILES = ("agreement.md", "agreement.json", "heat_map.png")
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Rewritten:
    """A data set that was written.

    Attributes:
        output: the file.
        read, written: pairs.
        left_out: reason -> pairs.
        margins: reward names stored with every pair.
        failures: (picture id, reason) of pictures that cannot be decoded.
    """

    output: Path
    read: int
    written: int
    left_out: dict[str, int]
    margins: list[str]
    failures: list[tuple[str, str]]

    def render(self) -> str:
        """A few lines of plain text."""
        lines = [f"{self.written} of {counted(self.read, 'pair')} written to {self.output}"]
        lines += [f"  margins: {', '.join(self.margins)}"]
        lines += [f"  left out: {count} {reason}" for reason, count in self.left_out.items()]
        lines += [f"    {where}: {reason}" for where, reason in self.failures[:SHOWN_FAILURES]]
        if len(self.failures) > SHOWN_FAILURES:
            lines += [f"    and {len(self.failures) - SHOWN_FAILURES} more"]
        return "\n".join(lines)


def label(
    source: str, scorers: Sequence[BaseScorer], output: str | Path, *, labels: str = "keep", **options: Any
) -> Rewritten:
    """Write a pair data set again with the margins of scorers, and labels from them where wanted.

    The margin of a pair is score(preferred) - score(other) in the scorer's own units, beside those that the pairs
    brought. ``soft`` labels are the mean of the scorers' preference probabilities, ``hard`` ones its larger side.

    Args:
        source: anything ``data.source`` may be.
        output: a new ``.parquet`` file; the scores of single pictures stay beside it.
        labels: what becomes of the labels, one of `LABELS`.
        **options: of `score_source`, and ``writing``, a callback of `write_pairs`.

    Raises:
        UserError: the source cannot be used, or the output exists.
    """
    if labels not in LABELS:
        raise unknown_name("kind of labels", labels, LABELS)
    writing: Writing | None = options.pop("writing", None)
    output = new_parquet(Path(output))
    scored = score_source(source, scorers, _scores_file(output), **options)
    values = scored.pairs.labels()
    if labels != "keep":
        values = np.where(scored.complete, _labels(scored, labels), values)
    return _write(scored, values, np.ones(len(values), dtype=bool), "", output, writing)


def filter_pairs(
    source: str, scorers: Sequence[BaseScorer], output: str | Path, rule: DominanceRule | str = "mpo", **options: Any
) -> Rewritten:
    """Write the pairs whose winner dominates the loser on several scorers (`reward_models.dominance`).

    Args:
        source, output, **options: see `label`; margins stored with the pairs count like scorers.
        rule: one of `RULES`, or a rule. ``mpo`` asks every scorer there is.
    """
    writing: Writing | None = options.pop("writing", None)
    output = new_parquet(Path(output))
    if isinstance(rule, str) and rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    scored = score_source(source, scorers, _scores_file(output), **options)
    chosen = _rule(rule, list(scored.gaps)) if isinstance(rule, str) else rule
    nothing = {name: np.zeros(len(scored.pairs)) for name in scored.gaps}
    keep = dominance_mask(scored.gaps, nothing, scored.pairs.labels(), chosen)
    return _write(scored, scored.pairs.labels(), keep, "that the rule rejects", output, writing)


def agreement(source: str, scorers: Sequence[BaseScorer], output_dir: str | Path, **options: Any) -> Agreement:
    """How scorers agree with the labels of a source and with each other; writes `AGREEMENT_FILES`.

    Margins stored with the pairs count like scorers.
    """
    folder = Path(output_dir)
    scored = score_source(source, scorers, folder / "scores.parquet", **options)
    complete = scored.complete
    if not complete.any():
        raise UserError("No pair could be scored.", f"{len(scored.failures)} failures", "look at the pictures")
    prompts = np.array(scored.pairs.captions(), dtype=object)[complete].tolist()
    gaps = {name: gap[complete] for name, gap in scored.gaps.items()}
    result = agree(gaps, scored.pairs.labels()[complete], prompts)
    folder.mkdir(parents=True, exist_ok=True)
    table, numbers, picture = (folder / name for name in AGREEMENT_FILES)
    table.write_text(result.table(), encoding="utf-8")
    numbers.write_text(json.dumps(_plain(result), indent=2) + "\n", encoding="utf-8")
    result.heat_map(picture)
    return result


def _scores_file(output: Path) -> Path:
    return output.with_name(output.name.removesuffix(".parquet") + SCORES_SUFFIX)


def _labels(scored: ScoredPairs, labels: str) -> np.ndarray:
    """``[N]`` labels of the scorers that ran now; 0.5 where a pair is incomplete."""
    if not scored.scales:
        raise UserError("Labels need a scorer.", "none was named", "name one with --scorer")
    found: dict[str, PairLabels] = {}
    for name, scale in scored.scales.items():
        gap = np.nan_to_num(scored.gaps[name])
        found[name] = label_pairs(gap, np.zeros_like(gap), scale)
    soft = mean_probability(found)
    return soft if labels == "soft" else (np.sign(soft - 0.5) + 1) / 2


def _rule(name: str, scorers: list[str]) -> DominanceRule:
    return mpo_rule(scorers) if name == "mpo" else MPCF[int(name.removeprefix("mpcf"))]


def _write(
    scored: ScoredPairs, labels: np.ndarray, keep: np.ndarray, reason: str, output: Path, writing: Writing | None
) -> Rewritten:
    pairs = relabelled(scored.pairs, labels, scored.gaps)
    incomplete = ~scored.complete
    reasons: Mapping[str, np.ndarray] = {
        "with a picture that cannot be decoded": incomplete,
        reason: ~keep & ~incomplete,
    }
    left_out = {text: int(mask.sum()) for text, mask in reasons.items() if mask.any()}
    gone = np.flatnonzero(incomplete | ~keep)
    if len(gone) == len(pairs):
        raise UserError(
            "No pair is left to write.",
            "; ".join(f"{count} {text}" for text, count in left_out.items()),
            "ease the rule",
        )
    written = write_pairs(pairs.without(gone, "left out"), output, progress=writing)
    return Rewritten(output, len(pairs), written.pairs, left_out, list(scored.gaps), scored.failures)


def _plain(result: Agreement) -> dict[str, Any]:
    content = asdict(result)
    return content | {name: content[name].tolist() for name in ("between_accuracy", "between_tau")}
