"""Tests of the rows of a comparison, and their verdicts.

The average row and the policy's required rows decide; all others share Holm's correction with the rows of their kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from souping.comparison.result import RowVerdict
from souping.comparison.rows import RowScores
from souping.comparison.verdict import AVERAGE, Limits, Policy, Word, decide, verdict_of
from souping.statistics.comparison import Comparison, contrast, contrast_at, split_variance
from souping.statistics.levels import MOST_LOST, Level, step_down
from souping.statistics.power import RunPower

TRUNCATED = f"more than {100 * MOST_LOST:.0f} % of the answers are truncated"
# Tests of one model are computed once, and forgotten before the next model.
_contrast = cache(contrast)
_contrast_at = cache(contrast_at)


@dataclass(frozen=True)
class RowTest:
    """The tests of one row: a model minus the baseline, higher is better, at a `level`."""

    row: RowScores
    model: str
    baseline: str
    level: Level

    def comparison(self, tests: float) -> Comparison:
        """At the level of one of so many tests."""
        return _contrast(self.row.scores, self.model, self.baseline, self.level.among(tests))

    def limits(self, tests: float) -> list[Limits]:
        """The interval; before it, if answers are missing, that of the scores as the harness counted."""
        bounding = self.comparison(tests)
        limits = [(bounding.low, bounding.high)]
        if self.missing:
            level = self.level.among(tests)
            scored = self.row.scores.scored
            counted = _contrast_at(scored, self.model, self.baseline, level, tested=False)
            limits.insert(0, (counted.low, counted.high))
        return limits

    @property
    def missing(self) -> int:
        """Items with a missing answer, in all runs of both models."""
        return self.row.scores.missing(self.model, self.baseline)

    def means(self) -> tuple[float, float]:
        """(the baseline's mean, the model's) as the metric has them."""
        scored = self.row.scores.scored
        base = scored.items.mean(scored.counted(self.baseline))
        mean = scored.items.mean(scored.counted(self.model))
        if self.row.higher_is_better:
            return base, mean
        # Scores were turned so that higher is better: fractions are 1 - score, others -score.
        top = float(self.row.fraction)
        return top - base, top - mean

    def distance(self) -> float:
        """Rough |T| / se, by which tests are ordered."""
        base, mean = self.means()
        variance = split_variance(self.row.scores.scored, self.model, self.baseline)
        error = math.sqrt(variance.total)
        return abs(mean - base) / error if error else 0.0


def decide_rows(
    row_tests: Sequence[RowTest], policy: Policy, average_tests: float
) -> Iterator[RowVerdict]:
    """All rows of a model; the correction of the average row for several models is `average_tests` tests."""
    _contrast.cache_clear()
    _contrast_at.cache_clear()
    tests = {test.row.name: test for test in row_tests}
    average = tests[AVERAGE]
    tests[AVERAGE] = replace(average, level=average.level.among(average_tests))
    margins = {}
    for name, test in tests.items():
        base, _ = test.means()
        margins[name] = policy.margin_of(name, base, test.row.fraction, test.row.weight > 0)

    deciding = {name: margins[name] for name in tests if name in (AVERAGE, *policy.required)}
    decided = decide(deciding, lambda name, number: tests[name].limits(number))

    others = {name: test for name, test in tests.items() if name not in deciding}
    corrections = dict.fromkeys(tests, 1.0) | _corrections(others)
    truncated = [max(test.means()) for test in row_tests if test.row.kind == "cut"]
    unmeasured = max(truncated, default=0.0) > MOST_LOST
    for name, test in tests.items():
        # Lengths and cut answers have no direction of their own.
        scored = test.row.kind not in ("length", "cut")
        judged = scored or name in policy.margins
        margin = margins[name] if judged else None
        verdict: tuple[Word | Literal[""], str] = ("", "")
        if name in deciding:
            verdict = decided[name]
        elif judged:
            verdict = verdict_of(test.limits(corrections[name]), margin)
        if scored and unmeasured:
            verdict = ("undecided", TRUNCATED)
        yield _row_verdict(test, corrections[name], margin, verdict, name in deciding)


def _corrections(tests: Mapping[str, RowTest]) -> dict[str, float]:
    """{row: number of tests that it is corrected for} by Holm's method in two families, groups with tasks, and metrics.

    Rows of other kinds are left out.
    """
    corrections = {}
    for kinds in (("group", "task"), ("metric",)):
        family = {name: test for name, test in tests.items() if test.row.kind in kinds}
        corrections.update(_holm(family))
    return corrections


def _row_verdict(
    test: RowTest,
    tests: float,
    margin: float | None,
    verdict: tuple[Word | Literal[""], str],
    required: bool,
) -> RowVerdict:
    """A row with its verdict, its numbers in the direction of its metric.

    `tests` is how many tests it is corrected for; max-T's number need not be whole.
    """
    row = test.row
    comparison = test.comparison(tests)
    difference = comparison.difference
    low = comparison.low
    high = comparison.high
    if not row.higher_is_better:
        difference = -comparison.difference
        low = -comparison.high
        high = -comparison.low
    base, mean = test.means()
    word, reason = verdict
    power = RunPower(comparison=comparison, scores=row.scores, a=test.model, b=test.baseline)
    # Without a variance between runs, the degrees of freedom are infinite.
    several_runs = math.isfinite(comparison.degrees)
    return RowVerdict(
        model=test.model,
        baseline=test.baseline,
        name=row.name,
        kind=row.kind,
        metric=row.metric,
        higher_is_better=row.higher_is_better,
        fraction=row.fraction,
        weight=row.weight,
        items=comparison.n,
        groups=comparison.groups,
        baseline_mean=base,
        mean=mean,
        difference=difference,
        low=low,
        high=high,
        level=comparison.level,
        p_value=test.level.among(tests).corrected(comparison.p_value),
        test=comparison.test,
        discordant=comparison.discordant,
        verdict=word,
        reason=reason,
        margin=margin,
        required=required,
        detectable=power.detectable(),
        detectable_one_more_run=power.detectable(more_runs=1) if several_runs else None,
        detectable_twice_items=power.detectable(times_items=2) if several_runs else None,
        items_needed=power.items_for(margin) if margin else None,
        missing=test.missing,
    )


def _holm(family: Mapping[str, RowTest]) -> dict[str, float]:
    """The number of tests that each row is corrected for.

    These are Holm's steps down to the first row without a difference, and that one's from there on, so that an interval
    excludes 0 just where its row is shown to differ.
    """

    def decide(left: Sequence[str]) -> tuple[bool, float]:
        tests = float(len(left))
        comparison = family[left[0]].comparison(tests)
        return comparison.p_value < 1 - comparison.level, tests

    return step_down(sorted(family, key=lambda name: -family[name].distance()), decide)
