"""What one family shows, in points on its items for the test.

The best candidate is the tune with the best mean on the items for selection and search.

Shape legend: I items, S soups, C categories, K ingredients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.soup_families.choices import best, experts, means, searched
from benchmarks.soup_families.design import TUNES
from benchmarks.soup_families.merging import ALL, LAYERED, SCALES, Subset
from benchmarks.soup_families.view import PLACES, View, points
from souping.core.types import BoolArray, FloatArray

DRAWS_OF_ALL = 2

# ------------------------------------------------------------ without a search


def selected(view: View) -> dict[str, float]:
    """Uniform soups of SoCE's ingredients, of as many of the best and of all subsets of that size, over selections."""
    rows = []
    for known in view.selections():
        scores = means(view.tunes[:, known], view.category[known])
        rows.append(_selected(view, experts(scores), scores))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _selected(view: View, subset: Subset, scores: FloatArray) -> dict[str, float]:
    size = len(subset)
    same_size = [view.uniform[place] for other, place in PLACES.items() if len(other) == size]
    random = float(np.mean(same_size))
    own = view.score(subset)
    top = view.score(best(scores, size))
    return {
        "number of experts": float(size),
        "experts - top": own - top,
        "experts - random": own - random,
        "top - random": top - random,
        "percentile of experts": percentile(own, same_size),
        "percentile of top": percentile(top, same_size),
    }


def percentile(value: float, values: Sequence[float]) -> float:
    """Percent of the values that are lower, and half of those that are equal."""
    known = np.array(values)
    return float(100 * ((known < value).mean() + (known == value).mean() / 2))


def kinds(view: View) -> dict[str, float]:
    """Soups of SoCE's ingredients of other kinds, minus the uniform one; layered ones chosen like as many points."""
    others = view.matrix.others
    scores = view.test(others)
    own = view.score(view.matrix.facts.experts)
    found = {}
    for number, scale in enumerate(SCALES):
        found[f"scale {scale:g}"] = float(scores[number]) - own
    known = points(others[:, view.choosing])
    found["ties"] = (
        float(scores[len(SCALES) : -LAYERED][known[len(SCALES) : -LAYERED].argmax()]) - own
    )
    chosen = known[-LAYERED:].argmax()
    grid = view.matrix.searched(view.matrix.facts.experts)[:LAYERED]
    like = points(grid[:, view.choosing]).argmax()
    found["layers"] = float(scores[-LAYERED:][chosen] - view.test(grid)[like])
    return found


# ------------------------------------------------------------ with a search


def chosen(view: View, draw: BoolArray) -> dict[str, float]:
    """Scores on the test of what is chosen with the items for selection and those of one search."""
    matrix = view.matrix
    known = view.selecting | draw
    uniform = points(matrix.uniform[:, known])
    order = np.argsort(-uniform[:TUNES], kind="stable").tolist()
    first: list[Subset] = [tuple(sorted(order[: size + 1])) for size in range(TUNES)]
    size = int(np.argmax([uniform[PLACES[subset]] for subset in first]))
    own = matrix.searched(matrix.facts.experts)
    pick = searched(matrix.points[matrix.facts.experts], own, view.category, draw)
    top = matrix.searched(matrix.facts.best)
    return {
        "best": view.score(order[:1]),
        "router": router(view, known),
        "greedy": view.score(greedy(order, uniform)),
        "top 1 to 8": view.score(first[size]),
        "default": float(view.test(own)[pick]),
        "best of top": float(view.test(top)[points(top[:, draw]).argmax()]),
    }


def router(view: View, known: BoolArray) -> float:
    """The tune that is best in a category on known items answers its items of the test."""
    before = means(view.tunes[:, known], view.category[known])
    after = means(view.tunes[:, ~view.choosing], view.category[~view.choosing])
    return float(100 * after[before.argmax(axis=0), np.arange(after.shape[1])].mean())


def greedy(order: Sequence[int], scores: FloatArray) -> Subset:
    """The greedy soup (Wortsman et al. 2022, recipe 1) by scores of all uniform soups [255]."""
    members: Subset = (order[0],)
    for tune in order[1:]:
        grown = tuple(sorted((*members, tune)))
        if scores[PLACES[grown]] >= scores[PLACES[members]]:
            members = grown
    return members


def over_draws(view: View) -> dict[str, float]:
    """Means over the redrawn searches; the search over all tunes is long, and made on a few of them."""
    draws = view.searches()
    rows = [chosen(view, draw) for draw in draws]
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    every = view.matrix.searched(ALL)
    scores = view.test(every)
    picks = []
    for draw in draws[:DRAWS_OF_ALL]:
        picks.append(searched(view.matrix.points[ALL], every, view.category, draw))
    compared = [row["best"] for row in rows[:DRAWS_OF_ALL]]
    found["selector=all - best"] = float(np.mean(scores[picks]) - np.mean(compared))
    found["experts"] = view.score(view.matrix.facts.experts)
    found["all"] = view.score(ALL)
    return found
