"""Metrics of the harness's tasks, and corpus metrics as means over items.

A metric is a mean over items, or one of a corpus, which is kept as sufficient statistics of its items. A corpus metric
is f(S) with S the sum of the items' statistics s_i, and f does not depend on the scale of S. Item i's value is its
influence pseudo-value f(S) + n grad f(S) . (s_i - S/n), the infinitesimal jackknife's (Efron 1982, The Jackknife, the
Bootstrap and Other Resampling Plans, chapter 6): their mean is f(S), and their variance over n is the delta method's
variance of f(S), so that paired tests and bootstraps over items apply to BLEU as they do to accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.core.fields import pick
from souping.core.types import FloatArray, JsonObject, UserError, frozen

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from sacrebleu.metrics.base import Metric as CorpusMetric

Aggregation = Callable[[list[float]], float]
"""aggregation(values of a metric) -> score"""
MEANS = ("mean", "nanmean")
SENTENCE_METRICS = ("bleu", "chrf", "chrf++", "ter")
TABLE_METRICS = ("f1", "matthews_corrcoef")
CORPUS_METRICS = (
    *SENTENCE_METRICS,
    *TABLE_METRICS,
    "perplexity",
    "weighted_perplexity",
    "bits_per_byte",
)
LOWER_IS_BETTER = ("ter", "perplexity", "weighted_perplexity", "bits_per_byte")
"""Lower is better in the harness. TER is reported as 1 - TER, a perplexity P as 1 / P: the geometric mean of the
probability of a token, word or byte. Bits per byte b are 1 / 2^b, which is the same per byte."""
DERIVATIVE_STEP = 1e-4
"""Step of a central difference, relative to the sum that is moved."""


@frozen
class Metric:
    """Metric `name` of a task, computed on answers after the `filter` of this name.

    `kind` is `mean`, or the corpus metric's name in `CORPUS_METRICS`; `settings` is the task's own entry for it.
    """

    name: str
    filter: str
    kind: str
    settings: JsonObject

    @property
    def scorer(self) -> str:
        """The harness's own name of a metric after a filter."""
        return f"{self.name},{self.filter}"

    def take(self, sample: Mapping[str, Any], where: str) -> tuple[float, tuple[float, ...]]:
        """(score, sufficient statistics) of one logged sample; a mean has no statistics. `where` names the sample.

        Raises:
            UserError: the sample has no value for this metric, or one that is not a number.
        """
        if self.name not in sample:
            names = ", ".join(sample["metrics"]) or "nothing"
            raise UserError(
                f"{where} has no value for metric {self.name} (it has {names}): choose evaluator.metric"
            )
        value = sample[self.name]
        if self.kind != "mean":
            return measure(self.kind, value, where)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UserError(
                f"{where}: metric {self.name} is {value!r:.60}, not a number: choose evaluator.metric"
            )
        return score, ()


def choose_metric(name: str, task: Task, metric: str | None, filter_: str | None) -> Metric:
    """The given metric and filter of the task `name`, or its first metric that can be maximised and its first filter.

    A metric can be maximised if it is a mean over items and higher is better, or one of `CORPUS_METRICS`.

    Raises:
        UserError: the task has no such metric, or the given one is unknown or cannot be used.
    """
    obstacles = {declared: _obstacle(task, declared) for declared in task.aggregation()}
    usable = [declared for declared, obstacle in obstacles.items() if not obstacle]
    if metric is None:
        if not usable:
            reasons = [f"{declared} {obstacle}" for declared, obstacle in obstacles.items()]
            why = "; ".join(reasons) or "it declares none"
            raise UserError(f"evaluator.tasks: {name} has no metric to maximise: {why}")
        metric = usable[0]
    elif metric not in obstacles and not _has_undeclared(task):
        # Raises an error that names the metrics there are.
        pick(metric, obstacles, f"task {name}: evaluator.metric")
    obstacle = obstacles.get(metric)
    if obstacle:
        hint = f"; it also has {', '.join(usable)}" if usable else ""
        raise UserError(f"evaluator.metric={metric} of task {name} {obstacle}{hint}")
    # An undeclared metric is averaged over the items.
    aggregation = _aggregation_name(task, metric) if metric in obstacles else "mean"
    return Metric(
        name=metric,
        filter=_filter(name, task, filter_),
        kind=aggregation if aggregation in CORPUS_METRICS else "mean",
        settings=_settings(task, metric),
    )


