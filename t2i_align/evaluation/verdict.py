"""From an interval to a sentence: what may be claimed, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t2i_align.evaluation.statistics import Estimate

Kind = Literal["better", "worse", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """A claim.

    Attributes:
        kind: ``better`` or ``worse`` when the interval of the win rate lies wholly on one side of 0.5.
        headline: the claim, a few words.
        sentence: the claim with its figures.
    """

    kind: Kind
    headline: str
    sentence: str


def judge(model: str, baseline: str, rate: Estimate, what: str = "") -> Verdict:
    """The verdict on ``model`` against ``baseline`` from its paired win rate.

    An interval that includes 0.5 is "no evidence of improvement", however high the point estimate.

    Args:
        what: the score behind it, e.g. "oracle overall".
    """
    figures = (
        f"{model} wins {percent(rate.value)} against {baseline}{f' by {what}' if what else ''} over {prompts(rate)} "
        f"({percent(rate.confidence)} interval {span(rate)}; ties count half)."
    )
    if rate.low > 0.5:
        return Verdict("better", f"{model} is better than {baseline}", figures)
    if rate.high < 0.5:
        return Verdict("worse", f"{model} is worse than {baseline}", figures)
    return Verdict("inconclusive", f"No evidence of improvement of {model} over {baseline}", figures)


def judge_all(baseline: str, rates: Mapping[str, Estimate], adjusted: Mapping[str, float], what: str) -> Verdict:
    """What may be said of several models at once.

    A model counts as better or worse where its interval excludes 0.5 and its p-value still does after the correction
    for looking at all of them; so one of twenty useless models is not called better by chance.

    Args:
        rates: model -> win rate against ``baseline``.
        adjusted: model -> p-value after Holm's correction over these models.
        what: the score behind it.
    """
    certain = {name: judge(name, baseline, rate) for name, rate in rates.items()}
    kinds = {
        name: verdict.kind if adjusted[name] < 1 - rates[name].confidence else "inconclusive"
        for name, verdict in certain.items()
    }
    better, worse, unclear = (
        [name for name in rates if kinds[name] == kind] for kind in ("better", "worse", "inconclusive")
    )
    parts = [f"{listed(better)} {'is' if len(better) == 1 else 'are'} better than {baseline}"] if better else []
    if unclear:
        parts.append(f"no evidence of improvement of {listed(unclear)}")
    if worse:
        parts.append(
            f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse{'' if better else f' than {baseline}'}"
        )
    first = next(iter(rates.values()))
    figures = (
        f"Win rates against {baseline} by {what} over {prompts(first)}, with {percent(first.confidence)} intervals; "
        f"ties count half. What is said of a model holds after Holm's correction for {len(rates)} of them."
    )
    kind: Kind = "better" if better else "worse" if worse and not unclear else "inconclusive"
    return Verdict(kind, "; ".join(parts), figures)


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def judge_control(control: str, baseline: str, rate: Estimate, model: str, gap: Estimate | None = None) -> Verdict:
    """What a control run (the same training on shuffled labels) says about the main result.

    Args:
        rate: the control's win rate against the baseline.
        model: the run that the control belongs to.
        gap: the win rate of ``model`` against the control itself, where known.
    """
    figures = f"Against {baseline} the run {control} wins {percent(rate.value)} ({span(rate)})"
    figures += "." if gap is None else f"; {model} wins {percent(gap.value)} ({span(gap)}) against it."
    if rate.low > 0.5:
        headline = "The control improves too: some of the gain does not come from the preferences"
        return Verdict("worse", headline, figures)
    if gap is not None and gap.low <= 0.5:
        return Verdict("inconclusive", f"{model} cannot be told from its control", figures)
    return Verdict("better", "The control shows no improvement, as it should", figures)


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
