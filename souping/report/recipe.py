"""The recipe of a soup in a report and on a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from souping.core.reading import read
from souping.core.text import DASH
from souping.core.types import Names, Recipe, frozen
from souping.report.cells import TableGrid, grid
from souping.report.format import clean, four_digits

REBUILD = "It writes the same bytes again, and stops if an ingredient's content differs."


@frozen
class RecipeSummary:
    """Everything that decides the soup's bytes."""

    id: str
    """first 12 digits of the recipe's fingerprint"""
    ingredients: Names
    """in order; ingredients of weight 0 are left out"""
    weights: tuple[float | None, ...]
    """one per ingredient"""
    fingerprints: Names
    """SHA-256 of each ingredient's content"""
    sources: Mapping[str, str] | None = None
    """{ingredient: org/name@commit} of ingredients from the Hub"""
    method: str
    """merge method"""
    dtype: str
    """type in which the weights are stored"""
    settings: Mapping[str, Any]
    """settings of the merge that decide its bytes"""


def recipe_summary(recipe: Recipe) -> RecipeSummary:
    return read(RecipeSummary, recipe.as_dict())


def recipe_table(recipe: RecipeSummary) -> TableGrid:
    """Ingredients, weights, the fingerprints of their content, and where on the Hub they are."""
    sources = recipe.sources or {}
    header = ["ingredient", "weight", "content (SHA-256, first 16)"]
    if sources:
        header.append("on the Hub")
    fingerprints = recipe.fingerprints or [""] * len(recipe.ingredients)
    lines = []
    # In an edited file, the lists may differ in length.
    for name, weight, digest in zip(recipe.ingredients, recipe.weights, fingerprints, strict=False):
        line = [clean(name), four_digits(weight), clean(digest)[:16] or DASH]
        if sources:
            line.append(clean(sources.get(name)) or DASH)
        lines.append(line)
    return grid(header, lines, left=(0, 2, 3))
