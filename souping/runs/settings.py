"""Settings of a run: its components and root settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from souping.checkpoints.header import TORCH_NAMES
from souping.checkpoints.pool import CandidateSource
from souping.core import protocols
from souping.core.fields import Bounds, Count, pick
from souping.core.protocols import Component
from souping.core.types import OWN_BENCHMARK, Candidate, T, UserError, frozen
from souping.merge.backend import MergeBackend
from souping.soups.settings import SoupSettings

if TYPE_CHECKING:
    from souping.analysis import Analysis
    from souping.analysis.guards import Guard

StopAfter = Literal["select", "search"]
MismatchMode = Literal["error", "warn"]
MinGain = Annotated[float, Bounds(ge=0, le=100)]
"""In the unit of the evaluator's scores, as they are shown."""
Goals = list[str] | tuple[str, ...] | Mapping[str, float]
"""Goals of a front, or {goal: weight} to write the soup with the largest weighted sum."""
GROUP_KINDS: Mapping[str, Any] = {
    "pool": CandidateSource,
    "benchmark": protocols.BenchmarkItems,
    "scores": protocols.ScoreSource,
    "selector": protocols.Selector,
    "optimiser": protocols.Optimiser,
    "objective": protocols.Objective,
    "evaluator": protocols.Evaluator,
    "merge": MergeBackend,
    "tracker": protocols.Tracker,
    "executor": protocols.Executor,
    "correlation": protocols.Correlation,
}
"""{group: what its choices make}; the annotations of `RunSettings` are held against it by a test."""
SHARED_MODEL_SETTINGS = ("dtype", "device", "threads", "trust_remote_code")
"""Settings of a loaded model: evaluators that agree on them share it."""


def model_settings(settings: Mapping[str, T]) -> dict[str, T]:
    """The settings of an evaluator's loaded model that another evaluator can share.

    Empty for an evaluator that loads none in this process: its dtype is not one of torch's, or it has no such setting.
    """
    if settings.get("dtype", "") not in (None, *TORCH_NAMES):
        return {}
    return {key: settings[key] for key in SHARED_MODEL_SETTINGS if key in settings}


@frozen
class ExtraEntry:
    """Entry of `extra_benchmarks`, built: an evaluator that brings its items, or items; `limit` of each category."""

    name: str
    limit: Count | None = None
    evaluator: protocols.Evaluator | None = None
    benchmark: protocols.BenchmarkItems | None = None


@frozen
class Expectation:
    """Published score of a candidate: of one category, or of the objective (`category` None)."""

    candidate: str
    category: str | None
    score: float


def expectations(
    expected: Mapping[str, Any] | None, scale: float = 100.0
) -> tuple[Expectation, ...]:
    """Read `expected`: {candidate: score} of the objective, or {candidate: {category: score}}.

    If any score is above 1, all are percent and are divided by `scale`.

    Raises:
        UserError: a value is not a score.
    """
    if not isinstance(expected, Mapping | None):
        raise UserError(
            f"expected={expected!r:.60} must be a mapping: expected='{{CANDIDATE: SCORE}}'"
        )
    # (candidate, category or None for the objective, score)
    scores: list[tuple[str, str | None, Any]] = []
    for candidate, value in (expected or {}).items():
        if not isinstance(value, Mapping):
            scores.append((str(candidate), None, value))
            continue
        for name, score in value.items():
            scores.append((str(candidate), None if name is None else str(name), score))
    for candidate, category, score in scores:
        # Also refuses nan, which is not between the two.
        if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 100:
            where = candidate if category is None else f"{candidate}.{category}"
            raise UserError(
                f"expected.{where}={score!r:.40} must be a score (0 to 1 or 0 to 100) or {{category: score}}"
            )
    if all(score <= 1 for _, _, score in scores):
        scale = 1.0
    entries = []
    for candidate, category, score in scores:
        fraction = float(score) / scale
        entries.append(Expectation(candidate=candidate, category=category, score=fraction))
    return tuple(entries)


