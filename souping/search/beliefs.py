"""What a posterior says of a search: who may still beat the leader, and what more items would bring."""

from __future__ import annotations

import numpy as np

from souping.core.types import FloatArray, IntArray
from souping.search.fold import FoldLayout
from souping.search.surrogate import Surrogate

TINY = 1e-12
SURE = 1.0
"""Answers' worth of trust that surprises are as large as the posterior expects."""


def expected_improvement(posterior: Surrogate, weights: FloatArray, most: int) -> tuple[int, IntArray, FloatArray]:
    """Leader, its rivals by expected improvement over it, and the derivative of each one's to the variance of its
    difference (Jones et al. 1998: EI = s (phi(z) + z Phi(z)), so dEI / ds^2 = phi(z) / 2s)."""
    mean = weights @ posterior.mean
    leader = int(np.argmax(mean))
    sd = np.sqrt(np.maximum(posterior.differences(leader, weights), TINY))
    z = (mean - mean[leader]) / sd
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    improvement = sd * (density + z * normal(z))
    improvement[leader] = -1.0
    rivals: IntArray = np.argsort(-improvement, kind="stable")[: min(most, len(mean) - 1)]
    return leader, rivals, density[rivals] / (2 * sd[rivals])


def normal(z: FloatArray) -> FloatArray:
    """Distribution function of the standard normal, within 1e-7 (Abramowitz and Stegun 26.2.17)."""
    t = 1 / (1 + 0.2316419 * abs(z))
    tail = np.polyval((1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530, 0.0), t)
    tail = tail * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(np.where(z > 0, 1 - tail, tail))


def finishing_gain(posterior: Surrogate, layout: FoldLayout, depth: IntArray, leader: int, rivals: IntArray) -> float:
    """Expected gain of the pick if leader and rivals answered the rest of the fold (fractions of 1).

    The posterior mean will move by a normal of the variance that the answers will take away; the gain is the expected
    maximum over them minus today's.
    """
    soups = np.array([leader, *rivals])
    change = np.zeros((len(soups), len(soups)))
    for c, weight in enumerate(layout.weights):
        cells = np.array([(s, b) for s in soups for b in range(depth[s, c], layout.counts[c])], dtype=int)
        if len(cells) and weight:
            cross, joint = posterior.cells(c, soups, *cells.T)
            change += weight**2 * cross @ np.linalg.solve(joint + 1e-9 * np.eye(len(cells)), cross.T)
    moved = (layout.weights @ posterior.mean)[soups] + draws(change, 512)
    return float(np.mean(moved.max(1) - moved[:, 0]))


def next_items(
    posterior: Surrogate, layout: FoldLayout, depth: IntArray, leader: int, rivals: IntArray, items: int = 100
) -> float:
    """Expected gain of the pick from another hundred items on leader and rivals, where they tell most (fractions of 1).

    For each rival the cells that take most off the variance of its difference to the leader, as if one by one; the best
    of these gains.
    """
    mean = layout.weights @ posterior.mean
    apart = posterior.differences(leader, layout.weights)
    blocks = [np.full_like(depth, b) for b in range(layout.sizes.shape[1])]
    drop = np.stack([posterior.reduction(leader, rivals, layout.weights, block) for block in blocks])
    best = 0.0
    for number, rival in enumerate(rivals):
        open_cells = [
            (float(drop[b, c, number, s]), layout.sizes[c, b])
            for s in (leader, int(rival))
            for c in range(len(layout.weights))
            for b in range(depth[s, c], layout.counts[c])
        ]
        won, left = 0.0, float(items)
        for gain, size in sorted(open_cells, key=lambda cell: -cell[0] / cell[1]):
            won += gain * min(1.0, left / size)
            left -= min(left, size)
        sd = np.sqrt(max(min(won, apart[rival]), TINY))
        z = (mean[rival] - mean[leader]) / sd
        best = max(best, float(sd * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * normal(np.array([z]))[0])))
    return best


def draws(cov: FloatArray, count: int) -> FloatArray:
    """Samples [count, S] of a normal with mean zero, always the same stream."""
    values, vectors = np.linalg.eigh(cov)
    half = vectors * np.sqrt(np.maximum(values, 0))
    return np.asarray(np.random.default_rng(0).standard_normal((count, len(cov))) @ half.T)


def indistinguishable(posterior: Surrogate, weights: FloatArray, pick: int) -> tuple[int, ...]:
    """Soups that may be as good as a pick (one-sided 95 %), the best first.

    Standard errors are as much smaller or larger than the posterior's as its answers surprised it less or more than
    it expected.
    """
    mean, (total, count) = weights @ posterior.mean, posterior.surprises
    scale = (SURE + total) / (SURE + count)
    sd = np.sqrt(scale * np.maximum(posterior.differences(pick, weights), TINY))
    near = np.flatnonzero(mean[pick] - mean < 1.645 * sd)
    near = near[np.argsort(-mean[near], kind="stable")]
    return tuple(int(s) for s in near if s != pick)
