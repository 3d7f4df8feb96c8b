"""Tests of the rows of `souping compare`: their differences, and the corrections for several rows.

The average row and the policy's required rows decide. Groups and tasks share max-T's correction, as the categories of a
report do; runs of one model, and metrics that are not averaged, have Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from souping.comparison.result import RowVerdict
from souping.comparison.row_verdict import (
    AVERAGE,
    TRUNCATED,
    Limits,
    Policy,
    Word,
    decide,
    verdict_of,
)
from souping.comparison.rows import RowScores
from souping.statistics.comparison import (
    Comparison,
    bounded,
    contrast,
    contrast_at,
    split_variance,
)
from souping.statistics.corrections import Level, step_down
from souping.statistics.joint import compare_jointly
from souping.statistics.power import RunPower
from souping.statistics.score_table import MOST_LOST

TASK_KINDS = ("group", "task")
# Tests of one model are computed once, and forgotten before the next model.
_contrast = cache(contrast)
_contrast_at = cache(contrast_at)


@dataclass(frozen=True)
class RowTest:
    """The tests of one row at a `level`: `model` minus `baseline`, in scores where higher is better."""

    row: RowScores
    model: str
    baseline: str
    level: Level
    # comparisons at the corners of the missing answers (`ScoreTable.corners`), corrected for all rows of a family at
    # once; empty if the row is tested by itself
    in_family: tuple[Comparison, ...] = ()

    def comparison(self, tests: float) -> Comparison:
        """The comparison of the two models as one of this many tests; in a family, it is corrected already."""
        if self.in_family:
            return bounded(self.in_family)
        return _contrast(self.row.scores, self.model, self.baseline, self.level.among(tests))

    def limits(self, tests: float) -> list[Limits]:
        """Intervals of the difference, as one of this many tests.

        With missing answers, the first interval is that of the scores as the harness counted them, and the second
        holds whatever these answers would have been. Otherwise there is one interval.
        """
        bounding = self.comparison(tests)
        limits = [(bounding.low, bounding.high)]
        if self.missing:
            counted = self._counted(tests)
            limits.insert(0, (counted.low, counted.high))
        return limits

    def _counted(self, tests: float) -> Comparison:
        """The comparison by the scores as the harness counted them."""
        if self.in_family:
            return self.in_family[0]
        level = self.level.among(tests)
        scored = self.row.scores.scored
        return _contrast_at(scored, self.model, self.baseline, level, tested=False)

    @property
    def missing(self) -> int:
        """Number of items with a missing answer, in all runs of both models."""
        return self.row.scores.missing(self.model, self.baseline)

    def means(self) -> tuple[float, float]:
        """(mean of the baseline, mean of the model), in the unit and direction of the metric."""
        scored = self.row.scores.scored
        base = scored.items.mean(scored.counted(self.baseline))
        mean = scored.items.mean(scored.counted(self.model))
        if self.row.higher_is_better:
            return base, mean
        # Scores were turned so that higher is better: fractions are 1 - score, others -score.
        top = float(self.row.fraction)
        return top - base, top - mean

    def distance(self) -> float:
        """|difference| / standard error, by which tests are ordered; 0 if there is no variance."""
        base, mean = self.means()
        variance = split_variance(self.row.scores.scored, self.model, self.baseline)
        error = math.sqrt(variance.total)
        return abs(mean - base) / error if error else 0.0


def decide_rows(
    row_tests: Sequence[RowTest], policy: Policy, average_tests: float
) -> Iterator[RowVerdict]:
    """The verdicts on all rows of a model, in their order.

    The average row is one of `average_tests` tests, because several models are compared.
    """
    _contrast.cache_clear()
    _contrast_at.cache_clear()
    tests = {test.row.name: test for test in row_tests}
    average = tests[AVERAGE]
    tests[AVERAGE] = replace(average, level=average.level.among(average_tests))
    margins = {}
    for name, test in tests.items():
        base, _ = test.means()
        row = test.row
        margins[name] = policy.margin_of(name, base, row.fraction, averaged=row.weight > 0)

    # Required rows decide: each has its own level, by Holm where one bad row is enough to fail.
    required = {name: margins[name] for name in tests if name in (AVERAGE, *policy.required)}
    required_verdicts = decide(required, lambda name, number: tests[name].limits(number))

    # All other rows share a correction with the rows of their kind.
    not_required = {name: test for name, test in tests.items() if name not in required}
    tests |= _jointly(not_required)
    corrections = dict.fromkeys(tests, 1.0) | _corrections(
        {name: tests[name] for name in not_required}
    )
    truncated = [max(test.means()) for test in row_tests if test.row.kind == "cut"]
    too_much_truncated = max(truncated, default=0.0) > MOST_LOST
    for name, test in tests.items():
        # Longer or truncated answers are neither better nor worse, unless the policy has a margin for them.
        is_score = test.row.kind not in ("length", "cut")
        judged = is_score or name in policy.margins
        margin = margins[name] if judged else None
        verdict: tuple[Word | Literal[""], str] = ("", "")
        if name in required:
            verdict = required_verdicts[name]
        elif judged:
            verdict = verdict_of(test.limits(corrections[name]), margin)
        if is_score and too_much_truncated:
            verdict = ("undecided", TRUNCATED)
        yield _row_verdict(test, corrections[name], margin, verdict, required=name in required)


def _jointly(tests: Mapping[str, RowTest]) -> dict[str, RowTest]:
    """The tests of groups and tasks, each corrected for all of them at once; none if there is one, or several runs of a
    model, whose variance sign flips do not show."""
    family = {name: test for name, test in tests.items() if test.row.kind in TASK_KINDS}
    if len(family) < 2 or any(test.row.scores.has_runs for test in family.values()):
        return {}
    level = next(iter(family.values())).level
    cells = [(test.row.scores, test.model, test.baseline) for test in family.values()]
    tested = {}
    for name, corners in zip(family, compare_jointly(cells, level), strict=True):
        tested[name] = replace(family[name], in_family=tuple(corners))
    return tested


def _corrections(tests: Mapping[str, RowTest]) -> dict[str, float]:
    """{row: number of tests that it is corrected for} by Holm's method in two families, groups with tasks, and metrics.

    Rows of other kinds, and those that were tested jointly, are left out.
    """
    corrections = {}
    for kinds in (TASK_KINDS, ("metric",)):
        family = {
            n: test for n, test in tests.items() if test.row.kind in kinds and not test.in_family
        }
        corrections.update(_holm(family))
    return corrections


def _row_verdict(
    test: RowTest,
    tests: float,
    margin: float | None,
    verdict: tuple[Word | Literal[""], str],
    required: bool,
) -> RowVerdict:
    """A row with its verdict (word, reason) and its numbers, in the direction of its metric.

    Its interval and p-value are corrected for `tests` tests. This number need not be whole: max-T's is not.
    """
    row = test.row
    comparison = test.comparison(tests)
    difference, low, high = comparison.estimate
    if not row.higher_is_better:
        # The test turned the scores.
        difference = -comparison.difference
        low = -comparison.high
        high = -comparison.low
    base, mean = test.means()
    word, reason = verdict
    power = RunPower(comparison=comparison, scores=row.scores)
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
        level=comparison.level.confidence,
        p_value=comparison.p_look,
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
    """{row: number of tests that it is corrected for} by Holm's method.

    Down to the first row without a difference, a row is corrected for the number of rows that remain at its step; all
    rows after that one for the same number as it. So an interval excludes 0 exactly if its row is shown to differ.
    """

    def decide(remaining: Sequence[str]) -> tuple[bool, float]:
        """(whether the first of the remaining rows differs, the number of tests)"""
        tests = float(len(remaining))
        comparison = family[remaining[0]].comparison(tests)
        return comparison.p_alone < comparison.level.alpha, tests

    return step_down(sorted(family, key=lambda name: -family[name].distance()), decide)
