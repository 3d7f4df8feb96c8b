"""Scores as a run's analyses see them, without a run: candidates with skills, soups that answer as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from souping.analysis import Analysis, RunScores, RunSoups
from souping.analysis.correlation import pearson
from souping.core.reading import to_json
from souping.core.scores import Mean
from souping.core.types import FloatArray, Item, ItemScores, Recipe, Record, Split
from souping.report.run_files import as_json
from souping.search.points import uniform, weight_grid

NAMES = ("ant", "bee", "cat", "dog")
CATEGORIES = ("w", "x", "y", "z")
Answer = Callable[[Recipe, tuple[Item, ...]], FloatArray]


def recipe_of(weights: Mapping[str, float]) -> Recipe:
    """Ingredients in alphabetical order, which is the pool's."""
    names = tuple(sorted(name for name, share in weights.items() if share))
    return Recipe(
        ingredients=names,
        fingerprints=tuple(f"f-{name}" for name in names),
        weights=tuple(weights[name] for name in names),
        dtype="BF16",
    )


def items_of(
    split: str, per_category: int = 30, categories: Sequence[str] = CATEGORIES
) -> tuple[Item, ...]:
    """Items of one split, two in a group."""
    return tuple(
        Item(
            id=f"{split}-{c}-{i}",
            category=c,
            group=f"{split}-{c}-{i // 2}",
            prompt=f"{split} {c} {i}",
            answer=str(i),
        )
        for c in categories
        for i in range(per_category)
    )


def skills(items: Sequence[Item], seed: int = 3) -> dict[str, FloatArray]:
    """Right or wrong answers [I] of each candidate, which is good at one category."""
    rng = np.random.default_rng(seed)
    table = {}
    _, category = np.unique([item.category for item in items], return_inverse=True)
    for number, name in enumerate(NAMES):
        chance = np.where(category == number, 0.8, 0.45)
        table[name] = (rng.random(len(items)) < chance).astype(float)
    return table


def voting(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """A soup is right where the weight of its parents that are right is above a half, and at times by itself."""
    table = skills(items)
    whole = sum(w * table[n] for n, w in zip(recipe.ingredients, recipe.weights, strict=True))
    assert isinstance(whole, np.ndarray)
    if len(recipe.ingredients) == 1:
        return np.asarray(table[recipe.ingredients[0]])
    own = np.random.default_rng(int(recipe.id, 16) % 2**32).random(len(items)) < 0.03
    return np.where(own, 1.0, (whole > 0.5 * sum(recipe.weights)).astype(float))


def run_of(
    size: int = 3,
    *,
    answer: Answer = voting,
    weights: Sequence[float] = (),
    asked: Callable[[RunSoups], Sequence[Recipe]] = lambda soups: (),
    trials: int | None = None,
    categories: Sequence[str] = CATEGORIES,
    pool: Sequence[str] = NAMES,
    per_category: int = 30,
) -> RunScores:
    """A run over the first `size` candidates, whose soups answer as `answer` says."""
    ingredients = tuple(pool[:size])
    splits: dict[Split, tuple[Item, ...]] = {"search": items_of("s", per_category, categories)}
    splits["test"] = items_of("r", per_category, categories)
    points = [uniform(size), *weight_grid(size)] if size > 1 else []
    soups = [recipe_of(dict(zip(ingredients, point, strict=True))) for point in points][:trials]
    given = weights or (uniform(size) if size > 1 else (1.0,))
    winner = recipe_of(dict(zip(ingredients, given, strict=True)))
    singles = {name: recipe_of({name: 1.0}) for name in pool}
    known = RunSoups(
        candidates=singles,
        ingredients=ingredients,
        soup=winner,
        recipe=recipe_of,
    )

    def scores(recipe: Recipe, split: Split) -> ItemScores:
        return ItemScores(items=splits[split], values=answer(recipe, splits[split]))

    search = {r.id: scores(r, "search") for r in [*singles.values(), *soups, winner, *asked(known)]}
    return RunScores(
        soups=known,
        trials=tuple({soup.id: soup for soup in soups}.values()),
        objective=Mean(),
        correlation=pearson,
        metric="pearson",
        search=search,
        test={r.id: scores(r, "test") for r in [*singles.values(), winner]},
        read=lambda recipe, split: {
            item.id: Record(item=item.id, score=float(value), output=f"{recipe.id} on {item.id}")
            for item, value in zip(splits[split], answer(recipe, splits[split]), strict=True)
        },
    )


def result_json(analysis: Analysis, run: RunScores) -> Any:
    """What an analysis finds, as a report has it."""
    return json.loads(as_json(to_json(analysis.analyse(run))))
