"""Expected scores of candidates: if one does not score as published, the run stops before the search.

A wrong chat template, stop text or token limit moves a candidate far from its published score. Found here, it costs
the candidates on one fold and no search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from souping.core.fields import pick
from souping.core.protocols import Objective
from souping.core.types import Fold, ItemScores, UserError

if TYPE_CHECKING:
    from souping.analysis.intervals import Interval

FALSE_ALARM = 0.01
"""Chance that a gate of any size stops a run whose candidates all score as published (Bonferroni over its checks)."""
CAUSES = "the chat template, prompt handler, evaluator.stop and max_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Published score of a candidate: of one category, or of the objective (`category` None). Fraction of 1."""

    candidate: str
    category: str | None
    score: float


def expectations(expected: Mapping[str, Any] | None) -> tuple[Expectation, ...]:
    """Read `expected`: {candidate: score} of the objective, or {candidate: {category: score}}.

    If any score is above 1, all are percent.

    Raises:
        UserError: a value is not a score.
    """
    if not isinstance(expected, Mapping | None):
        raise UserError(f"expected={expected!r:.60} must be a mapping: expected='{{CANDIDATE: SCORE}}'")
    pairs: list[tuple[str, str | None, Any]] = []
    for candidate, value in (expected or {}).items():
        if isinstance(value, Mapping):
            pairs += [(str(candidate), str(category), score) for category, score in value.items()]
        else:
            pairs.append((str(candidate), None, value))
    for candidate, category, score in pairs:
        if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 100:  # NaN is not
            where = candidate if category is None else f"{candidate}.{category}"
            raise UserError(
                f"expected.{where}={score!r:.40} must be a score (0 to 1 or 0 to 100) or {{category: score}}"
            )
    scale = 100.0 if any(score > 1 for _, _, score in pairs) else 1.0
    return tuple(Expectation(candidate=name, category=c, score=float(score) / scale) for name, c, score in pairs)


def check_names(expected: Sequence[Expectation], candidates: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse, before any work, names that the pool or the benchmark does not have."""
    for one in expected:
        pick(one.candidate, candidates, "expected: candidate")
        if one.category is not None and categories:
            pick(one.category, categories, f"expected.{one.candidate}: category")


def check_expected(
    expected: Sequence[Expectation], scores: Mapping[str, ItemScores], objective: Objective, mode: str, fold: Fold
) -> dict[str, Any]:
    """`gate` of report.json: each expectation with what was measured; `scores` are {candidate: scores on `fold`}.

    A check fails if the expected score is outside the interval of the measured one, and all intervals hold at once.
    """
    checks = [_check(one, scores[one.candidate], objective, len(expected)) for one in expected]
    passed = all(check["verdict"] == "as expected" for check in checks)
    return {"mode": mode, "fold": fold, "false_alarm": FALSE_ALARM, "passed": passed, "checks": checks}


def _check(one: Expectation, scores: ItemScores, objective: Objective, count: int) -> dict[str, Any]:
    interval = _interval(scores, one.category, objective)
    low, high = widened(interval, count)
    return {
        "candidate": one.candidate,
        "category": one.category,
        "expected": one.score,
        "measured": interval.mean,
        "low": low,
        "high": high,
        "n": interval.n,
        "groups": interval.groups,
        "verdict": "too low" if one.score > high else "too high" if one.score < low else "as expected",
    }


def gate_sentence(gate: Mapping[str, Any]) -> str:
    """Outcome of the gate in one line."""
    failed = [check["candidate"] for check in gate["checks"] if check["verdict"] != "as expected"]
    names = list(dict.fromkeys(failed))
    if not names:
        return f"gate: {len(gate['checks'])} scores as expected on the {gate['fold']} fold"
    verb = "does" if len(names) == 1 else "do"
    return f"gate: {', '.join(names)} {verb} not score as expected on the {gate['fold']} fold: check {CAUSES}"


def _interval(scores: ItemScores, category: str | None, objective: Objective) -> Interval:
    from souping.analysis.intervals import ItemTable, objective_interval, rate

    design = ItemTable.of(scores.items, objective)
    if category is None:
        return objective_interval(scores.values, design.categories, design.groups, design.coefficients)
    mask = design.categories == design.names.index(category)
    return rate(scores.values[mask], design.groups[mask])


def widened(interval: Interval, checks: int) -> tuple[float, float]:
    """A 95 % interval at the level of one of `checks` (Bonferroni): both arms stretched by the ratio of quantiles."""
    from souping.analysis.intervals import Z95

    factor = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * checks)) / Z95
    low = interval.mean - factor * (interval.mean - interval.low)
    high = interval.mean + factor * (interval.high - interval.mean)
    return max(0.0, low), min(1.0, high)
