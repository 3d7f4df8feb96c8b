"""What `leaderboards.py` measures on a leaderboard: weakly correlated categories, and the experts that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from benchmarks.leaderboard_data import Board, family
from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import FloatArray, IntArray, Names, ScoreMatrix, UserError
from souping.selection import SoCE, SoCECluster, TopK

THRESHOLD = 0.2
"""The paper's."""
FEWEST_FAMILIES = 8
FLAT = 1e-9
LEAST_RELIABILITY = 0.05
"""Reliability of a category below which its disattenuated correlations are not estimable, as in souping's report."""
Numbers = dict[str, float]
"""{measure: value}, nan where it is not estimable."""


@dataclass(frozen=True, kw_only=True)
class Subsets:
    """Subsets of `size` models: each starts at another place in the order by score, and takes every `stride`th model.

    A size of 0 is the whole board.
    """

    size: int
    stride: int = 1

    def of(self, scores: FloatArray) -> IntArray:
        """[W, size] models of the subsets, for overall scores [M]."""
        order = np.argsort(scores, kind="stable")
        if not self.size:
            return order[None]
        reach = (self.size - 1) * self.stride
        starts = np.arange(len(scores) - reach)
        return np.asarray(order[starts[:, None] + self.stride * np.arange(self.size)])

    def fits(self, models: int) -> bool:
        return (self.size - 1) * self.stride < models

    @property
    def name(self) -> str:
        if not self.size:
            return "all models"
        step = {1: "neighbours", 2: "every 2nd"}.get(self.stride, f"every {self.stride}th")
        return f"{self.size}, {step}"


def correlations(means: FloatArray) -> FloatArray:
    """Pearson's correlation of every two categories, [..., M, C] -> [..., pairs]; nan with a constant category."""
    centred = means - means.mean(axis=-2, keepdims=True)
    lengths = np.sqrt((centred**2).sum(axis=-2))
    lengths = np.where(np.ptp(means, axis=-2) > FLAT, lengths, np.nan)
    rho = np.einsum("...ma,...mb->...ab", centred, centred)
    rho = rho / lengths[..., :, None] / lengths[..., None, :]
    a, b = np.triu_indices(means.shape[-1], 1)
    return np.asarray(rho[..., a, b])


def share_below(rho: FloatArray) -> tuple[float, float]:
    """Shares of pairs with |rho| and with rho below the threshold, among those that have a correlation."""
    known = np.isfinite(rho)
    total = max(1, int(known.sum()))
    absolute = float((np.abs(rho[known]) < THRESHOLD).sum() / total)
    signed = float((rho[known] < THRESHOLD).sum() / total)
    return absolute, signed


def item_noise(board: Board) -> FloatArray:
    """Covariance of models' category means from the sampling of items, [C, M, M]."""
    assert board.answers is not None
    assert board.category is not None
    noise = []
    for number in range(len(board.categories)):
        answers = board.answers[:, board.category == number]
        noise.append(np.cov(answers) / answers.shape[1])
    return np.stack(noise)


def disattenuated(means: FloatArray, noise: FloatArray) -> FloatArray:
    """Correlations [pairs] of means [M, C] without the item noise [C, M, M] (Spearman 1904); nan if all is noise."""
    models = len(means)
    interaction = np.trace(noise, axis1=1, axis2=2) - noise.sum(axis=(1, 2)) / models
    covariance = np.cov(means, rowvar=False)
    observed = np.diag(covariance)
    variance = observed - interaction / (models - 1)
    reliable = variance > LEAST_RELIABILITY * observed
    spread = np.sqrt(np.where(reliable, variance, np.nan))
    rho = np.clip(covariance / np.outer(spread, spread), -1.0, 1.0)
    return np.asarray(rho[np.triu_indices(len(rho), 1)])


def weak_pairs(board: Board, subsets: Subsets, simulated: FloatArray | None) -> Numbers:
    """Shares of weakly correlated pairs over subsets, and those of simulated boards [D, M, C]."""
    overall = board.overall(board.means)
    members = subsets.of(overall)
    rho = correlations(board.means[members])
    absolute, signed = share_below(rho)
    numbers: Numbers = {
        "subsets": len(members),
        "range": 100 * float(np.ptp(overall[members], axis=1).mean()),
        "fewest": float(min((np.abs(row) < THRESHOLD).sum() for row in rho)),
        "most": float(max((np.abs(row) < THRESHOLD).sum() for row in rho)),
        "smallest": float(np.nanmin(np.abs(rho))),
        "absolute": absolute,
        "signed": signed,
    }
    if simulated is not None:
        numbers |= _by_chance(board, simulated, subsets)
        numbers["excess"] = absolute - numbers["chance"]
        numbers["signed excess"] = signed - numbers["signed chance"]
    if board.answers is not None:
        noise = item_noise(board)
        true = [disattenuated(board.means[row], noise[:, row[:, None], row]) for row in members]
        numbers["disattenuated"], _ = share_below(np.stack(true))
        numbers["estimable"] = float(np.isfinite(true).mean())
    return numbers


def _by_chance(board: Board, simulated: FloatArray, subsets: Subsets) -> Numbers:
    absolute = []
    signed = []
    for means in simulated:
        members = subsets.of(board.overall(means))
        shares = share_below(correlations(means[members]))
        absolute.append(shares[0])
        signed.append(shares[1])
    low, high = np.quantile(absolute, (0.025, 0.975))
    return {
        "chance": float(np.mean(absolute)),
        "chance low": float(low),
        "chance high": float(high),
        "signed chance": float(np.mean(signed)),
        "signed chance low": float(np.quantile(signed, 0.025)),
        "signed chance high": float(np.quantile(signed, 0.975)),
    }


