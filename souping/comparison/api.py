"""The comparison as a function: read logs, match them, test each row, judge.

A comparison of runs of ours is a look at their report items and goes into the ledger of their store.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import Comparison, detectable, items_for
from souping.comparison import estimate
from souping.comparison.estimate import variance_parts
from souping.comparison.looks import looks_of
from souping.comparison.pooled import BEST, SCORE, WORST, PooledScores, pool, task_weights
from souping.comparison.result import AmountKind, CompareResult, Difference, Flip, RowVerdict
from souping.comparison.several import JointFlips, best_models, step_down
from souping.comparison.verdict import (
    FAIL_ON,
    HEADLINE,
    Limits,
    Margin,
    Policy,
    Word,
    decide,
    read_policy,
    verdict_of,
)
from souping.core.fields import Count, check_arguments, load, pick
from souping.core.files import expanded
from souping.core.types import UserError
from souping.logs import read
from souping.logs.match import Field, Matched, MatchedMetric, matched
from souping.logs.records import Log, LoggedAnswer
from souping.logs.tables import Frame

AVERAGES = ("task", "item", "leaf")
LENGTH_KINDS: Mapping[Field, AmountKind] = {
    "tokens": "length",
    "characters": "length",
    "cut": "cut",
}
WARN_CUT = 0.02
FEW_GROUPS = 30
LogSource = str | Path | Frame
"""A log: its path, or a data frame."""


def compare(
    logs: Mapping[str, LogSource | list[LogSource]],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    policy: str | Path | None = None,
    average: str = "task",
    group: str = "",
    looks: Count = 1,
    pass_at: Annotated[int, Interval(ge=0)] = 0,
    same_prompts: bool = False,
    lower_is_better: Sequence[str] = (),
    fail_on: Sequence[Word] = FAIL_ON,
    store: str | Path | None = None,
) -> CompareResult:
    """Compare evaluation logs with the first of them, or with the `baseline`.

    Args:
        logs: {name: log}, or {name: [log, ...]} for several training runs of one recipe.
        margin: a loss in points that does not matter.
        policy: TOML file with margins and critical tasks.
        average: over `task`s that were asked for, `item`s or `leaf` tasks, or a JSON file {task: weight}.
        group: field of the documents, or column, that items share.
        looks: number of this comparison on these items. Runs of souping have it from their store.
        pass_at: k, to score an item by pass@k instead of the mean of its answers.
        same_prompts: refuse logs whose prompts, as they were sent, differ.
        lower_is_better: tasks of CSV and JSONL logs in which a lower score is better.
        fail_on: verdicts of deciding rows that make `status` 1.
        store: results store of runs of souping, where it is not found.

    Raises:
        UserError: a log is damaged, or the logs may not be compared.
    """
    arguments = {"margin": margin, "looks": looks, "pass_at": pass_at, "fail_on": fail_on}
    check_arguments(compare, {**arguments, "lower_is_better": lower_is_better})
    found = _read(logs, baseline, group, lower_is_better)
    gate = _gate(margin, policy)
    given = None if average in AVERAGES else load(expanded(average), dict[str, float], "average")
    table = matched(found, same_prompts=same_prompts)
    weights = task_weights(table, average, given)
    settings = [average, given, group, pass_at, gate.description]
    rows = list(_rows(table, weights, pass_at, gate.named))
    _check(rows, gate)
    looks, charge, notes = looks_of(found, table, weights, settings, store, looks)
    models, pooled, base = tuple(found), rows[0].pooled, next(iter(found))
    tests, best, pairs = _several(pooled, models, ALPHA / charge)
    verdicts = _all_verdicts(rows, models, gate, tests, charge)
    return CompareResult(
        baseline=base,
        models=models,
        average=average if given is None else "file",
        looks=looks,
        status=int(any(row.decides and row.verdict in fail_on for row in verdicts)),
        verdicts=tuple(verdicts),
        variance={model: variance_parts(pooled.scored(), model, base) for model in models[1:]},
        best=best,
        pairs=pairs,
        flips=tuple(_flips(table, models, found)),
        warnings=(*table.notes, *notes, *_unaveraged(table, weights), *_warnings(verdicts, pooled)),
    )


def _gate(margin: float | None, policy: str | Path | None) -> Policy:
    headline = None if margin is None else Margin.of(margin, "margin")
    return read_policy(expanded(policy), headline) if policy else Policy(margin=headline)


def _all_verdicts(
    rows: Sequence[RowScores],
    models: Sequence[str],
    gate: Policy,
    tests: Sequence[float],
    charge: float,
) -> list[RowVerdict]:
    """The verdicts of each row on each model against the first."""
    verdicts: list[RowVerdict] = []
    for model, needed in zip(models[1:], tests, strict=True):
        row_tests = [RowTest(row, model, models[0], charge) for row in rows]
        verdicts += _verdicts(row_tests, gate, needed)
    return verdicts


def _read(
    logs: Mapping[str, LogSource | list[LogSource]],
    baseline: str | None,
    group: str,
    lower: Sequence[str],
) -> dict[str, list[Log]]:
    """The logs of each model, the baseline first."""
    several = {
        name: list(source) if isinstance(source, list | tuple) else [source]
        for name, source in logs.items()
    }
    if empty := [name for name, sources in several.items() if not sources]:
        raise UserError(f"{empty[0]} has no log: write {empty[0]}=LOG")
    if len(logs) < 2:
        raise UserError("compare needs two models or more: base=LOG cand=LOG")
    base = pick(baseline, logs, "baseline") if baseline else next(iter(logs))
    names = dict.fromkeys((base, *logs))
    return {
        name: [log for one in several[name] for log in read(one, group=group, lower=lower)]
        for name in names
    }


def _several(
    pooled: PooledScores, models: Sequence[str], alpha: float
) -> tuple[list[float], tuple[str, ...], dict[str, dict[str, Difference]]]:
    """Of three or more models: the number of tests that each but the first is corrected for, those among which the best
    is, and the differences of each two."""
    if len(models) < 3:
        return [1.0], (), {}
    flips, pairs = JointFlips.of(pooled, models), dict[str, dict[str, Difference]]()
    for one, other in combinations(models, 2):
        shown = estimate.contrast(pooled, one, other)
        pairs.setdefault(one, {})[other] = (shown.difference, shown.low, shown.high)
    return step_down(flips, alpha), best_models(pooled, models, alpha), pairs


# Rows


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """One row before it is judged: the pooled scores of all models on its tasks."""

    name: str
    kind: AmountKind
    metric: str
    pooled: PooledScores
    higher_is_better: bool = True
    fraction: bool = True
    weight: float = 0.0


def _check(rows: Sequence[RowScores], policy: Policy) -> None:
    if len(rows[0].pooled.categories) < 2:
        raise UserError("one item in common: a comparison needs two or more")
    if twice := [name for name, count in Counter(row.name for row in rows).items() if count > 1]:
        raise UserError(
            f"two rows would have the name {twice[0]}: rename that task, group or category in the logs"
        )
    policy.check([row.name for row in rows if row.kind != "average"])


def _rows(
    matched: Matched, weights: Mapping[str, float], pass_at: int, named: Collection[str]
) -> Iterator[RowScores]:
    """The headline, groups that were asked for, tasks, other metrics, length and cut answers. A task or group that is
    all there is has a row of its own if the policy names it."""
    first = {name: found[0] for name, found in matched.metrics.items()}
    averaged = {name: first[name] for name in weights}
    whole = pool(averaged, weights, pass_at)
    share = dict(zip(whole.names, whole.weights.tolist(), strict=True))
    one = next(iter(averaged.values()))
    head = RowScores(name=HEADLINE, kind="average", metric="", pooled=whole, weight=1.0)
    if not one.is_mean:
        head = replace(
            head, metric=one.metric, higher_is_better=one.higher_is_better, fraction=False
        )
    yield head
    for group in matched.groups.values():
        inside = [name for name in group.members if name in share]
        if 1 < len(inside) < len(weights) or (inside and group.name in named):
            part = sum(share[name] for name in inside)
            yield replace(
                head, name=group.name, kind="group", pooled=whole.only(inside), weight=part
            )
    for name in whole.names:
        if len(weights) > 1 or name in named:
            yield replace(_single(first[name], "task", whole.only([name])), weight=share[name])
    for name, found in matched.metrics.items():
        for one in found[name in weights :]:
            if _is_scored(one):
                pooled = pool({name: one}, {name: 1.0})
                yield _single(
                    one, "metric", pooled, name if one is found[0] else f"{name} {one.metric}"
                )
    yield from _lengths(averaged, weights)


def _is_scored(metric: MatchedMetric) -> bool:
    """Whether all models have a score of some item in every run."""
    scored = [np.isfinite(values).any(axis=1).all(axis=0) for values in metric.scores.values()]
    return bool(np.all(scored, axis=0).any())


def _single(
    metric: MatchedMetric, kind: AmountKind, pooled: PooledScores, name: str = ""
) -> RowScores:
    return RowScores(
        name=name or metric.task,
        kind=kind,
        metric=metric.metric,
        pooled=pooled,
        higher_is_better=metric.higher_is_better,
        fraction=metric.is_mean,
    )


def _lengths(
    metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float]
) -> Iterator[RowScores]:
    """Output length and the share of cut answers, weighted as the headline, over the tasks whose logs have them.

    Length is in tokens, or in characters if more tasks have those.
    """
    found = dict[Field, dict[str, MatchedMetric]]()
    for name in LENGTH_KINDS:
        tables = {
            task: replace(one, values={**one.values, "score": one.values[name]})
            for task, one in metrics.items()
        }
        found[name] = {task: one for task, one in tables.items() if _is_scored(one)}
    del found["tokens" if len(found["characters"]) > len(found["tokens"]) else "characters"]
    for name, tasks in found.items():
        if tasks:
            is_mean, total = name == "cut", sum(weights[task] for task in tasks)
            parts = {
                task: replace(one, is_mean=is_mean, higher_is_better=False)
                for task, one in tasks.items()
            }
            pooled = pool(parts, {task: weights[task] / total for task in parts})
            yield replace(
                _single(parts[next(iter(parts))], LENGTH_KINDS[name], pooled, name), metric=name
            )


# Verdicts


@dataclass(frozen=True)
class RowTest:
    """The tests of one row: a model minus the baseline, higher is better, for any number of tests times `factor`."""

    row: RowScores
    model: str
    baseline: str
    factor: float

    def comparison(self, tests: float) -> Comparison:
        return _contrast(self.row.pooled, self.model, self.baseline, tests=tests * self.factor)

    def limits(self, tests: float) -> list[Limits]:
        """The interval; before it, if answers are missing, that of the scores as the harness counted."""
        shown = self.comparison(tests)
        if not self.missing:
            return [(shown.low, shown.high)]
        counted = _counted_contrast(
            self.row.pooled, self.model, self.baseline, tests=tests * self.factor
        )
        return [(counted.low, counted.high), (shown.low, shown.high)]

    @property
    def missing(self) -> int:
        """Items with a missing answer, in all runs of both models."""
        tables = [self.row.pooled.values[name] for name in (self.model, self.baseline)]
        return sum(int((table[BEST] != table[WORST]).sum()) for table in tables)

    def means(self) -> tuple[float, float]:
        """(the baseline's mean, the model's) as the metric has them."""
        pooled = self.row.pooled.scored()
        base, mean = (
            pooled.mean(pooled.values[name][SCORE]) for name in (self.baseline, self.model)
        )
        whole = float(self.row.fraction)
        return (base, mean) if self.row.higher_is_better else (whole - base, whole - mean)

    def distance(self) -> float:
        """Rough |T| / se, by which tests are ordered."""
        base, mean = self.means()
        error = math.sqrt(variance_parts(self.row.pooled.scored(), self.model, self.baseline).total)
        return abs(mean - base) / error if error else 0.0


_contrast = cache(estimate.contrast)
_counted_contrast = cache(estimate.counted_contrast)


def _verdicts(every: Sequence[RowTest], policy: Policy, headline: float) -> Iterator[RowVerdict]:
    """All rows of a model. The headline's correction for several models is `headline` tests."""
    _contrast.cache_clear()
    _counted_contrast.cache_clear()
    tests = {one.row.name: one for one in every}
    tests[HEADLINE] = replace(tests[HEADLINE], factor=tests[HEADLINE].factor * headline)
    margins = {
        name: policy.margin_of(name, test.means()[0], test.row.fraction, test.row.weight > 0)
        for name, test in tests.items()
    }
    deciding = [name for name in tests if name in (HEADLINE, *policy.critical)]
    found = decide(
        {name: margins[name] for name in deciding}, lambda name, number: tests[name].limits(number)
    )
    needed = dict.fromkeys(tests, 1.0)
    for kinds in (("group", "task"), ("metric",)):
        needed |= _holm(
            {n: one for n, one in tests.items() if one.row.kind in kinds and n not in deciding}
        )
    for name, test in tests.items():
        judged = test.row.kind not in ("length", "cut") or name in policy.margins
        margin, decides = margins[name] if judged else None, name in deciding
        if judged and not decides:
            found[name] = verdict_of(test.limits(needed[name]), margin)
        yield _verdict(test, needed[name], margin, found.get(name, ("", "")), decides)


