"""Objectives: one number of category scores, by a linear functional, w_c a category.

All of a mean, fixed weights and a tree of group means are linear in the category means, so one weight a category says
it all, and paired tests and intervals apply to every objective alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from souping.core.fields import component, pick
from souping.core.protocols import Objective
from souping.core.types import FloatArray, Json, UserError


def value(objective: Objective, scores: Mapping[str, float]) -> float:
    """The objective of category scores (fractions of 1)."""
    names = list(scores)
    return float(objective.coefficients(names) @ np.array([scores[n] for n in names]))


@component
class Mean(Objective):
    """Plain mean over categories."""

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        return np.full(len(categories), 1.0 / len(categories))


@component
class Weighted(Objective):
    """Mean over categories with given weights; categories not named weigh nothing."""

    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise UserError("objective.weights needs {category: weight} with weights >= 0 and one above 0")

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        _check_known(self.weights, categories)
        raw: FloatArray = np.array([float(self.weights.get(c, 0.0)) for c in categories])
        total: float = raw.sum()
        return raw / total


@component
class Tree(Objective):
    """Mean of group means, as deep as the tree: {non_live: [simple, multiple], live: [live_simple]}.

    A node is a category's name, a list of nodes or a mapping of names to nodes; a node's value is the mean of its
    children, as BFCL's overall accuracy is.
    """

    tree: Any = field(default_factory=dict)  # the configuration is checked against this hint, which cannot recurse

    def __post_init__(self) -> None:
        if not self.tree or not self._leaves(self.tree):
            raise UserError("objective.tree needs at least one category, e.g. objective.tree={group:[category]}")

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        leaves = self._leaves(self.tree)
        _check_known(leaves, categories)
        return np.array([leaves.get(c, 0.0) for c in categories])

    def _leaves(self, node: Json, share: float = 1.0) -> dict[str, float]:
        if isinstance(node, str):
            return {node: share}
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, Sequence) else ()
        children = list(inner)
        if not children:
            raise UserError("objective.tree has an empty group: name its categories, or leave it out")
        leaves: dict[str, float] = {}
        for child in children:
            for name, part in self._leaves(child, share / len(children)).items():
                leaves[name] = leaves.get(name, 0.0) + part
        return leaves


def _check_known(names: Mapping[str, float], categories: Sequence[str]) -> None:
    for name in names:
        pick(name, categories, "objective: category")