def _obstacle(task: Task, metric: str) -> str:
    """Why a task's metric cannot be maximised; empty if it can."""
    name = _aggregation_name(task, metric)
    if name == "bypass":
        return "gives no score"
    # Of these, `metric_score` turns round those that are better when lower.
    if name in CORPUS_METRICS:
        return ""
    if name not in MEANS:
        return f"is aggregated by {name}, which is not a mean of items and not one of {', '.join(CORPUS_METRICS)}"
    if task.higher_is_better().get(metric) is False:
        return "is better when lower, and souping maximises"
    return ""


def _aggregation_name(task: Task, metric: str) -> str:
    """The harness's name for the aggregation of a task's metric, else the name of the task's own function."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    function: Aggregation = task.aggregation()[metric]
    for name, registered in AGGREGATION_REGISTRY.items():
        if registered is function:
            return str(name)
    return str(getattr(function, "__name__", type(function).__name__))


def _has_undeclared(task: Task) -> bool:
    """Whether a task may return metrics that it does not declare: its own code decides, or a function such as pass@k
    of another package returns several.
    """
    if callable(task.get_config("process_results")):
        return True
    # A task that is written in Python has no such list.
    functions = getattr(task, "_metric_fn_list", {}).values()
    packages = [(function.__module__ or "").split(".")[0] for function in functions]
    return any(package != "lm_eval" for package in packages)


def _filter(name: str, task: Task, filter_: str | None) -> str:
    """The filter that the user named, else the first one of the task `name`; `none` if the task has no filters."""
    names = [str(declared.name) for declared in getattr(task, "_filters", [])] or ["none"]
    if filter_ is None:
        return names[0]
    return pick(filter_, names, f"task {name}: evaluator.filter")


def _settings(task: Task, metric: str) -> JsonObject:
    """The task's own entry for a metric, which names the metric or has its function; empty without an entry."""
    for entry in task.get_config("metric_list") or []:
        declared = entry.get("metric")
        if declared == metric or getattr(declared, "__name__", None) == metric:
            return dict(entry)
    return {}


def measure(kind: str, value: Any, where: str) -> tuple[float, tuple[float, ...]]:
    """(score, sufficient statistics) of one item by a corpus metric, computed as if the corpus were this item alone.

    `value` is the task's own value for this metric, and `where` names the item in errors.

    Raises:
        UserError: the task's value for this metric is not what the harness's own aggregation takes.
    """
    try:
        statistics = _statistics(kind, value)
    except (TypeError, ValueError, IndexError) as error:
        form = "two labels, 0 or 1" if kind in TABLE_METRICS else "a reference and a text"
        raise UserError(f"{where}: {kind} needs {form}, not {value!r:.60}") from error
    return metric_score(kind, np.array(statistics)), statistics


def metric_score(kind: str, total: FloatArray) -> float:
    """The metric of summed statistics [S], a fraction of 1, higher is better."""
    if kind in SENTENCE_METRICS:
        value = float(_sacrebleu(kind)._compute_score_from_stats(total.tolist()).score) / 100
        return 1 - value if kind in LOWER_IS_BETTER else value
    if kind in TABLE_METRICS:
        return _table_score(kind, *total.tolist())
    # A perplexity or bits per byte: the geometric mean of the probability of a token, word or byte.
    return math.exp(total[0] / total[1]) if total[1] > 0 else 0.0