def _verdict(
    test: RowTest,
    needed: float,
    margin: float | None,
    found: tuple[Word | Literal[""], str],
    decides: bool,
) -> RowVerdict:
    """A row, its numbers in the direction of its metric."""
    row, shown = test.row, test.comparison(needed)
    base, mean = test.means()
    low, high = (shown.low, shown.high) if row.higher_is_better else (-shown.high, -shown.low)
    return RowVerdict(
        model=test.model,
        baseline=test.baseline,
        **{key: value for key, value in vars(row).items() if key != "pooled"},
        items=shown.n,
        groups=shown.groups,
        base=base,
        mean=mean,
        difference=shown.difference if row.higher_is_better else -shown.difference,
        low=low,
        high=high,
        level=shown.level,
        p_value=min(1.0, shown.p_value * needed * test.factor),
        test=shown.test,
        discordant=shown.discordant,
        verdict=found[0],
        reason=found[1],
        margin=margin,
        decides=decides,
        detectable=detectable(shown),
        items_needed=items_for(shown, margin) if margin else None,
        missing=test.missing,
    )


def _holm(family: Mapping[str, RowTest]) -> dict[str, float]:
    """The number of tests that each row is corrected for: Holm's steps down to the first row without a difference, and
    that one's from there on, so that an interval excludes 0 just where its row is shown to differ."""
    order = sorted(family, key=lambda name: -family[name].distance())
    needed, stopped = dict[str, float](), 0.0
    for rank, name in enumerate(order):
        needed[name] = stopped or float(len(order) - rank)
        shown = family[name].comparison(needed[name])
        if not stopped and shown.p_value >= 1 - shown.level:
            stopped = needed[name]
    return needed


