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


@frozen
class Metric:
    """`kind` is `mean`, or the corpus metric's name in `CORPUS_METRICS`; `settings` is the task's own entry for it."""

    name: str
    filter: str
    kind: str
    settings: JsonObject

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
    """The given metric and filter, or the first metric that can be maximised and the first filter.

    A metric can be maximised if it is a mean over items and higher is better, or one of `CORPUS_METRICS`.

    Raises:
        UserError: there is none, or the given one is unknown or cannot be used.
    """
    kinds = {m: _kind(task, m) for m in task.aggregation()}
    usable = [m for m, kind in kinds.items() if not kind.startswith("!")]
    if metric is None:
        if not usable:
            why = "; ".join(f"{m} {kind[1:]}" for m, kind in kinds.items()) or "it declares none"
            raise UserError(f"evaluator.tasks: {name} has no metric to maximise: {why}")
        metric = usable[0]
    elif metric not in kinds and not _open(task):
        pick(metric, kinds, f"task {name}: evaluator.metric")
    kind = kinds.get(metric, "mean")
    if kind.startswith("!"):
        other = f"; it also has {', '.join(usable)}" if usable else ""
        raise UserError(f"evaluator.metric={metric} of task {name} {kind[1:]}{other}")
    return Metric(
        name=metric,
        filter=_filter(name, task, filter_),
        kind=kind,
        settings=_settings(task, metric),
    )


def _kind(task: Task, metric: str) -> str:
    """`mean`, a corpus metric's name, or `!` and why it cannot be used."""
    higher = task.higher_is_better().get(metric)
    name = _aggregation(task.aggregation()[metric])
    if name == "bypass":
        return "!gives no score"
    if name in CORPUS_METRICS:
        return name
    if name not in MEANS:
        return f"!is aggregated by {name}, which is not a mean of items and not one of {', '.join(CORPUS_METRICS)}"
    if higher is False:
        return "!is better when lower, and souping maximises"
    return "mean"


def _aggregation(function: Aggregation) -> str:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, registered in AGGREGATION_REGISTRY.items():
        if registered is function:
            return str(name)
    return str(getattr(function, "__name__", type(function).__name__))


def _open(task: Task) -> bool:
    """Whether the task may give values under names that it does not declare: by its own code, or pass@k."""
    if callable(task.get_config("process_results")):
        return True
    functions = getattr(task, "_metric_fn_list", {}).values()
    packages = [(function.__module__ or "").split(".")[0] for function in functions]
    return any(package != "lm_eval" for package in packages)


def _filter(name: str, task: Task, wanted: str | None) -> str:
    names = [str(f.name) for f in getattr(task, "_filters", [])] or ["none"]
    if wanted is None:
        return names[0]
    return pick(wanted, names, f"task {name}: evaluator.filter")


def _settings(task: Task, metric: str) -> JsonObject:
    for entry in task.get_config("metric_list") or []:
        declared = entry.get("metric")
        if declared == metric or getattr(declared, "__name__", None) == metric:
            return dict(entry)
    return {}


def measure(kind: str, value: Any, where: str) -> tuple[float, tuple[float, ...]]:
    """(score, statistics) of one item; the score is that of a corpus of this item alone.

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
        return _of_table(kind, *total.tolist())
    return math.exp(total[0] / total[1]) if total[1] > 0 else 0.0


def _of_table(
    kind: str, hits: float, false_alarms: float, misses: float, rejections: float
) -> float:
    """F1 of label 1, or Matthews' correlation, from the four counts of right and wrong yes and no."""
    if kind == "f1":
        labels = 2 * hits + false_alarms + misses
        return 2 * hits / labels if labels else 0.0
    sides = (hits + false_alarms, hits + misses, rejections + false_alarms, rejections + misses)
    scale = math.sqrt(math.prod(sides))
    return (hits * rejections - false_alarms * misses) / scale if scale else 0.0


def pseudo_values(kind: str, statistics: Sequence[Sequence[float]]) -> FloatArray:
    """Influence pseudo-values [I] of items' statistics [I, S]; their mean is the corpus score."""
    table = np.array(statistics, dtype=float)
    total = table.sum(axis=0)
    return np.asarray(
        metric_score(kind, total) + (len(table) * table - total) @ _gradient(kind, total)
    )


def _gradient(kind: str, total: FloatArray) -> FloatArray:
    """Central differences with steps relative to each sum; a sum of zero (no 4-gram matched yet) has no slope.

    sacrebleu cuts BLEU's two lengths to whole numbers, so the slope of its brevity penalty exp(1 - r / c), which is 1
    if the text is no shorter than the reference, is written out.
    """
    slopes = np.zeros(len(total))
    moving = np.flatnonzero(total)
    if kind == "bleu":
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
    if kind == "perplexity":
        return float(value), 1.0
    if kind in ("weighted_perplexity", "bits_per_byte"):
        likelihood, weight = value
        return float(likelihood), float(weight)
    if kind in TABLE_METRICS:
        gold, said = (int(label) for label in value)
        if {gold, said} - {0, 1}:
            raise ValueError("labels 0 and 1 are needed")
        return tuple(float(cell == (gold, said)) for cell in ((1, 1), (0, 1), (1, 0), (0, 0)))
    reference, text = value
    references = [reference] if isinstance(reference, str) else list(reference)
    if isinstance(text, list | tuple):
        (text,) = text
    if not isinstance(text, str) or not all(isinstance(r, str) for r in references):
        raise TypeError("texts are needed")
    rows = _sacrebleu(kind)._extract_corpus_statistics([text], [[r] for r in references])
    return tuple(float(x) for x in rows[0])


@cache
def _sacrebleu(kind: str) -> CorpusMetric:
    """sacrebleu's metric with the settings of the harness's aggregation: sacrebleu's defaults, words too for chrF++."""
    from sacrebleu.metrics import bleu, chrf, ter

    if kind == "chrf++":
        return chrf.CHRF(word_order=2)
    kinds: dict[str, type[CorpusMetric]] = {"bleu": bleu.BLEU, "chrf": chrf.CHRF, "ter": ter.TER}
    return kinds[kind]()
