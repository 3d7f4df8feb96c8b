"""One family from its seed to its matrix: data, training, choices on the items to choose with, merges, answers."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.soup_families.choices import best, experts, means, search_points
from benchmarks.soup_families.design import TUNES, Family
from benchmarks.soup_families.items import (
    Data,
    category_of,
    data_of,
    is_choosing,
    is_selecting,
)
from benchmarks.soup_families.matrices import Facts, Matrix
from benchmarks.soup_families.merging import (
    ALL,
    Subset,
    linear,
    others,
    spread_over,
    uniform_weights,
)
from benchmarks.soup_families.network import Network
from benchmarks.soup_families.scoring import right
from benchmarks.soup_families.training import trained
from souping.core.types import BoolArray, FloatArray

AT_ONCE = 64
"""Merged models in memory."""


def made(family: Family) -> Matrix:
    """Train, merge and score a family on one core."""
    torch.set_num_threads(1)
    start = time.process_time()
    data = data_of(family)
    network = Network(size=family.size)
    base, changes = trained(family, network, data)
    trained_at = time.process_time()
    # Rows in the order of `merging`: the base, the uniform soups (the first are the tunes alone), the points of the
    # searches, and the soups of other kinds.
    answers = [right(network, base[None], data.items)]
    answers.append(linear_answers(network, base, changes, uniform_weights(), data))
    tunes = answers[-1][:TUNES]
    selected, top, points = searches(family, tunes)
    for subset, weights in points.items():
        full = spread_over(subset, weights)
        answers.append(linear_answers(network, base, changes, full, data))
    kinds = others(base, changes, network.blocks(), selected, family.seed)
    answers.append(right(network, torch.stack(list(kinds)), data.items))
    facts = Facts(
        name=family.name,
        seed=family.seed,
        levels=family.levels,
        categories=data.categories,
        experts=selected,
        best=top,
        train_seconds=round(trained_at - start, 1),
        score_seconds=round(time.process_time() - trained_at, 1),
    )
    return Matrix(facts=facts, points=points, answers=np.concatenate(answers))


def linear_answers(
    network: Network, base: Tensor, changes: Tensor, weights: FloatArray, data: Data
) -> BoolArray:
    """Answers [S, I] of the models with weights [S, 8]."""
    parts = []
    for first in range(0, len(weights), AT_ONCE):
        rows = linear(base, changes, weights[first : first + AT_ONCE])
        parts.append(right(network, rows, data.items))
    return np.concatenate(parts)


def searches(family: Family, tunes: BoolArray) -> tuple[Subset, Subset, dict[Subset, FloatArray]]:
    """SoCE's ingredients, as many of the best, and {ingredients: points} of the searches.

    Ingredients come from the items for selection, and which points a search of many ingredients has from all items to
    choose with; neither from an item of the test.
    """
    category = category_of(family.categories)
    selecting = is_selecting(family.categories)
    choosing = is_choosing(family.categories)
    scores = means(tunes[:, selecting], category[selecting])
    merits = means(tunes[:, choosing], category[choosing])
    selected = experts(scores)
    top = best(scores, len(selected))
    points = {subset: search_points(subset, merits) for subset in (selected, top, ALL)}
    return selected, top, points
