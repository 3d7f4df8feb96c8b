"""Baseline gate: single models are measured first, and where one is not what was expected the run stops.

A wrong chat template, stop text or token limit moves a single model far from its published score; found here it costs
the singles on one fold, not a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from souping.core.fields import pick
from souping.core.protocols import Objective
from souping.core.types import Fold, ItemScores, UserError

if TYPE_CHECKING:
    from souping.analysis.intervals import Interval

FALSE_ALARM = 0.01
"""Chance that a gate of any size stops a run whose singles are all as published (Bonferroni over its checks)."""
CAUSES = "the chat template, prompt handler, evaluator.stop and max_new_tokens"
Verdict = Literal["as expected", "too low", "too high"]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Published figure of a single model: of one category, or of the objective (`category` None). Fraction of 1."""

    candidate: str
    category: str | None
    score: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """Expectation beside what was measured. `low` and `high` hold for all checks of the gate at once."""

    candidate: str
    category: str | None
    expected: float
    measured: float
    low: float
    high: float
    n: int
    groups: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Outcome of the gate on `fold`."""

    mode: str
    fold: Fold
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.verdict != "as expected")

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `report.json`."""
        checks = [asdict(check) for check in self.checks]
        return {
            "mode": self.mode,
            "fold": self.fold,
            "false_alarm": FALSE_ALARM,
            "passed": not self.failed,
            "checks": checks,
        }

    def sentence(self) -> str:
        """What came out, in one line."""
        names = list(dict.fromkeys(check.candidate for check in self.failed))
        if not names:
            return f"gate: {len(self.checks)} figures as expected on the {self.fold} fold"
        return (
            f"gate: {', '.join(names)} {'does' if len(names) == 1 else 'do'} not score as expected on the {self.fold} "
            f"fold: check {CAUSES}"
        )


def expectations(expected: Mapping[str, Any] | None) -> tuple[Expectation, ...]:
    """Read `expected`: {candidate: score} of the objective, or {candidate: {category: score}}.

    Scores are fractions, or percent as a whole where any is above 1.

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
    """Refuse, before any work, names that the pool or the benchmark does not have; the nearest is named."""
    for one in expected:
        pick(one.candidate, candidates, "expected: candidate")
        if one.category is not None and categories:
            pick(one.category, categories, f"expected.{one.candidate}: category")


def judge(
    expected: Sequence[Expectation], scores: Mapping[str, ItemScores], objective: Objective, *, mode: str, fold: Fold
) -> Gate:
    """Hold the scores of every candidate that is expected to score something against its figures.

    Each interval is widened so that together they hold with probability 1 - FALSE_ALARM. The figure counts as exact:
    published figures are of the whole benchmark, of which the fold is a part, so that the interval, made for a sample
    of endlessly many items, is already wider than it need be.
    """
    checks = []
    for one in expected:
        interval = _interval(scores[one.candidate], one.category, objective)
        low, high = widened(interval, len(expected))
        verdict: Verdict = "too low" if one.score > high else "too high" if one.score < low else "as expected"
        checks.append(
            Check(
                candidate=one.candidate,
                category=one.category,
                expected=one.score,
                measured=interval.mean,
                low=low,
                high=high,
                n=interval.n,
                groups=interval.groups,
                verdict=verdict,
            )
        )
    return Gate(mode=mode, fold=fold, checks=tuple(checks))


def _interval(scores: ItemScores, category: str | None, objective: Objective) -> Interval:
    from souping.analysis.intervals import ItemTable, objective_interval, rate

    design = ItemTable.of(scores.items, objective)
    if category is None:
        return objective_interval(scores.values, design.categories, design.groups, design.coefficients)
    mask = design.categories == design.names.index(category)
    return rate(scores.values[mask], design.groups[mask])


def widened(interval: Interval, checks: int) -> tuple[float, float]:
    """A 95 % interval stretched to the level of one of `checks` (Bonferroni), both arms by the ratio of quantiles."""
    from souping.analysis.intervals import Z95

    factor = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * checks)) / Z95
    low = interval.mean - factor * (interval.mean - interval.low)
    high = interval.mean + factor * (interval.high - interval.mean)
    return max(0.0, low), min(1.0, high)
