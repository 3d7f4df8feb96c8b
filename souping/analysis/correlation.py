"""Correlation of categories over models, and how much luck a selection by it holds.

Scores [M, C] -> rho, low, high [C, C], with 95 % intervals. All three coefficients are cosines of columns: of centred
scores (Pearson), of centred ranks (Spearman), of the signs of all pairwise differences (Kendall's tau-b). Written so, a
coefficient for every pair of categories is one product of small matrices, quick enough to be repeated on hundreds of
bootstrap draws, and scipy need not be imported.

Stability: bootstrap of items, sweep of the threshold, jackknife over models, reliability of categories. Reliability is
the share of a category's spread between models that is real; correlations can be freed from item noise.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from souping.analysis.grouped import design, distinct, resample
from souping.analysis.intervals import Z95
from souping.core.protocols import Correlation, Selector
from souping.core.text import first_line
from souping.core.types import (
    CONSTANT,
    Correlations,
    FloatArray,
    IntArray,
    Json,
    ScoreMatrix,
    Selection,
    UserError,
)

FLAT_RANGE = 1e-9
"""A column whose range is below this share of its largest value is constant: only rounding tells its scores apart."""
FEWEST_MODELS = 6
"""Fewer models (or base families) say next to nothing about a correlation: with six, r = 0.07 spans -0.79 to 0.83."""


def few_models(models: int) -> str:
    """What a reader of a choice by correlations must know where the models are few; else empty."""
    if models >= FEWEST_MODELS:
        return ""
    head = f"correlations over {models} models are largely chance (at least {FEWEST_MODELS} needed)"
    return f"{head}; selectors without correlations: selector=greedy, selector=all"


def check_columns(scores: FloatArray, names: Sequence[str] = ()) -> None:
    """Refuse scores [M, C] of which no correlation exists; columns are named by `names`, else by number from 1.

    Raises:
        UserError: fewer than 3 models or 2 categories, a column that holds NaN or infinity, or a constant column.
    """
    if len(scores) < 3:
        raise UserError(
            f"correlation needs the scores of 3 models or more, not {len(scores)}: add models or a table"
        )
    if scores.shape[1] < 2:
        raise UserError(
            f"correlation needs at least 2 categories, not {scores.shape[1]}: use selector=topk or all"
        )
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=0))
    if broken.size:
        raise UserError(
            f"a score that is not a finite number in {_columns(broken, names)}: fix it or leave that out"
        )
    flat = np.flatnonzero(np.ptp(scores, axis=0) <= FLAT_RANGE * np.abs(scores).max(axis=0))
    if flat.size:
        same = f"the same score for all {len(scores)} models in {_columns(flat, names)}"
        raise UserError(f"{same}, so no correlation exists: leave it out or add models")


def pearson(scores: FloatArray) -> Correlations:
    """Pearson's r with Fisher's z interval: se(z) = 1 / sqrt(M - 3), so nan limits below 4 models (Fisher 1921)."""
    check_columns(scores)
    rho = _cosines(_scaled(scores))
    return _with_interval(rho, np.ones_like(rho), len(scores) - 3)


def spearman(scores: FloatArray) -> Correlations:
    """Spearman's rank correlation, equal scores sharing their mean rank.

    Interval: se(z) = sqrt((1 + r^2 / 2) / (M - 3)) (Bonett and Wright 2000), nan limits below 4 models.
    """
    check_columns(scores)
    ranks = _signs(scores).sum(axis=1) / 2
    rho = _cosines(ranks)
    return _with_interval(rho, 1 + rho**2 / 2, len(scores) - 3)


def kendall(scores: FloatArray) -> Correlations:
    """Kendall's tau-b.

    Interval: se(z) = sqrt(0.437 / (M - 4)) (Fieller, Hartley and Pearson 1957), nan limits below 5 models.
    """
    check_columns(scores)
    above, below = np.triu_indices(len(scores), 1)
    rho = _cosines(_signs(scores)[above, below], centre=False)
    return _with_interval(rho, np.full_like(rho, 0.437), len(scores) - 4)


def _columns(which: NDArray[np.int64], names: Sequence[str]) -> str:
    labels = [repr(names[i]) if names else str(i + 1) for i in which]
    return f"{'category' if names else 'column'} {', '.join(labels)}"


def _scaled(scores: FloatArray) -> FloatArray:
    """Columns divided by their largest value, so that squares neither overflow nor vanish."""
    return np.asarray(scores / np.abs(scores).max(axis=0), dtype=float)


def _signs(scores: FloatArray) -> FloatArray:
    """Sign of every pairwise difference, [M, M, C]; differences at the level of rounding count as ties."""
    scaled = _scaled(scores)
    gaps = scaled[:, None] - scaled[None, :]
    return np.where(np.abs(gaps) <= FLAT_RANGE, 0.0, np.sign(gaps))


def _cosines(columns: FloatArray, *, centre: bool = True) -> FloatArray:
    """[N, C] -> cosines of every two columns, [C, C], with a diagonal of exactly 1."""
    vectors = columns - columns.mean(axis=0) if centre else columns
    vectors = vectors / np.sqrt((vectors**2).sum(axis=0))
    rho: FloatArray = np.clip(np.einsum("na,nb->ab", vectors, vectors), -1.0, 1.0)
    np.fill_diagonal(rho, 1.0)
    return rho


def _with_interval(rho: FloatArray, variance: FloatArray, degrees: int) -> Correlations:
    """Limits tanh(atanh(rho) -+ 1.96 sqrt(variance / degrees)); nan without degrees of freedom, 1 on the diagonal."""
    if degrees < 1:
        low, high = np.full_like(rho, np.nan), np.full_like(rho, np.nan)
    else:
        z = np.arctanh(np.clip(rho, -1 + 1e-15, 1 - 1e-15))
        margin = Z95 * np.sqrt(variance / degrees)
        low, high = np.minimum(rho, np.tanh(z - margin)), np.maximum(rho, np.tanh(z + margin))
    np.fill_diagonal(low, 1.0)
    np.fill_diagonal(high, 1.0)
    return Correlations(rho=rho, low=low, high=high)


# ------------------------------------------------------------ stability of a selection

STABILITY_SALT = 0x57AB
THRESHOLDS = tuple(round(0.05 + 0.01 * i, 2) for i in range(46))
COUNTED_KEYS = ("experts", "ingredients", "low_correlation", "sizes")
"""Keys of what is counted over bootstrap draws."""


def stability(
    scores: ScoreMatrix, selector: Selector, draws: int = 500, seed: int = 0
) -> dict[str, Json]:
    """Run the selection again on scores that might as well have come out.

    With per-item scores: bootstrap of groups within category strata, the selector run on every draw. Published scores
    have no items, so that part is None. Both get a sweep of the threshold over 0.05..0.50 and a jackknife over models.

    Returns a JSON-ready dict; None stands for "not estimable", shares are of the draws that gave a selection:
    `method`, `draws`, `not_estimable` (draws that gave none), `reasons` {message: draws},
    `experts` {category: {candidate: share}}, `ingredients` {candidate: share}, `low_correlation` {category: share},
    `sizes` {K: share}, `correlations` [{a, b, rho, low, high, bootstrap_low, bootstrap_high, disattenuated}] (low and
    high: the coefficient's own interval over models; bootstrap_*: over items), `reliability` {category: value},
    `threshold`, `thresholds` [{threshold, ingredients, low_correlation, error}],
    `jackknife` [{left_out, ingredients, low_correlation, error}], `notes` [text].
    """
    correlation = selector.measure or pearson
    items = GroupSums.of(scores) if scores.items else None
    tables = items.draws(draws, np.random.default_rng([STABILITY_SALT, seed])) if items else None
    return {
        **(_published() if tables is None else _over_items(tables, scores, selector)),
        "correlations": _pairs(scores, correlation, tables, items),
        "reliability": None
        if items is None
        else dict(zip(scores.categories, _plain(reliability(items)), strict=True)),
        "threshold": selector.cut,
        "thresholds": sweep(scores, selector),
        "jackknife": jackknife(scores, selector),
    }


def sweep(scores: ScoreMatrix, selector: Selector) -> list[dict[str, Json]]:
    """The selection at each threshold of 0.05, 0.06 .. 0.50; empty for a selector that has no threshold."""
    if selector.cut is None:
        return []
    return [{"threshold": cut, **_outcome(selector.with_cut(cut), scores)} for cut in THRESHOLDS]


def jackknife(scores: ScoreMatrix, selector: Selector) -> list[dict[str, Json]]:
    """The selection without each model in turn."""
    rows = []
    for left_out in scores.models:
        kept = tuple(m for m in scores.models if m != left_out)
        candidates = tuple(m for m in scores.candidates if m != left_out)
        if not candidates:
            continue
        less = dataclasses.replace(
            scores, models=kept, candidates=candidates, values=scores.rows(kept), items=None
        )
        rows.append({"left_out": left_out, **_outcome(selector, less)})
    return rows


def _outcome(selector: Selector, scores: ScoreMatrix) -> dict[str, Json]:
    try:
        selection = _chosen(selector, scores)
    except UserError as error:
        return {"ingredients": None, "low_correlation": None, "error": str(error)}
    low = list(selection.low_correlation)
    return {"ingredients": list(selection.ingredients), "low_correlation": low, "error": None}


def _chosen(selector: Selector, scores: ScoreMatrix) -> Selection:
    """The selection of scores that might have come out.

    Raises:
        UserError: there is none; also where a selector of the user's fails on scores that it never met in the run.
    """
    try:
        return selector.select_checked(scores)
    except UserError:
        raise
    except Exception as error:  # what is counted here ends no run
        raise UserError(f"{type(error).__name__}: {first_line(error)}") from error


def _published() -> dict[str, Json]:
    """Without items there is no bootstrap."""
    note = (
        "published scores hold no items: how often an expert would be picked again is not estimable"
    )
    head: dict[str, Json] = {
        "method": "threshold sweep and jackknife over models",
        "draws": 0,
        "not_estimable": 0,
    }
    return {**head, "reasons": {}, **dict.fromkeys(COUNTED_KEYS), "notes": [note]}


def _over_items(tables: FloatArray, scores: ScoreMatrix, selector: Selector) -> dict[str, Json]:
    """Shares over the bootstrap draws [D, M, C] in which the selector gave a selection."""
    picked, reasons = list[Selection](), Counter[str]()
    for values in tables:
        try:
            if not np.isfinite(values).all():
                raise UserError("a category lost all its items")
            picked.append(_chosen(selector, dataclasses.replace(scores, values=values, items=None)))
        except UserError as error:
            reasons[_reason(error)] += 1
    head: dict[str, Json] = {
        "method": "bootstrap over items",
        "draws": len(tables),
        "not_estimable": reasons.total(),
    }
    head["reasons"] = dict(reasons)
    if not picked:
        note = "no bootstrap draw gave a selection: its stability is not estimable"
        return {**head, **dict.fromkeys(COUNTED_KEYS), "notes": [note]}
    return {**head, **_shares(picked, scores), "notes": []}


def _shares(picked: Sequence[Selection], scores: ScoreMatrix) -> dict[str, Json]:
    total = len(picked)
    experts: dict[str, Counter[str]] = {category: Counter() for category in scores.categories}
    for selection in picked:
        for category, model in selection.experts.items():
            experts[category][model] += 1
    chosen = Counter(name for selection in picked for name in selection.ingredients)
    low = Counter(category for selection in picked for category in selection.low_correlation)
    sizes = Counter(len(selection.ingredients) for selection in picked)
    return {
        "experts": {
            c: {m: n[m] / total for m in scores.candidates if n[m]} for c, n in experts.items() if n
        },
        "ingredients": {name: chosen[name] / total for name in scores.candidates},
        "low_correlation": {name: low[name] / total for name in scores.categories},
        "sizes": {str(k): sizes[k] / total for k in sorted(sizes)},
    }


def _reason(error: UserError) -> str:
    """A message without its numbers and names, so that equal reasons are counted together."""
    text = str(error)
    known = {
        "the models differ": "a category is constant",
        "low-correlation": "no low-correlation category",
    }
    return next((reason for words, reason in known.items() if words in text), text.split(": ")[0])


def correlated(correlation: Correlation, table: FloatArray) -> Correlations:
    """Correlations [C, C] of the categories that differ between models; nan where none is defined."""
    nothing = np.full((table.shape[1],) * 2, np.nan)
    made = Correlations(rho=nothing, low=nothing.copy(), high=nothing.copy())
    varied = np.flatnonzero(np.ptp(table, axis=0) > CONSTANT)
    with suppress(UserError):
        part = correlation(table[:, varied])
        for whole, some in ((made.rho, part.rho), (made.low, part.low), (made.high, part.high)):
            whole[np.ix_(varied, varied)] = some
    return made


def _percentiles(rhos: Sequence[FloatArray]) -> FloatArray:
    """2.5 and 97.5 percent points [2, C, C] over the draws that have a correlation; nan if fewer than half do."""
    stack = np.stack(rhos)
    known = 2 * np.isfinite(stack).sum(axis=0) >= len(stack)
    limits = np.full((2, *known.shape), np.nan)
    limits[:, known] = np.nanquantile(stack[:, known], (0.025, 0.975), axis=0)
    return limits


def _pairs(
    scores: ScoreMatrix,
    correlation: Correlation,
    tables: FloatArray | None,
    items: GroupSums | None,
) -> list[dict[str, Json]]:
    """One row for every two categories."""
    names, whole = scores.categories, correlated(correlation, scores.values)
    columns = {"rho": whole.rho, "low": whole.low, "high": whole.high}
    columns |= dict.fromkeys(
        ("bootstrap_low", "bootstrap_high", "disattenuated"), np.full_like(whole.rho, np.nan)
    )
    if tables is not None and items is not None:
        low, high = _percentiles([correlated(correlation, table).rho for table in tables])
        columns |= {
            "bootstrap_low": low,
            "bootstrap_high": high,
            "disattenuated": disattenuated(items),
        }
    above = np.triu_indices(len(names), 1)
    rows = zip(*(_plain(table[above]) for table in columns.values()), strict=True)
    return [
        {"a": names[i], "b": names[j], **dict(zip(columns, row, strict=True))}
        for i, j, row in zip(*above, rows, strict=True)
    ]


def _plain(values: FloatArray) -> list[float | None]:
    """As JSON, which has no nan."""
    return [float(value) if np.isfinite(value) else None for value in values]


@dataclass(frozen=True, kw_only=True)
class GroupSums:
    """Item scores summed by group: `sums` [G, M, C], `counts` [G, C], `stratum` [G] (groups with like categories)."""

    sums: FloatArray
    counts: FloatArray
    stratum: IntArray

    @classmethod
    def of(cls, scores: ScoreMatrix) -> GroupSums:
        """Collect the per-item scores of a matrix.

        Raises:
            ValueError: the models were scored on different items.
        """
        assert scores.items, "published scores have no items"
        items = scores.items[scores.models[0]].items
        names = [item.id for item in items]
        if any([i.id for i in scores.items[m].items] != names for m in scores.models):
            raise ValueError("all models must be scored on the same items, in the same order")
        _, group = np.unique([item.group for item in items], return_inverse=True)
        column, equal = (
            np.array([scores.categories.index(i.category) for i in items]),
            np.ones(len(scores.categories)),
        )
        wholes = [
            design(scores.items[m].values, column, group.astype(np.int64), equal)
            for m in scores.models
        ]
        sums, counts = np.stack([whole.sums for whole in wholes], axis=1), wholes[0].counts
        # the order of a sum follows the layout
        return cls(
            sums=np.ascontiguousarray(sums),
            counts=np.ascontiguousarray(counts),
            stratum=wholes[0].stratum,
        )

    @property
    def means(self) -> FloatArray:
        """Category means of each model, [M, C]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    def draws(self, number: int, rng: np.random.Generator) -> FloatArray:
        """Category means on bootstrap draws of groups within strata, [D, M, C]; nan where a draw lost a category."""
        groups, models, width = self.sums.shape
        table = np.hstack([self.sums.reshape(groups, -1), self.counts])
        rows, stratum, copies = distinct(table, self.stratum)
        totals = np.einsum("dr,rf->df", resample(stratum, copies, number, rng), rows)
        sums, counts = (
            totals[:, : models * width].reshape(number, models, width),
            totals[:, None, models * width :],
        )
        return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))

    def noise(self) -> FloatArray:
        """Covariance of category means between models that item sampling alone explains, [C, C].

        From the model x group interaction: an item that is hard for all models moves all of them alike and is no
        noise here. Off the diagonal only groups that span categories count.
        """
        n = (self.counts > 0).sum(axis=0)  # groups of each category
        pull = (self.sums - self.counts[:, None] * self.means) / self.counts.sum(axis=0)
        pull = (pull - pull.mean(axis=1, keepdims=True)) * np.sqrt(n / np.maximum(n - 1, 1))
        return np.asarray(np.einsum("gma,gmb->ab", pull, pull) / (self.sums.shape[1] - 1))


def reliability(sums: GroupSums) -> FloatArray:
    """Share of each category's variance between models that is not item noise, [C] in 0..1; nan where none varies.

    1 - noise / observed variance: Hoyt's (1941) reliability, which for items of equal weight is Cronbach's alpha.
    """
    observed, noise = np.var(sums.means, axis=0, ddof=1), np.diag(sums.noise())
    ratio = np.divide(noise, observed, out=np.full_like(noise, np.nan), where=observed > 1e-18)
    return np.asarray(np.clip(1 - ratio, 0.0, 1.0))


def disattenuated(sums: GroupSums) -> FloatArray:
    """Pearson correlation of categories over models with item noise taken out, [C, C] in -1..1.

    Observed covariance less its noise, over the variances less theirs (Spearman 1904; with shared groups the covariance
    is corrected too). nan where a variance is all noise: nothing can be said.
    """
    true = np.cov(sums.means, rowvar=False) - sums.noise()
    spread = np.sqrt(np.where(reliability(sums) > 0.05, np.maximum(np.diag(true), 0.0), np.nan))
    rho: FloatArray = np.clip(true / np.outer(spread, spread), -1.0, 1.0)
    return rho
