"""The models of a family that are scored, in the order in which its matrix has them.

The base; the uniform soups of all 255 subsets of the tunes; the points of the product's adaptive search over SoCE's
ingredients, over as many of the best and over all tunes; then a few soups of other kinds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.soup_families.design import TUNES
from souping.core.types import FloatArray

Subset = tuple[int, ...]
"""Tunes, in ascending order."""
SUBSETS: tuple[Subset, ...] = tuple(
    subset for size in range(1, TUNES + 1) for subset in itertools.combinations(range(TUNES), size)
)
ALL = tuple(range(TUNES))
SCALES = (0.75, 1.25, 1.5)
"""Lengths of the change from the base, for the uniform soup of SoCE's ingredients."""
DENSITIES = (0.2, 0.5)
"""Shares of each change that TIES keeps."""
LAYERED = 12
"""Soups of SoCE's ingredients with random weights for each block."""
OTHERS = len(SCALES) + len(DENSITIES) + LAYERED


def spread_over(subset: Sequence[int], weights: FloatArray) -> FloatArray:
    """Weights [S, K] of ingredients as weights of all tunes [S, 8]."""
    full = np.zeros((len(weights), TUNES))
    full[:, list(subset)] = weights
    return full


def uniform_weights() -> FloatArray:
    """Weights [255, 8] of the uniform soups."""
    rows = [spread_over(subset, np.full((1, len(subset)), 1 / len(subset))) for subset in SUBSETS]
    return np.concatenate(rows)


def linear(base: Tensor, changes: Tensor, weights: FloatArray) -> Tensor:
    """Models [S, P] that add weighted changes [8, P] to a base [P]."""
    return base + torch.from_numpy(weights).float() @ changes


def others(
    base: Tensor, changes: Tensor, blocks: Tensor, subset: Subset, seed: int
) -> Iterator[Tensor]:
    """Models [P] of other kinds, OTHERS in all; `blocks` [P] are the blocks of the parameters."""
    own = changes[list(subset)]
    for scale in SCALES:
        yield base + scale * own.mean(dim=0)
    for density in DENSITIES:
        yield base + ties(own, density)
    random = np.random.default_rng(seed)
    for _ in range(LAYERED):
        weights = random.dirichlet(np.full(len(subset), 2.0), int(blocks.max()) + 1)
        by_parameter = torch.from_numpy(weights).float()[blocks]  # [P, K]
        yield base + (by_parameter.T * own).sum(dim=0)


def ties(changes: Tensor, density: float) -> Tensor:
    """Trim, elect signs, and average what agrees (Yadav et al. 2023): changes [K, P] -> [P]."""
    trimmed = round(changes.shape[1] * (1 - density))
    limit = changes.abs().kthvalue(trimmed, dim=1, keepdim=True).values
    kept = torch.where(changes.abs() > limit, changes, 0.0)
    agree = (kept.sign() == kept.sum(dim=0).sign()) & (kept != 0)
    return torch.where(agree, kept, 0.0).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