def _flips(
    matched: Matched, models: Sequence[str], logs: Mapping[str, Sequence[Log]]
) -> Iterator[Flip]:
    """Items of the first metric of each task that a model and the baseline score differently."""
    for model in models[1:]:
        found = list[Flip]()
        for task, (metric, *_) in matched.metrics.items():
            base, mean = (metric.item_means(name) for name in (models[0], model))
            before, now = (
                _texts(logs[name][0], task, metric.metric) for name in (models[0], model)
            )
            for place in np.flatnonzero(np.abs(mean - base) > ZERO_DIFFERENCE):
                item = metric.items[place]
                flip = Flip(
                    model=model,
                    task=task,
                    item=item,
                    base=float(base[place]),
                    score=float(mean[place]),
                    prompt=now[item].prompt,
                    base_output=before[item].output,
                    output=now[item].output,
                )
                found.append(flip)
        yield from sorted(
            found, key=lambda flip: (-abs(flip.score - flip.base), flip.score > flip.base)
        )


def _texts(log: Log, task: str, metric: str) -> Mapping[str, LoggedAnswer]:
    """The first answer to each item."""
    return {answer.item: answer for answer in reversed(log.tasks[task].metrics[metric].answers)}


def _unaveraged(matched: Matched, weights: Mapping[str, float]) -> Iterator[str]:
    """Tasks that are not in the average, and the harness's own figures where there is nothing else."""
    for name, found in matched.metrics.items():
        if name not in weights and not found[0].is_mean:
            yield f"{name} is not averaged: {found[0].metric} is not a mean of scores from 0 to 1."
        for one in found:
            if not _is_scored(one):
                figures = {
                    model: [f"{v:.4g}" for v in own if v is not None]
                    for model, own in one.reported.items()
                }
                text = "; ".join(
                    f"{model} {', '.join(own) or 'none'}" for model, own in figures.items()
                )
                yield f"{name} {one.metric}, as reported and without an interval: {text}."


