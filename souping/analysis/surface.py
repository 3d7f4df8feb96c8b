"""Response surface: objective and categories over the weights of the ingredients, with 95 % bands (`surface`).

The bands are on the difference to the uniform soup and hold at all weights at once. They are fitted on the search fold
(all that the search asked, soups that were dropped early included) and checked on groups of it that were held out; the
report fold is not touched. `surface_fit.py` has the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from souping.analysis import ALONE, Analysis, NotEstimableError, RunScores
from souping.analysis.intervals import ItemTable
from souping.analysis.surface_fit import SurfaceFit, fit_surface
from souping.core import simplex
from souping.core.fields import component
from souping.core.types import FloatArray, Json, UserError

LEAST = 4
"""Soups beside the uniform one below which nothing is said of a surface."""
MOST = 150
"""Points shown, at most; a coarser step is taken above."""
SALT = 0x5EA


@dataclass(frozen=True, kw_only=True)
class AskedFold(ItemTable):
    """Search fold as arrays, with what was asked: weights [S, K], scores [S, I] (nan: not asked)."""

    weights: FloatArray
    scores: FloatArray

    def at(self, shown: FloatArray, items: NDArray[np.bool_]) -> SurfaceFit:
        """The surface at points [P, K], then at the soups asked, by some of the items."""
        blank = np.full((len(shown), int(items.sum())), np.nan)
        points, scores = np.vstack([shown, self.weights]), np.vstack([blank, self.scores[:, items]])
        points, scores = _merged(points, scores)
        return fit_surface(points, scores, self.categories[items], self.groups[items], self.coefficients)


def _merged(points: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each point once, in order of first appearance, with its scores where it was asked."""
    _, first, inverse = np.unique(np.round(points, 9), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    merged = np.full((len(first), scores.shape[1]), np.nan)
    for row, place in enumerate(inverse.ravel()):
        merged[place] = np.where(np.isfinite(scores[row]), scores[row], merged[place])
    return points[first[order]], merged[order]


@component
class ResponseSurface(Analysis):
    """Bands over a grid of weights of `step`, checked on `parts` parts of the search fold's groups."""

    step: float = 0.1
    parts: int = 5

    def __post_init__(self) -> None:
        simplex.check_step(self.step, "analysis.surface.step")
        if self.parts < 2:
            raise UserError(f"analysis.surface.parts={self.parts} must be at least 2")

    def analyse(self, run: RunScores) -> dict[str, Json]:
        asked = _asked(run)
        shown = self._points(asked.weights.shape[1])
        fit = asked.at(shown, np.ones(len(asked.groups), dtype=bool))
        known = np.isfinite(asked.scores).sum(axis=1)
        winner = dict(zip(run.soups.soup.ingredients, run.soups.soup.weights, strict=True))
        counts = {_key(weights): int(n) for weights, n in zip(asked.weights, known, strict=True)}
        return {
            "fold": "search",
            "ingredients": list(run.soups.ingredients),
            "chosen": [winner.get(name, 0.0) for name in run.soups.ingredients],
            "weights": np.round(shown, 9).tolist(),
            "items": [counts.get(_key(weights), 0) for weights in shown],
            "fold_items": len(asked.groups),
            "soups": len(asked.weights),
            "objective": fit.objective.at(len(shown)),
            "categories": {name: band.at(len(shown)) for name, band in zip(asked.names, fit.categories, strict=True)},
            "width": float((fit.objective.high - fit.objective.low)[: len(shown)].mean()),
            "held_out": self._checked(asked, shown),
        }

    def _points(self, size: int) -> FloatArray:
        """Uniform, the singles, and the grid: with a wider step where its points would be too many."""
        step = self.step
        while simplex.grid_size(size, step, step, 1 - step) > MOST and step < 0.5:
            step = {0.1: 0.2, 0.05: 0.1, 0.2: 0.25, 0.25: 0.5}.get(round(step, 3), 0.5)
        inner = simplex.grid(size, step, step, 1 - step) if simplex.grid_size(size, step, step, 1 - step) else []
        points = np.array([simplex.uniform(size), *simplex.vertices(size), *inner])
        return _merged(points, np.zeros((len(points), 0)))[0]

    def _checked(self, asked: AskedFold, shown: FloatArray) -> Mapping[str, Json]:
        """Soups' differences to the uniform one on held-out groups, against the bands of the others, or why not."""
        uniform = np.flatnonzero(np.abs(asked.weights - 1 / asked.weights.shape[1]).max(axis=1) < 1e-9)
        if not len(uniform):
            return {"not_estimable": "the search did not evaluate the uniform soup, from which differences are taken"}
        place = np.random.default_rng(SALT).permutation(int(asked.groups.max()) + 1) % self.parts
        points, _ = _merged(np.vstack([shown, asked.weights]), np.zeros((len(shown) + len(asked.weights), 0)))
        inside, outside = 0, list[float]()
        for number in range(self.parts):
            held = place[asked.groups] == number
            if len(np.unique(asked.categories[~held])) < len(asked.names):
                continue  # nothing is left to say of a category
            fit = asked.at(shown, ~held)
            seen = _seen(asked, held, int(uniform[0]))
            if not seen:
                continue
            rows = [int(np.abs(points - asked.weights[soup]).max(axis=1).argmin()) for soup in seen]
            told, seen_there = fit.objective, np.array(list(seen.values()))
            errors = np.abs(seen_there[:, 0] - told.difference[rows]) / np.hypot(told.error[rows], seen_there[:, 1])
            outside.append(float(errors.max()))
            inside += int(errors.max() <= told.quantile)
        if not outside:
            return {"not_estimable": "no soup answered items of every category both within and outside a held-out part"}
        return {"parts": len(outside), "inside": inside, "largest": max(outside)}


def _seen(asked: AskedFold, held: NDArray[np.bool_], uniform: int) -> dict[int, tuple[float, float]]:
    """{soup: (difference to the uniform soup, its standard error)} by the held-out items that both answered, where
    every category has some."""
    seen = {}
    paired = asked.scores - asked.scores[uniform]
    for soup in range(len(asked.weights)):
        both = held & np.isfinite(paired[soup])
        own = [paired[soup, both & (asked.categories == c)] for c in range(len(asked.names))]
        if soup != uniform and min(map(len, own)):
            means = np.array([part.mean() for part in own])
            noise = np.array([max(part.var(), 1 / len(part)) / len(part) for part in own])
            seen[soup] = (float(asked.coefficients @ means), float(np.sqrt(np.square(asked.coefficients) @ noise)))
    return seen


def _key(weights: FloatArray) -> tuple[float, ...]:
    return tuple(np.round(weights, 9).tolist())


def _asked(run: RunScores) -> AskedFold:
    """The ingredients and what the search asked, answers to a part of the fold included.

    Raises:
        NotEstimableError: too few soups were asked, or an ingredient was not asked alone.
    """
    items = next((scores.items for scores in run.search.values()), ())
    known = {**{key: scores.values for key, scores in run.search.items()}, **run.parts}
    names = run.soups.ingredients
    if len(names) < 2:
        raise NotEstimableError(ALONE)
    if lone := [name for name in names if run.single(name).id not in known]:
        raise NotEstimableError(f"{', '.join(lone)} alone did not answer the search fold, and soups do not tell")
    soups = {soup.id: soup for soup in (*map(run.single, names), *run.trials) if soup.id in known}
    given = [dict(zip(soup.ingredients, soup.weights, strict=True)) for soup in soups.values()]
    if len(soups) <= LEAST or not items:
        raise NotEstimableError(f"{len(soups)} soups were asked on the search fold; a surface takes {LEAST + 1}")
    points = np.array([[own.get(name, 0.0) for name in names] for own in given])
    scores = np.array([known[key] for key in soups])
    return AskedFold(weights=points, scores=scores, **vars(ItemTable.of(items, run.objective)))
