"""From an interval and a p-value to a sentence: what may be claimed, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t2i_align.evaluation.statistics import Estimate

Kind = Literal["better", "worse", "inconclusive"]

MIN_UNITS = 20
"""Smallest number of different prompts (of users, where users are resampled) that a verdict may rest on.

Two things are asked of it. The p-value must be able to fall below 0.05: n prompts that all agree have ``2 * 2^-n``, so
with Holm's correction for m models ``2^(1 - n) m < 0.05``: six prompts for one model, ten for twenty, and 20 for any m
up to 26,000. And the bootstrap's interval must hold what it says: by simulation the 95 % interval held the truth in as
few as 84 % of trials with 5 prompts and 91 % with 10, and from 20 on in 93 % or more (``docs/evaluation.md``). The
second asks for more, and decides.
"""


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Attributes:
        rate: paired win rate, ties as half.
        p_adjusted: two-sided p-value in [0, 1] after Holm's correction.
        comparisons: how many comparisons the correction was over.
        units: different prompts, or users where they were resampled.
        constant: the one score that all pictures got, or None where the judge told some apart.
    """

    rate: Estimate
    p_adjusted: float
    comparisons: int
    units: int
    constant: float | None = None

    @property
    def outcome(self) -> Literal["better", "worse", "inconclusive", "few", "constant"]:
        """What follows: interval and p-value must both exclude no difference, from enough prompts."""
        if self.constant is not None:
            return "constant"
        if self.units < MIN_UNITS:
            return "few"
        if self.p_adjusted >= 1 - self.rate.confidence or not self.rate.excludes(0.5):
            return "inconclusive"
        return "better" if self.rate.low > 0.5 else "worse"

    @property
    def kind(self) -> Kind:
        """The outcome as far as a claim goes."""
        return self.outcome if self.outcome in ("better", "worse") else "inconclusive"

    @property
    def shortage(self) -> str:
        """``too few prompts for a verdict (4 of 20)``."""
        return (
            f"too few {'prompts' if self.rate.users is None else 'users'} for a verdict ({self.units} of {MIN_UNITS})"
        )

    @property
    def tested(self) -> str:
        """``p = 0.012 after Holm's correction for 3 models``."""
        p = "p < 0.001" if self.p_adjusted < 0.001 else f"p = {self.p_adjusted:.3f}"
        return p if self.comparisons == 1 else f"{p} after Holm's correction for {self.comparisons} comparisons"


@dataclass(frozen=True)
class Verdict:
    """A claim.

    Attributes:
        kind: ``better`` or ``worse`` when the interval of the win rate lies wholly on one side of 0.5, the corrected
            p-value agrees, and enough prompts stand behind both.
        headline: the claim, a few words.
        sentence: the claim with its figures.
    """

    kind: Kind
    headline: str
    sentence: str


def judge(model: str, baseline: str, evidence: Evidence, what: str = "") -> Verdict:
    """The verdict on ``model`` against ``baseline``.

    An interval that includes 0.5 or a p-value that is not small is "no evidence of improvement", however high the point
    estimate; too few prompts, or a judge that gives every picture the same score, are no verdict at all.

    Args:
        what: the score behind it, e.g. "oracle overall".
    """
    rate = evidence.rate
    figures = (
        f"{model} wins {percent(rate.value)} against {baseline}{f' by {what}' if what else ''} over {prompts(rate)} "
        f"({percent(rate.confidence)} interval {span(rate)}; {evidence.tested}; ties count half)."
    )
    match evidence.outcome:
        case "constant":
            return Verdict("inconclusive", f"No verdict on {model}: {_same(evidence)}", _silent(evidence, what))
        case "few":
            return Verdict("inconclusive", f"{model}: {evidence.shortage}", figures)
        case "better":
            return Verdict("better", f"{model} is better than {baseline}", figures)
        case "worse":
            return Verdict("worse", f"{model} is worse than {baseline}", figures)
    return Verdict("inconclusive", f"No evidence of improvement of {model} over {baseline}", figures)


