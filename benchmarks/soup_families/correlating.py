"""Correlations of categories: how many count as weakly correlated by chance, and what souping does to them."""

from __future__ import annotations

import numpy as np

from benchmarks.soup_families.choices import means
from benchmarks.soup_families.view import View
from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import BoolArray, FloatArray
from souping.selection import SoCE

# The product's rule.
RULE = SoCE(correlation=pearson, objective=Mean())
PERMUTATIONS = 20
POPULATIONS = 20


def low_share(scores: FloatArray) -> float:
    """Percent of the categories of scores [M, C] that SoCE calls weakly correlated; constant ones do not count."""
    varying = scores[:, np.ptp(scores, axis=0) > 0]
    if varying.shape[1] < 2:
        return 0.0
    low = RULE.low_categories(pearson(varying).rho)
    return float(100 * len(low) / varying.shape[1])


def permuted_share(scores: FloatArray, seed: int, permutations: int = PERMUTATIONS) -> float:
    """The same after each category's scores were dealt to the models at random, on average."""
    random = np.random.default_rng(seed)
    shares = [low_share(random.permuted(scores, axis=0)) for _ in range(permutations)]
    return float(np.mean(shares))


def low_correlation(view: View) -> dict[str, float]:
    """Shares over redrawn selections."""
    shares = []
    permuted = []
    for number, known in enumerate(view.selections()):
        scores = means(view.tunes[:, known], view.category[known])
        shares.append(low_share(scores))
        permuted.append(permuted_share(scores, number))
    return {"low": float(np.mean(shares)), "low permuted": float(np.mean(permuted))}


def strength(scores: FloatArray) -> float:
    """Mean |rho| of two categories over models, for scores [M, C]."""
    varying = scores[:, np.ptp(scores, axis=0) > 0]
    if varying.shape[1] < 2:
        return 0.0
    rho = pearson(varying).rho
    return float(np.abs(rho[np.triu_indices(len(rho), 1)]).mean())


def consistency(view: View) -> dict[str, float]:
    """Mean |rho| of two categories before and after souping, and after mixing answers, on the items to choose with.

    As in `analysis=consistency`, an item is answered by one ingredient that is drawn by the soup's weights, with one
    random number per item for all soups.
    """
    matrix = view.matrix
    subset = matrix.facts.experts
    weights = matrix.points[subset]
    mixtures = weights.max(axis=1) < 1
    known = view.choosing
    category = view.category[known]
    before = strength(means(view.tunes[:, known], category))
    # Without a soup of several tunes there is nothing that mixing could change.
    if not mixtures.any():
        return {"|rho| of tunes": before, "|rho| of soups": before, "|rho| of mixtures": before}
    after = strength(means(matrix.searched(subset)[mixtures][:, known], category))
    ingredients = view.tunes[list(subset)][:, known]
    random = np.random.default_rng(matrix.facts.seed)
    mixed = []
    for _ in range(POPULATIONS):
        mixed.append(strength(means(_mixed(ingredients, weights[mixtures], random), category)))
    return {
        "|rho| of tunes": before,
        "|rho| of soups": after,
        "|rho| of mixtures": float(np.mean(mixed)),
    }


def _mixed(ingredients: BoolArray, weights: FloatArray, random: np.random.Generator) -> BoolArray:
    """Answers [S, I] of mixtures with weights [S, K] of ingredients' answers [K, I]."""
    order = random.permutation(len(ingredients))
    ends = weights[:, order].cumsum(axis=1)
    ends[:, -1] = 1.0
    place = random.random(ingredients.shape[1])
    picked = (place >= ends[..., None]).sum(axis=1)  # [S, I]
    return np.take_along_axis(ingredients[order], picked, axis=0)
