"""Which metric of a task scores its items, and what of it is a mean of items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from souping.core import UserError
from souping.evaluate.harness import corpus
from souping.names import nearest

MEANS = ("mean", "nanmean")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """`kind` is `mean`, or the corpus metric's name in `corpus.CORPUS`; `settings` is the task's own entry for it."""

    name: str
    filter: str
    kind: str
    settings: Mapping[str, Any]

    @property
    def scorer(self) -> str:
        """The harness's own name of a metric after a filter."""
        return f"{self.name},{self.filter}"

    def take(self, sample: Mapping[str, Any], where: str) -> tuple[float, tuple[float, ...]]:
        """(score, sufficient statistics) of one logged sample; a mean has no statistics.

        Raises:
            UserError: the sample has no value for this metric, or one that is not a number.
        """
        if self.name not in sample:
            given = ", ".join(sample["metrics"]) or "nothing"
            raise UserError(f"{where} has no value for metric {self.name} (it has {given}): choose evaluator.metric")
        value = sample[self.name]
        if self.kind != "mean":
            return corpus.measure(self.kind, value, where)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: metric {self.name} is {value!r:.60}, not a number: choose evaluator.metric")
        return score, ()


def choose(name: str, task: Any, metric: str | None, filter_: str | None) -> Metric:
    """The metric and filter that were asked for, or the first metric that can be maximised and the first filter.

    A metric can be maximised if it is a mean over items and higher is better, or one of `corpus.CORPUS`.

    Raises:
        UserError: there is none, or the one asked for is unknown or cannot be used.
    """
    kinds = {m: _kind(task, m) for m in task.aggregation()}
    usable = [m for m, kind in kinds.items() if not kind.startswith("!")]
    if metric is None:
        if not usable:
            raise UserError(f"evaluator.tasks: {name} has no metric to maximise: {_reasons(kinds)}")
        metric = usable[0]
    elif metric not in kinds and not _open(task):
        raise UserError(f"evaluator.metric={metric}: task {name} has {', '.join(kinds)}{nearest(metric, kinds)}")
    kind = kinds.get(metric, "mean")
    if kind.startswith("!"):
        other = f"; it also has {', '.join(usable)}" if usable else ""
        raise UserError(f"evaluator.metric={metric} of task {name} {kind[1:]}{other}")
    return Metric(name=metric, filter=_filter(name, task, filter_), kind=kind, settings=_settings(task, metric))


def _kind(task: Any, metric: str) -> str:
    """`mean`, a corpus metric's name, or `!` and why it cannot be used."""
    higher = task.higher_is_better().get(metric)
    aggregation = task.aggregation()[metric]
    name = _aggregation(aggregation)
    if name == "bypass":
        return "!gives no score"
    if name in corpus.CORPUS:
        return name
    if name not in MEANS and not _is_mean(aggregation):
        return f"!is aggregated by {name}, which is no mean of items and none of {', '.join(corpus.CORPUS)}"
    return "mean" if higher is not False else "!is better when lower, and souping maximises"


def _aggregation(function: Any) -> str:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, registered in AGGREGATION_REGISTRY.items():
        if registered is function:
            return str(name)
    return str(getattr(function, "__name__", type(function).__name__))


def _is_mean(function: Any) -> bool:
    """A task's own aggregation that gives the mean of whatever numbers it is given."""
    try:
        return all(
            abs(function(list(values)) - sum(values) / len(values)) < 1e-9
            for values in ((0.25, 1.0, 0.0, 0.5), (1.0, 0.0), (0.125, 0.75, 0.5))
        )
    except Exception:  # it is the task's own code, and not made for such values
        return False


def _open(task: Any) -> bool:
    """Whether the task may give values under names that it does not declare: by its own code, or pass@k."""
    functions = getattr(task, "_metric_fn_list", {}).values()
    return callable(task.get_config("process_results")) or any(
        getattr(f, "__module__", "").split(".")[0] != "lm_eval" for f in functions
    )


def _filter(name: str, task: Any, wanted: str | None) -> str:
    names = [str(f.name) for f in getattr(task, "_filters", [])] or ["none"]
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise UserError(f"evaluator.filter={wanted}: task {name} has {', '.join(names)}")
    return wanted


def _settings(task: Any, metric: str) -> Mapping[str, Any]:
    for entry in task.get_config("metric_list") or []:
        own = entry.get("metric")
        if own == metric or getattr(own, "__name__", None) == metric:
            return dict(entry)
    return {}


def _reasons(kinds: Mapping[str, str]) -> str:
    return "; ".join(_lines(kinds)) or "it declares none"


def _lines(kinds: Mapping[str, str]) -> Iterator[str]:
    for metric, kind in kinds.items():
        yield f"{metric} {kind[1:]}"
