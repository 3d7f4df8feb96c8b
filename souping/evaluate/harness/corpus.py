"""Corpus metrics: sufficient statistics of an item, the score of their sum, and values whose mean is that score.

A corpus metric is f(S) with S the sum of the items' statistics s_i, and f does not depend on the scale of S. Item i's
value is its influence pseudo-value f(S) + n grad f(S) . (s_i - S/n), the infinitesimal jackknife's (Efron 1982, The
Jackknife, the Bootstrap and Other Resampling Plans, chapter 6): their mean is f(S), and their variance over n is the
delta method's variance of f(S), so that paired tests and bootstraps over items apply to BLEU as they do to accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from souping.core import FloatArray, UserError

SENTENCES = ("bleu", "chrf", "chrf++", "ter")
TABLES = ("f1", "matthews_corrcoef")
CORPUS = (*SENTENCES, *TABLES, "perplexity", "weighted_perplexity", "bits_per_byte")
TURNED = ("ter", "perplexity", "weighted_perplexity", "bits_per_byte")
"""Lower is better in the harness. TER is reported as 1 - TER, a perplexity P as 1 / P: the geometric mean of the
probability of a token, word or byte. Bits per byte b are 1 / 2^b, which is the same per byte."""
STEP = 1e-4


def measure(kind: str, value: Any, where: str) -> tuple[float, tuple[float, ...]]:
    """(score, statistics) of one item; the score is that of a corpus of this item alone.

    Raises:
        UserError: the task's value for this metric is not what the harness's own aggregation takes.
    """
    try:
        statistics = _statistics(kind, value)
    except (TypeError, ValueError, IndexError) as error:
        wanted = "two labels, 0 or 1" if kind in TABLES else "a reference and a text"
        raise UserError(f"{where}: {kind} needs {wanted}, not {value!r:.60}") from error
    return score(kind, np.array(statistics)), statistics


def score(kind: str, total: FloatArray) -> float:
    """The metric of summed statistics [S], a fraction of 1, higher is better."""
    if kind in SENTENCES:
        value = float(_sacrebleu(kind)._compute_score_from_stats(total.tolist()).score) / 100
        return 1 - value if kind in TURNED else value
    if kind in TABLES:
        return _of_table(kind, *total.tolist())
    return math.exp(total[0] / total[1]) if total[1] > 0 else 0.0


def _of_table(kind: str, hits: float, false_alarms: float, misses: float, rejections: float) -> float:
    """F1 of label 1, or Matthews' correlation, from the four counts of right and wrong yes and no."""
    if kind == "f1":
        whole = 2 * hits + false_alarms + misses
        return 2 * hits / whole if whole else 0.0
    sides = (hits + false_alarms, hits + misses, rejections + false_alarms, rejections + misses)
    scale = math.sqrt(math.prod(sides))
    return (hits * rejections - false_alarms * misses) / scale if scale else 0.0


def pseudo_values(kind: str, statistics: Sequence[Sequence[float]]) -> FloatArray:
    """Influence pseudo-values [I] of items' statistics [I, S]; their mean is the corpus score."""
    table = np.array(statistics, dtype=float)
    total = table.sum(axis=0)
    return np.asarray(score(kind, total) + (len(table) * table - total) @ _gradient(kind, total))


def _gradient(kind: str, total: FloatArray) -> FloatArray:
    """Central differences with steps relative to each sum; a sum of zero (no 4-gram matched yet) has no slope.

    sacrebleu cuts BLEU's two lengths to whole numbers, so the slope of its brevity penalty exp(1 - r / c), which is 1
    where the text is no shorter than the reference, is written out.
    """
    slopes = np.zeros(len(total))
    moving = np.flatnonzero(total)
    if kind == "bleu":
        text, reference = total[:2]
        if 0 < text < reference:
            slopes[:2] = score(kind, total) * np.array([reference / text**2, -1 / text])
        moving = moving[moving > 1]
    for k in moving:
        step = np.zeros(len(total))
        step[k] = STEP * abs(total[k])
        slopes[k] = (score(kind, total + step) - score(kind, total - step)) / (2 * step[k])
    return slopes


def _statistics(kind: str, value: Any) -> tuple[float, ...]:
    if kind == "perplexity":
        return float(value), 1.0
    if kind in ("weighted_perplexity", "bits_per_byte"):
        likelihood, weight = value
        return float(likelihood), float(weight)
    if kind in TABLES:
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
def _sacrebleu(kind: str) -> Any:
    """sacrebleu's metric with the settings of the harness's aggregation: sacrebleu's defaults, words too for chrF++."""
    from sacrebleu import metrics

    known: Any = metrics
    return known.CHRF(word_order=2) if kind == "chrf++" else getattr(known, {"chrf": "CHRF"}.get(kind, kind.upper()))()
