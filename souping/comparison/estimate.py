"""Weights of tasks, paired scores of models, the test of their weighted mean difference, and several models at once.

Shape legend: R training runs, P answers of an item (replicates), I items, C tasks, D sign patterns, H strata, M models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from souping.analysis.intervals import NORMAL, GroupedScores, design, distinct, unseen_margins
from souping.analysis.sign_flip import ALPHA, DRAWS, TIE, drawn_sums
from souping.analysis.significance import Comparison, compare
from souping.core.types import FloatArray, IntArray, UserError
from souping.logs.match import Matched, MatchedMetric, moments

SCORE, BEST, WORST, NOISE = range(4)
"""Rows of `PooledScores.values`."""


# Weights


def task_weights(matched: Matched, average: str, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """{task: weight}, which sum to 1, of the tasks whose first metric is a mean within 0..1,
    or of all tasks if they share one unit, such as that of a loss.

    `task` is the mean over what was asked for: a group counts once, and inside it all of its tasks are averaged as its
    harness does. `leaf` is the mean over tasks, `item` that over
    items; `given` are weights of tasks and groups from a file.

    Raises:
        UserError: no metric is a mean, or a weight names something that is not here.
    """
    first = {name: found[0] for name, found in matched.metrics.items()}
    means = {name: one for name, one in first.items() if one.is_mean}
    if not means and len({one.unit for one in first.values()}) == 1:
        means = {name: one for name, one in first.items() if one.unit or len(first) == 1}
    sizes = {name: float(len(one.items)) for name, one in means.items()}
    if not sizes:
        raise UserError("no task has a metric that is a mean of scores from 0 to 1, so there is nothing to average")
    if given is not None and not all(0 <= weight < 1e9 for weight in given.values()):
        raise UserError("weights: each is a number from 0 to 1e9")
    named = {"leaf": dict.fromkeys(sizes, 1.0), "item": sizes, "task": dict.fromkeys(matched.asked, 1.0)}
    shares = dict.fromkeys(sizes, 0.0)
    for name, weight in (named[average] if given is None else given).items():
        if name not in matched.groups and name not in matched.metrics:
            raise UserError(f"weights: {name} is not a task or group of all models")
        group = matched.groups.get(name)
        inside = [task for task in (group.members if group else (name,)) if task in sizes]
        within = {task: sizes[task] if group and group.weight_by_size else 1.0 for task in inside}
        for task, share in within.items():
            shares[task] += weight * share / sum(within.values())
    total = sum(shares.values())
    if total <= 0:
        raise UserError("the weights of the tasks sum to 0")
    return {name: share / total for name, share in shares.items() if share > 0}


# Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledScores:
    """Scores of all models on the items of some tasks, turned so that higher is better.

    `weights` [C] are those of the tasks `names`; `categories` and `groups` [I]. `values` are {model: [4, R, I]}: the
    mean score over the answers of an item as its harness counted (SCORE), with missing answers counted as right (BEST)
    and as wrong (WORST), and the variance of the score over the draw of its answers (NOISE), nan if it has one.
    """

    names: tuple[str, ...]
    weights: FloatArray
    categories: IntArray
    groups: IntArray
    values: Mapping[str, FloatArray]

    def at(self, place: NDArray[np.bool_]) -> PooledScores:
        """The items of this mask. Tasks without any of them are left out."""
        if place.all():
            return self
        kept, categories = np.unique(self.categories[place], return_inverse=True)
        weights = self.weights[kept]
        return PooledScores(
            names=tuple(self.names[n] for n in kept),
            weights=weights / weights.sum(),
            categories=categories.astype(np.int64),
            groups=self.groups[place],
            values={name: part[..., place] for name, part in self.values.items()},
        )

    def only(self, names: Collection[str]) -> PooledScores:
        """These tasks alone."""
        return self.at(np.isin(self.categories, [n for n, name in enumerate(self.names) if name in names]))

    def scored(self) -> PooledScores:
        """The items that have a score in every run of every model."""
        return self.at(finite(self.values.values()))

    def paired(self, a: FloatArray, b: FloatArray) -> GroupedScores:
        """a - b [I] summed by group and task."""
        return design(a - b, self.categories, self.groups, self.weights)

    def mean(self, values: FloatArray) -> float:
        """The weighted mean of scores [R, I] over tasks."""
        sums = np.bincount(self.categories, values.mean(axis=0))
        return float((self.weights * sums / np.bincount(self.categories)).sum())


def finite(values: Iterable[FloatArray], fill: int = SCORE) -> NDArray[np.bool_]:
    """Items [I] that have a score in every run of every model."""
    return np.asarray(np.all([np.isfinite(part[fill]).all(axis=0) for part in values], axis=0))


def pool(metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float], pass_at: int = 0) -> PooledScores:
    """Scores of all models by these metrics, {task: metric}; `pass_at` k gives an item its pass@k.

    Raises:
        UserError: no item has a score of every model, or pass@k cannot be computed.
    """
    found = list(metrics.values())
    numbers: dict[str | tuple[str, str], int] = {}
    keys = [group or (one.task, item) for one in found for item, group in zip(one.items, one.groups, strict=True)]
    whole = PooledScores(
        names=tuple(metrics),
        weights=np.array([weights[name] for name in metrics]),
        categories=np.repeat(np.arange(len(found)), [len(one.items) for one in found]),
        groups=np.array([numbers.setdefault(key, len(numbers)) for key in keys]),
        values={
            name: np.concatenate([_values(one, name, pass_at) for one in found], axis=2) for name in found[0].scores
        },
    )
    counted = whole.categories[finite(whole.values.values())]
    if not len(counted):
        raise UserError(f"{', '.join(metrics)}: no item has a score of every model")
    usable = finite(whole.values.values(), BEST) & finite(whole.values.values(), WORST)
    return whole.at(usable & np.isin(whole.categories, counted))


def _values(metric: MatchedMetric, model: str, pass_at: int) -> FloatArray:
    """[4, R, I] of a model, see `PooledScores`."""
    raw = metric.scores[model]
    raw = raw if metric.higher_is_better else (1.0 if metric.is_mean else 0.0) - raw
    gone = (metric.values["missing"][model] > 0) & metric.is_mean
    cases = [raw, np.where(gone, 1.0, raw), np.where(gone, 0.0, raw)] if gone.any() else [raw]
    counts, means, noise = zip(*map(moments, cases), strict=True)
    if pass_at:
        means = tuple(_pass_at(case, count, pass_at, metric.task) for case, count in zip(cases, counts, strict=True))
    return np.stack([means[0], means[len(means) // 2], means[-1], noise[0]])


def _pass_at(raw: FloatArray, count: FloatArray, k: int, task: str) -> FloatArray:
    """Chance that one of k answers is right, without bias from n of which c are: 1 - C(n - c, k) / C(n, k) (Chen et al.
    2021), [R, I]."""
    answers = raw[np.isfinite(raw)]
    if not np.isin(answers, (0.0, 1.0)).all():
        raise UserError(f"pass@{k}: {task} has scores that are neither 0 nor 1")
    if (count[count > 0] < k).any():
        raise UserError(f"pass@{k}: {task} has items with {count[count > 0].min()} answers: at least {k} are needed")
    wrong, none = (raw == 0).sum(axis=1), np.ones(count.shape)
    for step in range(k):
        none = none * np.maximum(wrong - step, 0.0) / np.maximum(count - step, 1)
    return np.where(count > 0, 1.0 - none, np.nan)


# Tests


def contrast(
    pooled: PooledScores, a: str, b: str, *, tests: float = 1, missing: int = 0, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """Model a minus model b, at the level divided by a number of `tests`.

    `missing` is 1 if a's missing answers count as right and b's as wrong, -1 if the other way round, 0 if all count as
    their harness counted them.
    """
    place = finite((pooled.values[a], pooled.values[b]), BEST) if missing else finite(pooled.values.values())
    pooled = pooled.at(place)
    cases = ((SCORE, SCORE), (BEST, WORST), (WORST, BEST))[missing]
    ours, theirs = pooled.values[a][cases[0]], pooled.values[b][cases[1]]
    if len(ours) > 1 or len(theirs) > 1:
        return recipes(pooled, a, b, ours, theirs, tests)
    table = (pooled.categories, pooled.groups, pooled.weights)
    return compare(a, b, ours[0], theirs[0], *table, tests=tests, draws=draws, seed=seed)


def recipes(pooled: PooledScores, a: str, b: str, ours: FloatArray, theirs: FloatArray, tests: float = 1) -> Comparison:
    """Recipe a minus recipe b from several training runs, scores [R, I] each.

    The variance of the difference is that of items plus that of run means less what both count, never below the larger
    of the two; the interval is Student's with Satterthwaite's degrees of freedom, and widened on the side of which few
    or no items show anything.
    """
    from scipy.special import stdtr, stdtrit

    one, other = ours.mean(axis=0), theirs.mean(axis=0)
    whole, alpha, parts = pooled.paired(one, other), ALPHA / tests, _split(pooled, ours, theirs)
    error, table = math.sqrt(parts.total), (pooled.categories, pooled.groups, pooled.weights)
    found = compare(a, b, one, other, *table, tests=tests, same_model=error > 0)
    if not error:  # every item of every run differs alike
        return found
    size = abs(found.difference)
    p_value = float(2 * stdtr(parts.degrees, -size / error))
    reach = float(-stdtrit(parts.degrees, alpha / 2)) * error
    below, above = (float(np.hypot(reach, more)) for more in unseen_margins(whole, alpha / 2))
    if p_value < alpha:  # widened, but not so far that the interval contradicts the test
        towards = min(below if found.difference > 0 else above, max(reach, size * (1 - TIE)))
        below, above = (towards, above) if found.difference > 0 else (below, towards)
    test = f"t over items and training runs, {parts.degrees:.1f} degrees of freedom"
    low, high = found.difference - below, found.difference + above
    return replace(found, low=low, high=high, p_value=p_value, test=test, step=0.0)


@dataclass(frozen=True, kw_only=True)
class VarianceParts:
    """Variance of a difference, and what adds to it. None where the logs cannot tell."""

    total: float = field(metadata={"doc": "variance of the difference"})
    items: float = field(metadata={"doc": "part of the choice of items, with that of their answers if that is unknown"})
    answers: float | None = field(metadata={"doc": "part of sampled answers; needs several answers per item"})
    runs: float | None = field(metadata={"doc": "part of training runs; needs several runs of a recipe"})
    degrees: float = field(metadata={"doc": "degrees of freedom; null if there is one run per model"})


def variance_parts(pooled: PooledScores, a: str, b: str) -> VarianceParts:
    """Split of the variance of model a minus model b, on items that all have a score.

    A side with one run gets the variance between runs of the other side.
    """
    ours, theirs = pooled.values[a], pooled.values[b]
    return _split(pooled, ours[SCORE], theirs[SCORE], (ours[NOISE], theirs[NOISE]))


def _split(
    pooled: PooledScores, ours: FloatArray, theirs: FloatArray, noise: Sequence[FloatArray] = ()
) -> VarianceParts:
    """The same of scores [R, I]; `noise` are the variances over answers of both."""
    whole = pooled.paired(ours.mean(axis=0), theirs.mean(axis=0))
    paired, free = float(whole.variances().sum()), max(1, len(whole.sums) - whole.strata)
    per_item = (pooled.weights / np.bincount(pooled.categories))[pooled.categories]
    known = bool(noise) and all(np.isfinite(part).all() for part in noise)
    answers = sum(float((per_item**2 * part.sum(axis=0)).sum()) / len(part) ** 2 for part in noise) if known else None
    items = max(0.0, paired - (answers or 0.0))
    sides = [(len(side), *_between_runs(pooled, side)) for side in (ours, theirs) if len(side) > 1]
    if not sides:
        return VarianceParts(total=paired, items=items, answers=answers, runs=None, degrees=math.inf)
    shares = [1 / runs for runs, _, _ in sides] if len(sides) == 2 else [1 / len(ours) + 1 / len(theirs)]
    parts = [spread * share for share, (_, spread, _) in zip(shares, sides, strict=True)]
    between, overlap = sum(parts), sum(both * share for share, (_, _, both) in zip(shares, sides, strict=True))
    total = max(paired, between, paired + between - overlap)
    below = paired**2 / free + sum(part**2 / (runs - 1) for part, (runs, _, _) in zip(parts, sides, strict=True))
    degrees = total**2 / below if below else math.inf
    runs_part = max(0.0, between - overlap)
    return VarianceParts(total=total, items=items, answers=answers, runs=runs_part, degrees=degrees)


def _between_runs(pooled: PooledScores, side: FloatArray) -> tuple[float, float]:
    """(variance of a run's mean, the part of it that is due to items answered otherwise than in other runs)."""
    totals = np.array([pooled.mean(run[None]) for run in side])
    rest = side - side.mean(axis=0)
    noise = sum(float(pooled.paired(run, np.zeros_like(run)).variances().sum()) for run in rest)
    return float(totals.var(ddof=1)), noise / (len(side) - 1)


# Several models


@dataclass(frozen=True, kw_only=True)
class JointFlips:
    """Sums of the groups of all models in the same sign patterns, the pattern seen first.

    `sums` [D, H, M]; `squares` [H, M, M] are the groups' squared differences of two models; `sizes` [H]. `extra`
    [M, M] is the variance of each difference between training runs, which sign flips do not show.
    """

    sums: FloatArray
    squares: FloatArray
    sizes: FloatArray
    extra: FloatArray

    @classmethod
    def of(cls, pooled: PooledScores, models: Sequence[str], draws: int = DRAWS, seed: int = 0) -> JointFlips:
        pooled = pooled.scored()
        means = [pooled.values[name][SCORE].mean(axis=0) for name in models]
        wholes = [pooled.paired(one, means[0]) for one in means]
        pull = np.stack([whole.pulls() for whole in wholes], axis=1)
        stratum, sizes = wholes[0].stratum, wholes[0].sizes
        unit = np.abs(pull).max() or 1.0
        rows, where, number = distinct(pull / unit, stratum)
        drawn = drawn_sums(rows, number, where, len(sizes), draws, seed) * unit
        seen = np.stack([np.bincount(stratum, column, len(sizes)) for column in pull.T], axis=1)
        apart = (pull[:, :, None] - pull[:, None, :]) ** 2
        squares = np.stack([apart[stratum == h].sum(axis=0) for h in range(len(sizes))])
        extra = np.zeros((len(models), len(models)))
        for (i, a), (j, b) in combinations(enumerate(models), 2):
            parts = _split(pooled, pooled.values[a][SCORE], pooled.values[b][SCORE])
            extra[i, j] = extra[j, i] = parts.total - parts.items
        return cls(sums=np.concatenate([seen[None], drawn]), squares=squares, sizes=sizes, extra=extra)

    def t(self, one: int, other: int) -> FloatArray:
        """Studentised difference of two models in every pattern, [D]."""
        apart = self.sums[:, :, one] - self.sums[:, :, other]
        squares = self.squares[:, one, other]
        factor = self.sizes / np.maximum(self.sizes - 1, 1)
        variance = ((squares - apart**2 / self.sizes) * factor).sum(axis=1) + self.extra[one, other]
        return np.asarray(apart.sum(axis=1) / np.sqrt(np.maximum(variance, 1e-12 * max(squares.sum(), 1e-30))))


def step_down(flips: JointFlips, alpha: float) -> list[float]:
    """For each model but the first, the baseline: the number of independent tests whose correction its difference
    needs (max-T step-down over shared sign patterns; Westfall and Young 1993).

    The model with the largest difference is held to the largest of all, the next one to the largest of the rest. From
    the first that is not shown on, all have the same correction.
    """
    tables = np.stack([np.abs(flips.t(m, 0)) for m in range(1, flips.sums.shape[2])])
    order, needed = np.argsort(-tables[:, 0], kind="stable"), [1.0] * len(tables)
    stopped = 0.0
    for rank, model in enumerate(order):
        rest = order[rank:]
        critical = min(_critical(tables[rest, 1:].max(axis=0), alpha), -NORMAL.inv_cdf(alpha / 2 / len(rest)))
        tests = stopped or min(float(len(rest)), max(1.0, alpha / (2 * NORMAL.cdf(-critical))))
        needed[model] = tests
        if not stopped and tables[model, 0] < critical:
            stopped = tests
    return needed


def best_set(flips: JointFlips, alpha: float) -> list[int]:
    """Models that may be the best one: in 1 - alpha of comparisons the truly best is among them (multiple comparisons
    with the best, Hsu 1981). A model is left out if another is above it by more than chance among all others."""
    kept = []
    count = flips.sums.shape[2]
    for model in range(count):
        others = np.stack([flips.t(other, model) for other in range(count) if other != model])
        seen, drawn = others[:, 0].max(), others[:, 1:].max(axis=0)
        if (1 + (drawn >= seen - TIE).sum()) / (1 + len(drawn)) > alpha:
            kept.append(model)
    return kept


def _critical(largest: FloatArray, alpha: float) -> float:
    ordered: FloatArray = np.sort(largest)
    return float(ordered[-max(1, int(np.ceil(alpha * (1 + len(ordered)) - 1 - TIE)))])