@frozen
class RunSettings(SoupSettings):
    """Components and root settings of a run.

    A gain below `min_gain`, in the evaluator's unit, is not a reason to soup. `dry_run` is the most items per category
    and split in a dry run. `guard` are the losses that a soup must not have against `guard_baseline`, by default the
    best candidate. `pareto` are the goals of a front, and with weights the point of it that is written.
    """

    benchmark: protocols.BenchmarkItems
    scores: protocols.ScoreSource
    selector: protocols.Selector
    objective: protocols.Objective
    evaluator: protocols.Evaluator
    executor: protocols.Executor
    stop_after: StopAfter | None
    dry_run: int | None = None
    throughput: float | None = None
    min_gain: float | None = None
    expected_mismatch: MismatchMode = "error"
    expected: tuple[Expectation, ...] = ()
    extra_benchmarks: tuple[ExtraEntry, ...] = ()
    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    guard: Mapping[str, float] = field(default_factory=dict)
    guard_baseline: str | None = None
    pareto: Goals = ()

    @property
    def open_parts(self) -> list[Component]:
        """Components that may hold processes or memory until they are closed."""
        others = [entry.evaluator for entry in self.extra_benchmarks if entry.evaluator is not None]
        return [self.evaluator, self.merge, *others]

    @property
    def inner_min_gain(self) -> float:
        return self.evaluator.unit.inner_margin(self.min_gain)

    def guard_reference(self, candidates: Sequence[Candidate]) -> str | None:
        """The candidate that `guard_baseline` names, None if it is not set (UserError if it names no candidate)."""
        if not self.guard_baseline:
            return self.guard_baseline
        # {what may be typed: candidate}; `base` is the candidate that is the base model.
        names = {candidate.name: candidate.name for candidate in candidates}
        base = self.base_candidate(candidates)
        if base:
            names["base"] = base
        return names[
            pick(self.guard_baseline, names, "guard_baseline", " (base: merge.base_model)")
        ]

    def base_candidate(self, candidates: Sequence[Candidate]) -> str | None:
        """The candidate that is `merge.base_model`, by its name, path or name on the Hub; None if none is."""
        base = self.merge.base_model
        if not base:
            return None
        folder = os.path.realpath(os.path.expanduser(base))
        for candidate in candidates:
            # A fetched model's source is org/name@commit.
            is_source = f"{candidate.source}@".startswith(f"{base}@")
            if is_source or base == candidate.name or folder == os.path.realpath(candidate.path):
                return candidate.name
        return None

    def guards_on(self, categories: Sequence[str]) -> tuple[Guard, ...]:
        """The guards (UserError if a name is not a category, group or extra benchmark)."""
        if not self.guard:
            return ()
        from souping.analysis.guards import resolve

        # {benchmark: unit of its scores}
        units = {OWN_BENCHMARK: self.evaluator.unit}
        for entry in self.extra_benchmarks:
            units[entry.name] = (entry.evaluator or self.evaluator).unit
        return resolve(self.guard, categories, self.objective.groups, units)

    def goals_on(self, categories: Sequence[str]) -> tuple[Guard, ...]:
        """The goals of `pareto` (UserError if a name is not a category or group)."""
        from souping.analysis.front import resolve_goals

        return resolve_goals(self.pareto, categories, self.objective.groups, self.evaluator.unit)

    @property
    def goal_weights(self) -> Mapping[str, float] | None:
        """The weights of the goals by which a point of the front is written, if `pareto` has any."""
        return self.pareto if isinstance(self.pareto, Mapping) else None

    @property
    def selects_from_table(self) -> bool:
        """Whether published scores are all that the run needs: no item, folder or evaluator."""
        return self.stop_after == "select" and self.scores.published

    def with_items(self) -> RunSettings:
        """These settings with the evaluator's items for `benchmark=evaluator` (UserError if they cannot be had)."""
        return replace(self, benchmark=self.benchmark.brought_by(self.evaluator.prompts))