def _warnings(verdicts: Sequence[RowVerdict], pooled: PooledScores) -> Iterator[str]:
    """What limits the comparison, in plain words."""
    runs = {name: values.shape[1] for name, values in pooled.values.items()}
    if max(runs.values()) == 1:
        yield "One training run per model: these two checkpoints; another seed may differ by more."
    elif min(runs.values()) == 1:
        alone = ", ".join(name for name, number in runs.items() if number == 1)
        yield f"{alone}: one training run. Its variance between runs is taken from the other models."
    head = verdicts[0]
    if head.groups == head.items:
        yield "Every item counts as independent: name what belongs together with --group FIELD."
    if head.groups < FEW_GROUPS:
        yield f"{head.groups} independent items are few: intervals are wide, and below 6 nothing can be shown."
    for row in verdicts:
        if row.kind == "cut" and max(row.base, row.mean) >= WARN_CUT:
            shares = (
                f"{100 * row.mean:.1f} % of {row.model}, {100 * row.base:.1f} % of {row.baseline}"
            )
            yield f"Answers are cut off at the token limit: {shares}."
        if row.kind == "average" and row.missing:
            bounds = (
                "Intervals and p-values hold whether those of one model are right and those of the "
                "other wrong, or the reverse."
            )
            gone = f"Items of {row.model} and {row.baseline} with missing answers: {row.missing:,}."
            yield f"{gone} {bounds}"