# ------------------------------------------------------------ experts


@dataclass
class Experts:
    """Experts of subsets of a board, and of boards that might have come out; `draws` [D, M, C] resample the items."""

    board: Board
    draws: FloatArray
    known: dict[Names, Numbers] = field(default_factory=dict)

    def numbers(self, board: Board, subsets: Subsets) -> Numbers:
        """Means over the subsets of a part of the board."""
        rows = []
        for members in subsets.of(board.overall(board.means)):
            models = tuple(board.models[row] for row in members)
            if models not in self.known:
                self.known[models] = self._of(models)
            rows.append(self.known[models])
        means = {}
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            means[name] = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
        return means

    def _of(self, models: Names) -> Numbers:
        places = [self.board.models.index(name) for name in models]
        scores = self._matrix(models, self.board.means[places])
        experts = chosen(scores)
        numbers = dict.fromkeys(EXPERT_MEASURES, np.nan)
        numbers["selects"] = float(experts is not None)
        if experts is None:
            return numbers
        resampled = [self._matrix(models, means) for means in self.draws[:, places]]
        numbers["same with other items"] = same(resampled, experts)
        others = [name for name in models if name not in experts]
        smaller = []
        for other in others:
            rest = tuple(name for name in models if name != other)
            smaller.append(self._matrix(rest, scores.rows(rest)))
        if smaller:
            numbers["same without another model"] = same(smaller, experts)
        clusters = CLUSTERS.select(scores).ingredients
        numbers["same by clusters"] = float(set(clusters) == set(experts))
        best = TopK(objective=Mean(), k=len(experts)).select(scores).ingredients
        numbers["same as the best overall"] = float(set(best) == set(experts))
        numbers["experts"] = float(len(experts))
        numbers["clusters' experts"] = float(len(clusters))
        return numbers

    def _matrix(self, models: Names, means: FloatArray) -> ScoreMatrix:
        return ScoreMatrix(
            models=models, categories=self.board.categories, values=means, published=True
        )


EXPERT_MEASURES = (
    "selects",
    "same with other items",
    "same without another model",
    "same by clusters",
    "same as the best overall",
    "experts",
    "clusters' experts",
)
STATED = SoCE(correlation=pearson, objective=Mean(), threshold=THRESHOLD, fallback="error")
CLUSTERS = SoCECluster(correlation=pearson, objective=Mean(), threshold=THRESHOLD)


def chosen(scores: ScoreMatrix) -> Names | None:
    """The ingredients by the paper's stated rule; None if no category is weakly correlated."""
    try:
        return STATED.select(scores).ingredients
    except UserError:
        return None


def same(matrices: list[ScoreMatrix], experts: Names) -> float:
    """Share of score matrices that give exactly these experts."""
    return float(np.mean([set(chosen(scores) or ()) == set(experts) for scores in matrices]))


def resampled_means(board: Board, draws: int, rng: np.random.Generator) -> FloatArray:
    """Category means with as many items drawn with replacement in each category, [D, M, C]."""
    assert board.answers is not None
    assert board.category is not None
    columns = []
    for number in range(len(board.categories)):
        answers = board.answers[:, board.category == number]
        size = answers.shape[1]
        counts = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        columns.append(counts @ answers.T / size)
    return np.stack(columns, axis=-1)


# ------------------------------------------------------------ intervals over families


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval over families of models; nan limits where it is not estimable."""

    value: float
    low: float = np.nan
    high: float = np.nan


def fewest_models(board: Board) -> int:
    """Models of the smallest board that an interval needs."""
    sizes = Counter(board.families)
    if len(sizes) < FEWEST_FAMILIES:
        return len(board.models)
    return len(board.models) - max(sizes.values())


def over_families(
    board: Board, measure: Callable[[Board], Numbers], family_of: Callable[[str], str] = family
) -> dict[str, Estimate]:
    """A board's numbers, with intervals from leaving out each family in turn.

    Jackknife of unequal groups (Busing, Meijer and van der Leeden 1999); limits by Student's t.
    """
    numbers = measure(board)
    families = sorted(set(map(family_of, board.models)))
    if len(families) < FEWEST_FAMILIES:
        return {name: Estimate(value=value) for name, value in numbers.items()}
    sizes = []
    without = []
    for name in families:
        models = [model for model in board.models if family_of(model) == name]
        sizes.append(len(models))
        without.append(measure(board.without(models)))
    estimates = {}
    for name, value in numbers.items():
        values = np.array([numbers_without[name] for numbers_without in without])
        estimates[name] = _jackknife(value, values, np.array(sizes))
    return estimates


def _jackknife(value: float, without: FloatArray, sizes: IntArray) -> Estimate:
    """A value with its interval, by leaving out one group after another; groups of unequal `sizes` (Busing 1999)."""
    if not np.isfinite(value) or not np.isfinite(without).all() or np.ptp(without) <= FLAT:
        return Estimate(value=value)
    groups = len(sizes)
    ratio = sizes.sum() / sizes
    pseudo = ratio * value - (ratio - 1) * without
    centre = groups * value - ((1 - 1 / ratio) * without).sum()
    variance = ((pseudo - centre) ** 2 / (ratio - 1)).mean()
    margin = student(groups - 1) * float(np.sqrt(variance))
    return Estimate(value=value, low=value - margin, high=value + margin)


def student(degrees: int) -> float:
    """Upper 2.5 % point of Student's t (Cornish and Fisher's expansion, to 0.001 from seven degrees on)."""
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