def judge_all(baseline: str, found: Mapping[str, Evidence], what: str) -> Verdict:
    """What may be said of several models at once; each is judged as by ``judge``.

    The correction for looking at all of them is in the evidence; so one of twenty useless models is not called better
    by chance.

    Args:
        found: model -> evidence against ``baseline``.
        what: the score behind it.
    """
    by = {
        outcome: [name for name, evidence in found.items() if evidence.outcome == outcome]
        for outcome in ("better", "worse", "inconclusive", "few", "constant")
    }
    better, worse, unclear = by["better"], by["worse"], by["inconclusive"]
    parts = [f"{listed(better)} {'is' if len(better) == 1 else 'are'} better than {baseline}"] if better else []
    if unclear:
        parts.append(f"{'no' if parts else 'No'} evidence of improvement of {listed(unclear)}")
    if worse:
        parts.append(
            f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse{'' if better else f' than {baseline}'}"
        )
    for outcome in ("few", "constant"):
        if names := by[outcome]:
            one, no = found[names[0]], "no" if parts else "No"
            few = f"{listed(names)}: {one.shortage}"
            parts.append(few if outcome == "few" else f"{no} verdict on {listed(names)}: {_same(one)}")
    first = next(iter(found.values()))
    figures = (
        f"Win rates against {baseline} by {what} over {prompts(first.rate)}, with {percent(first.rate.confidence)} "
        f"intervals; ties count half. "
    )
    if better or worse or unclear:
        figures += f"What is said of a model holds after Holm's correction for {first.comparisons} of them."
    else:
        figures += f"Below {MIN_UNITS} nothing is claimed."
    if len(by["constant"]) == len(found):
        figures = _silent(first, what)
    kind: Kind = "better" if better else "worse" if len(worse) == len(found) else "inconclusive"
    return Verdict(kind, "; ".join(parts), figures)


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def judge_control(
    control: str, baseline: str, of_control: Evidence, model: str, gap: Evidence | None = None
) -> Verdict:
    """What a control run (the same training on shuffled labels) says about the main result.

    The control raises its alarm by the interval alone: an alarm too many does less harm than one too few.

    Args:
        of_control: the control against the baseline.
        model: the run that the control belongs to.
        gap: ``model`` against the control itself, where known.
    """
    rate = of_control.rate
    figures = f"Against {baseline} the run {control} wins {percent(rate.value)} ({span(rate)})"
    figures += "." if gap is None else f"; {model} wins {percent(gap.rate.value)} ({span(gap.rate)}) against it."
    if of_control.outcome == "constant":
        return Verdict("inconclusive", f"No verdict on the control: {_same(of_control)}", figures)
    if of_control.outcome == "few":
        return Verdict("inconclusive", f"The control: {of_control.shortage}", figures)
    if rate.low > 0.5:
        headline = "The control improves too: some of the gain does not come from the preferences"
        return Verdict("worse", headline, figures)
    if gap is not None and gap.outcome != "better":
        return Verdict("inconclusive", f"{model} cannot be told from its control", figures)
    return Verdict("better", "The control shows no improvement, as it should", figures)


def _same(evidence: Evidence) -> str:
    return f"the judge gave every picture the same score ({evidence.constant:.3f})"


def _silent(evidence: Evidence, what: str) -> str:
    return f"By {what}, {_same(evidence)}: it says nothing about these pictures."


def prompts(rate: Estimate) -> str:
    """``128 prompts``, or ``128 prompts of 20 users`` where users were resampled."""
    return f"{rate.n} prompts" + ("" if rate.users is None else f" of {rate.users} users")


def percent(share: float) -> str:
    """``0.7431`` -> ``74 %``; one decimal where whole per cents would hide the side of a half."""
    whole = f"{100 * share:.0f}"
    if whole in {"50", "100", "0"} and abs(100 * share - float(whole)) >= 0.05:
        return f"{100 * share:.1f} %"
    return f"{whole} %"


def span(rate: Estimate) -> str:
    """``0.681 to 0.802`` as ``68 to 80 %``."""
    return f"{percent(rate.low).removesuffix(' %')} to {percent(rate.high)}"
