"""Check before the search: candidates whose scores are known from elsewhere must have them here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

from souping.core.protocols import Objective
from souping.core.types import ItemScores, Split
from souping.core.unit import Estimate, Unit
from souping.report.content import ExpectedCheck, ExpectedSummary
from souping.runs.settings import Expectation
from souping.statistics.corrections import Z95
from souping.statistics.intervals import objective_interval, rate
from souping.statistics.score_table import ItemTable, ModelScores

FALSE_ALARM = 0.01
"""Chance that the check stops a run whose candidates all score as published (Bonferroni over its scores)."""
CAUSES = "the chat template, prompt handler, evaluator.stop and max_new_tokens"
AS_EXPECTED = "as expected"


def check_expected(
    unit: Unit,
    expected: Sequence[Expectation],
    scores: Mapping[str, ItemScores],
    objective: Objective,
    mode: str,
    split: Split,
) -> ExpectedSummary:
    """Each expectation with what was measured; `scores` are {candidate: scores on `split`}.

    A wrong chat template, stop text or token limit moves a candidate far from its published score. A check fails if the
    expected score is outside the interval of the measured one, and all intervals hold at once.
    """
    checks = []
    for expectation in expected:
        measured = scores[expectation.candidate]
        checks.append(_check(unit, expectation, measured, objective, len(expected)))
    return ExpectedSummary(
        mode=mode,
        split=split,
        false_alarm=FALSE_ALARM,
        passed=all(check.verdict == AS_EXPECTED for check in checks),
        checks=tuple(checks),
    )


def _check(
    unit: Unit, expectation: Expectation, scores: ItemScores, objective: Objective, count: int
) -> ExpectedCheck:
    """One of `count` expectations, and the measured score with its interval, corrected by Bonferroni."""
    table = ItemTable.of(scores.items, objective)
    model = ModelScores(items=table, values=scores.values)
    if expectation.category is None:
        interval = objective_interval(model)
    else:
        interval = rate(model.alone(table.names.index(expectation.category)))
    # The 95 % interval, widened on both sides to the level of one of `count` checks, but not beyond the scores' span.
    factor = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * count)) / Z95
    bottom, top = model.span
    mean, low, high = interval.estimate
    low = max(bottom, mean - factor * (mean - low))
    high = min(top, mean + factor * (high - mean))
    measured, low, high = unit.raw_estimate(Estimate(mean, low, high))
    return ExpectedCheck(
        candidate=expectation.candidate,
        category=expectation.category,
        expected=expectation.score,
        measured=measured,
        low=low,
        high=high,
        n=interval.n,
        groups=interval.groups,
        verdict=_verdict(expectation.score, low, high),
    )


def _verdict(expected: float, low: float, high: float) -> str:
    """Whether the expected score is above, below or inside the interval of the measured one."""
    if expected > high:
        return "too low"
    if expected < low:
        return "too high"
    return AS_EXPECTED


def expected_sentence(summary: ExpectedSummary) -> str:
    """Whether the candidates score as expected, in one line."""
    wrong = [check.candidate for check in summary.checks if check.verdict != AS_EXPECTED]
    if not wrong:
        return f"score: {len(summary.checks)} scores as expected on the {summary.split} split"
    names = ", ".join(dict.fromkeys(wrong))
    return f"{names}: not as expected on the {summary.split} split: check {CAUSES}"
