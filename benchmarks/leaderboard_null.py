"""One ability per model and one difficulty per item: what correlations of categories look like by chance.

    P(model m solves item i) = 1 / (1 + exp(b_i - a_m))    (Rasch 1960)

Difficulties of a category have any distribution on a grid (maximum likelihood, Bock and Aitkin 1981); given the
abilities, all that an item's answers say of its difficulty is how many models solved it. A published table has only
counts, so its categories have one difficulty each, which makes chance a little larger than it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.leaderboard_data import Board
from souping.core.types import FloatArray, IntArray

GRID = np.linspace(-7, 7, 43)
"""Difficulties, in logits."""
STEPS = 150
"""Steps of the fit."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """Fitted null: `solved` [C, S] items by the number of models that solved them, `posterior` [C, S, K] of their
    difficulties, `ability` [M], `p` [M, 1 or C, K] the probability of a right answer."""

    solved: IntArray
    posterior: FloatArray
    ability: FloatArray
    p: FloatArray

    def draws(self, number: int, rng: np.random.Generator) -> FloatArray:
        """Category means of as many simulated boards, [D, M, C]."""
        categories, sizes = self.solved.shape
        shape = (number, categories, sizes)
        counts = rng.multinomial(self.solved, self.posterior, size=shape).sum(axis=2)  # [D, C, K]
        right = rng.binomial(counts[:, None], self.p)  # [D, M, C, K]
        return np.asarray(right.sum(axis=-1) / self.solved.sum(axis=1))


def fit(board: Board) -> Null | None:
    """The null of a board; None if its scores are no shares of items."""
    if board.items is None:
        return None
    if board.answers is None:
        return _fit_counts(board, board.items)
    assert board.category is not None
    models = len(board.models)
    number_right = board.answers.sum(axis=0).astype(int)
    solved = np.zeros((len(board.categories), models + 1), dtype=int)
    np.add.at(solved, (board.category, number_right), 1)

    totals = board.answers.sum(axis=1)
    share = totals / board.answers.shape[1]
    ability = np.log(share / (1 - share))
    weights = np.full((len(solved), len(GRID)), 1 / len(GRID))
    for _ in range(STEPS):
        posterior = _posterior(ability, weights)
        # [K] items expected at each difficulty; a step of Newton to the abilities that expect the models' totals
        expected = np.einsum("cs,csk->k", solved, posterior)
        weights = np.einsum("cs,csk->ck", solved, posterior) / solved.sum(axis=1, keepdims=True)
        p = _right(ability)
        ability = ability - (p @ expected - totals) / ((p * (1 - p)) @ expected)
    return Null(
        solved=solved,
        posterior=_posterior(ability, weights),
        ability=ability,
        p=_right(ability)[:, None],
    )


def _right(ability: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(GRID - ability[:, None])))


def _posterior(ability: FloatArray, weights: FloatArray) -> FloatArray:
    """[C, S, K] of difficulties by the number of models that solved an item: exp(-s b) / prod(1 + exp(a_m - b))."""
    number_right = np.arange(len(ability) + 1)
    log_likelihood = -number_right[:, None] * GRID
    log_likelihood = log_likelihood - np.log1p(np.exp(ability[:, None] - GRID)).sum(axis=0)
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    joint = weights[:, None] * likelihood
    return np.asarray(joint / joint.sum(axis=2, keepdims=True))


def _fit_counts(board: Board, items: IntArray) -> Null:
    """One difficulty per category: its means and the models' are those of the board."""
    ability = np.zeros(len(board.models))
    difficulty = np.zeros(len(board.categories))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(difficulty - ability[:, None]))
        spread = p * (1 - p)
        ability = ability - (p - board.means) @ items / (spread @ items)
        p = 1 / (1 + np.exp(difficulty - ability[:, None]))
        spread = p * (1 - p)
        difficulty = difficulty + (p - board.means).sum(axis=0) / spread.sum(axis=0)
    p = 1 / (1 + np.exp(difficulty - ability[:, None]))
    # a category is one point of its own grid
    categories = len(items)
    return Null(
        solved=items[:, None],
        posterior=np.eye(categories)[:, None],
        ability=ability,
        p=p[:, None],
    )