def _table_score(kind: str, tp: float, fp: float, fn: float, tn: float) -> float:
    """F1 of label 1, or Matthews' correlation, from the confusion matrix of two labels; 0 instead of 0 / 0."""
    if kind == "f1":
        denominator = 2 * tp + fp + fn
        return 2 * tp / denominator if denominator else 0.0
    denominator = math.sqrt(math.prod((tp + fp, tp + fn, tn + fp, tn + fn)))
    return (tp * tn - fp * fn) / denominator if denominator else 0.0


def pseudo_values(kind: str, statistics: Sequence[Sequence[float]]) -> FloatArray:
    """Influence pseudo-values f(S) + n grad f(S) . (s_i - S/n), [n], of items' statistics s, [n, S].

    Their mean is the corpus score f(S).
    """
    s = np.array(statistics, dtype=float)
    total = s.sum(axis=0)
    return np.asarray(metric_score(kind, total) + (len(s) * s - total) @ _gradient(kind, total))


def _gradient(kind: str, total: FloatArray) -> FloatArray:
    """Gradient [S] of the metric at summed statistics [S], by central differences with steps relative to each sum.

    A sum of zero (no 4-gram matched yet) gets the slope 0.

    sacrebleu cuts BLEU's two lengths to whole numbers, so the slope of its brevity penalty exp(1 - r / c), which is 1
    if the text is no shorter than the reference, is written out.
    """
    slopes = np.zeros(len(total))
    moving = np.flatnonzero(total)
    if kind == "bleu":
        # sacrebleu's first two statistics are these lengths.
        text, reference = total[:2]
        if 0 < text < reference:
            slopes[:2] = metric_score(kind, total) * np.array([reference / text**2, -1 / text])
        moving = moving[moving > 1]
    for k in moving:
        step = np.zeros(len(total))
        step[k] = DERIVATIVE_STEP * abs(total[k])
        slopes[k] = (metric_score(kind, total + step) - metric_score(kind, total - step)) / (
            2 * step[k]
        )
    return slopes


def _statistics(kind: str, value: Any) -> tuple[float, ...]:
    """Sufficient statistics of an item's value, which has the form that the harness's aggregation takes.

    They are log-likelihood and weight (of a perplexity or bits per byte), the cells of the confusion matrix (TP, FP,
    FN, TN), or what sacrebleu sums of a text.
    """
    if kind == "perplexity":
        return float(value), 1.0
    if kind in ("weighted_perplexity", "bits_per_byte"):
        likelihood, weight = value
        return float(likelihood), float(weight)
    if kind in TABLE_METRICS:
        label, predicted = (int(number) for number in value)
        if {label, predicted} - {0, 1}:
            raise ValueError("labels 0 and 1 are needed")
        cells = ((1, 1), (0, 1), (1, 0), (0, 0))
        return tuple(float(cell == (label, predicted)) for cell in cells)
    reference, text = value
    references = [reference] if isinstance(reference, str) else list(reference)
    # A task may give a list of one text.
    if isinstance(text, list | tuple):
        (text,) = text
    if not isinstance(text, str) or not all(isinstance(entry, str) for entry in references):
        raise TypeError("texts are needed")
    # A corpus of this text alone, which has one line in each of the references.
    streams = [[entry] for entry in references]
    statistics = _sacrebleu(kind)._extract_corpus_statistics([text], streams)
    return tuple(float(number) for number in statistics[0])


@cache
def _sacrebleu(kind: str) -> CorpusMetric:
    """sacrebleu's metric with its defaults, as the harness aggregates by it; chrF++ also counts word bigrams."""
    from sacrebleu.metrics import bleu, chrf, ter

    if kind == "chrf++":
        return chrf.CHRF(word_order=2)
    kinds: dict[str, type[CorpusMetric]] = {"bleu": bleu.BLEU, "chrf": chrf.CHRF, "ter": ter.TER}
    return kinds[kind]()
