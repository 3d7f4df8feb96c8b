"""Consistency of categories before and after souping (`consistency`): do models that are good at one do well at all?

Figure 2 of arXiv 2511.13254 shows the correlation of every two categories over the candidates and over a population of
soups: it rises. But soups of few parents correlate by themselves: their scores move along the few directions in which
the parents differ. So the population is held against three nulls of linear
mixing, soups that know nothing of their own:

- `shared`: each group of items is answered by one parent, drawn by the soup's weights. One random number per group
  serves all soups, so soups of similar weights answer alike, as real ones do.
- `independent`: the same, but every soup draws for itself. The noise of its draws lowers the correlations.
- `exact`: every item scores the weighted mean of its parents' scores. No noise at all: the correlations are highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from souping.analysis import Analysis, Draws, NotEstimableError, RunScores, RunSoups
from souping.analysis.correlation import FEWEST_MODELS, few_models
from souping.analysis.parents import TIE, Z95, population, too_few
from souping.analysis.stability import GroupSums
from souping.core.fields import component
from souping.core.protocols import Correlation
from souping.core.types import FloatArray, ItemScores, Json, Recipe, ScoreMatrix, UserError

SALT = 0xC025


@component
class Consistency(Analysis):
    """Mean |rho| over pairs of categories: over the candidates, over the search's soups, and under linear mixing.

    Pairs of categories in which both populations vary count. Intervals are +- 1.96 standard errors by `draws` bootstrap
    draws of the search fold's groups, the models and soups as they are. The nulls that draw are drawn `mixtures` times.
    A search that left few soups with the whole fold answered is completed to `soups` of them.
    """

    draws: Draws = 1000
    mixtures: Draws = 500
    soups: Annotated[int, Interval(ge=0, le=1000)] = 0

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        return population(soups, self.soups) if self.soups else ()

    def analyse(self, run: RunScores) -> dict[str, Json]:
        soups = sorted(run.mixtures(self.asks(run.soups)), key=lambda soup: soup.id)  # the draws follow this order
        if len(soups) < FEWEST_MODELS:
            raise NotEstimableError(too_few(run, FEWEST_MODELS))
        singles = {name: run.search[r.id] for name, r in sorted(run.soups.candidates.items()) if r.id in run.search}
        before = ScoreMatrix.from_items(singles)
        after = ScoreMatrix.from_items({soup.id: run.search[soup.id] for soup in soups})
        kept = _varying(before.values) & _varying(after.values)
        if len(singles) < 3 or kept.sum() < 2:
            raise NotEstimableError(_too_flat(len(singles), before.categories, kept))
        parents = {name: scores for name, scores in singles.items() if any(name in soup.ingredients for soup in soups)}
        nulls = self._nulls(soups, parents, kept, run)
        told = [_told(scores, kept, run.correlation, self.draws) for scores in (before, after)]
        return {
            "fold": "search",
            "metric": run.metric,
            "categories": list(before.categories),
            "left_out": [name for name, use in zip(before.categories, kept, strict=True) if not use],
            "before": {"models": len(singles), "note": few_models(len(singles)), **told[0]},
            "after": {"models": len(soups), **told[1]},
            "nulls": {name: _spread(null) for name, null in nulls.items()},
        }

    def _nulls(
        self, soups: Sequence[Recipe], parents: Mapping[str, ItemScores], kept: NDArray[np.bool_], run: RunScores
    ) -> dict[str, FloatArray]:
        """{null: mean |rho| of each of its populations}; `exact` has one."""
        given = [dict(zip(soup.ingredients, soup.weights, strict=True)) for soup in soups]
        weights = np.array([[own.get(name, 0.0) / sum(own.values()) for name in parents] for own in given])
        sums = GroupSums.of(ScoreMatrix.from_items(parents))
        exact = np.einsum("sp,gpc->sc", weights, sums.sums) / sums.counts.sum(axis=0)
        sizes: dict[str, int | tuple[int, int]] = {
            "shared": len(sums.sums),
            "independent": (len(soups), len(sums.sums)),
        }
        drawn = {k: _mixed(sums, weights, kept, run.correlation, self.mixtures, size) for k, size in sizes.items()}
        return {**drawn, "exact": np.array([_strength(run.correlation, exact, kept)])}


def _spread(null: FloatArray) -> dict[str, Json]:
    """Mean and central 95 % of a null."""
    low, high = np.nanquantile(null, (0.025, 0.975)).tolist()
    return {"mean": float(np.nanmean(null)), "low": low, "high": high}


def _varying(values: FloatArray) -> NDArray[np.bool_]:
    """Columns of [M, C] in which not all are equal, [C]."""
    return np.asarray(np.ptp(values, axis=0) > TIE)


def _too_flat(models: int, categories: Sequence[str], kept: NDArray[np.bool_]) -> str:
    if models < 3:
        return f"{models} candidates have no correlation; it takes 3, and {FEWEST_MODELS} to say anything by it"
    varying = [name for name, use in zip(categories, kept, strict=True) if use]
    return (
        f"{len(varying)} of {len(categories)} categories tell the candidates and the soups apart; it takes 2: add "
        "categories, or items on which they differ"
    )


def _rho(correlation: Correlation, values: FloatArray, kept: NDArray[np.bool_]) -> FloatArray:
    """[M, C] -> [C, C], nan in the rows and columns that are not kept or do not vary here."""
    rho = np.full((len(kept),) * 2, np.nan)
    use = kept & np.isfinite(values).all(axis=0)
    use[use] = _varying(values[:, use])
    if use.sum() > 1:
        with suppress(UserError):
            rho[np.ix_(use, use)] = correlation(values[:, use]).rho
    return rho


def _strength(correlation: Correlation, values: FloatArray, kept: NDArray[np.bool_]) -> float:
    """Mean |rho| over the pairs that have one; nan where none has."""
    rho = np.abs(_rho(correlation, values, kept)[np.triu_indices(len(kept), 1)])
    known = rho[np.isfinite(rho)]
    return float(known.mean()) if known.size else float("nan")


def _told(scores: ScoreMatrix, kept: NDArray[np.bool_], correlation: Correlation, draws: int) -> dict[str, Json]:
    """The correlations of one population, and their mean size with its interval."""
    drawn = GroupSums.of(scores).draws(draws, np.random.default_rng(SALT))
    mean = _strength(correlation, scores.values, kept)
    error = float(np.nanstd([_strength(correlation, values, kept) for values in drawn], ddof=1))
    rho = _rho(correlation, scores.values, kept)
    return {
        "mean": mean,
        "low": max(0.0, mean - Z95 * error),
        "high": min(1.0, mean + Z95 * error),
        "matrix": [[float(v) if np.isfinite(v) else None for v in row] for row in rho],
    }


def _mixed(
    sums: GroupSums,
    weights: FloatArray,
    kept: NDArray[np.bool_],
    correlation: Correlation,
    draws: int,
    size: int | tuple[int, int],
) -> FloatArray:
    """Mean |rho| over populations of soups that answer, group by group, as a parent drawn by weights [S, P], [D].

    `size` is how many random numbers are drawn: one per group, or one per soup and group. The order of the parents is
    drawn anew each time, so that none is always the neighbour of another.
    """
    rng, totals, out = np.random.default_rng([SALT, 1]), sums.counts.sum(axis=0), np.empty(draws)
    for number in range(draws):
        order = rng.permutation(weights.shape[1])
        edges, place = weights[:, order].cumsum(axis=1), rng.random(size)
        means = np.zeros((len(weights), len(totals)))
        for rank, parent in enumerate(order):
            below = edges[:, [rank - 1]] if rank else 0.0
            chosen = (place >= below) & ((place < edges[:, [rank]]) | (rank == len(order) - 1))
            means += chosen.astype(float) @ sums.sums[:, parent]
        out[number] = _strength(correlation, means / totals, kept)
    return out
