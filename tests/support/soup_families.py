"""Made matrices of answers: models of known abilities on items of known difficulty, no training."""

from __future__ import annotations

import numpy as np

from benchmarks.soup_families.choices import best, experts, means, search_points
from benchmarks.soup_families.design import TUNES, Levels
from benchmarks.soup_families.items import ITEMS, category_of, is_choosing, is_selecting
from benchmarks.soup_families.matrices import Facts, Matrix
from benchmarks.soup_families.merging import ALL, OTHERS, spread_over, uniform_weights

LEVELS: Levels = (-1, -1, -1, -1, -1)


def matrix(
    seed: int = 0, rise: float = 0.5, levels: Levels = LEVELS, name: str = "exploratory-00"
) -> Matrix:
    """A family in which abilities of soups are weighted means, and `rise` logits more the more tunes are in them."""
    random = np.random.default_rng(seed)
    count = 10 if levels[-1] > 0 else 5
    category = category_of(count)
    ability = random.normal(0, 1, (TUNES, count))
    difficulty = random.normal(0, 1.5, ITEMS)
    uniform = random.random(ITEMS)

    def answers(weights: np.ndarray) -> np.ndarray:
        diversity = 1 - (weights**2).sum(axis=1, keepdims=True)
        logits = (weights @ ability + rise * diversity)[:, category] - difficulty
        return np.asarray(uniform < 1 / (1 + np.exp(-logits)))

    tunes = answers(np.eye(TUNES))
    selecting = is_selecting(count)
    scores = means(tunes[:, selecting], category[selecting])
    merits = means(tunes[:, is_choosing(count)], category[is_choosing(count)])
    selected = experts(scores)
    top = best(scores, len(selected))
    points = {subset: search_points(subset, merits) for subset in (selected, top, ALL)}
    rows = [answers(np.zeros((1, TUNES))), answers(uniform_weights())]
    rows += [answers(spread_over(subset, weights)) for subset, weights in points.items()]
    rows.append(answers(random.dirichlet(np.ones(TUNES), OTHERS)))
    facts = Facts(
        name=name,
        seed=seed,
        levels=levels,
        categories=tuple(f"skill {number}" for number in range(count)),
        experts=selected,
        best=top,
        train_seconds=1.0,
        score_seconds=2.0,
    )
    return Matrix(facts=facts, points=points, answers=np.concatenate(rows))
