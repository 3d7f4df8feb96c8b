"""Adaptive search: a surrogate chooses which soup answers which items next, by expected improvement over the leader.

Shape legend: S soups, K ingredients, I items of the search split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import numpy as np

from souping.core.fields import Bounds, component
from souping.core.protocols import Search
from souping.core.types import (
    BoolArray,
    Bound,
    FloatArray,
    IntArray,
    Query,
    Result,
    SearchBounds,
    SearchEnd,
    SearchSpace,
    StopReason,
    UserError,
    Weights,
)
from souping.search.points import (
    Grid,
    LimitedOptimiser,
    anchors,
    grid_size,
    limit_texts,
    scattered,
    spread,
    vertices,
    weight_grid,
)
from souping.search.surrogate import SoupModel

# Least number of items in a category's first sample, and most samples of a category: each is as
# large as all before it. They are not an evaluator's batches.
FIRST_SAMPLE = 12
MOST_SAMPLES = 4
# Rivals that are compared with the leader.
RIVALS = 12
# Soups that may be evaluated on the rest of the split at the end.
FINALISTS = 3
# Expected gain from the rest of the split below which a search ends (0.1 points).
ENOUGH_GAIN = 0.001
# The prior is fitted anew once this many times more answers are known.
GROWTH = 1.6
# Indistinguishable soups that are listed, and the normal quantile of their one-sided test.
LISTED_SOUPS = 20
ONE_SIDED_95 = 1.645
# Probability of keeping to all bounds from which a soup may lead.
LIKELY = 0.5
# Least variance under a root or a division.
TINY = 1e-12

# Most soups of a search, and the largest grid that is listed.
MOST_SOUPS = 240
LARGEST_GRID = 5000
# Ingredients from which soups of a few of them join the grid, and the factor on the odds that such
# a soup contains a single model, for each rank below the best.
MANY = 6
FADING = 0.85

# Searches that end by themselves usually take 7 x ingredients^0.75 x split^0.8 items
# (benchmarks/search_sizes.py).
USUAL = (7.0, 0.75, 0.8)
# Upper estimate, as a multiple of the usual number.
UPPER_ESTIMATE = 2


@component
class Adaptive(LimitedOptimiser):
    """Surrogate over the grid's points that chooses soups and items.

    `early_stopping` ends it when more answers would gain less than 0.1 points. `step` below 0.1
    searches between the grid's points; of more than 240 points those are taken that cover the
    simplex. `scales` adds each soup of the grid with its distance from the base model multiplied
    (`merge.method=task_arithmetic`).
    """

    step: float = 0.1
    early_stopping: bool = True
    scales: list[Annotated[float, Bounds(gt=0, le=10)]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Grid(step=self.step)  # checks the step

    def start(self, space: SearchSpace, seed: int) -> AdaptiveSearch:
        # Better ingredients are in more of the points.
        points = self.points(len(space.ingredients), merits_of(space))
        return self.over(points, space, seed)

    def over(self, points: Sequence[Weights], space: SearchSpace, seed: int) -> AdaptiveSearch:
        """A search over these points."""
        return AdaptiveSearch(points, space, seed, stops=self.early_stopping, budget=self.max_items)

    def points(self, size: int, merits: FloatArray | None = None) -> list[Weights]:
        """Soups to search, the anchors first.

        Weights that do not sum to one leave the rest to the base model. Of many ingredients those
        with the better `merits` [K] come more often.
        """
        simplex_points = self._simplex_points(size, merits)
        # Only mixtures are scaled, not the single models.
        mixtures = [point for point in simplex_points if max(point) < 1]
        scaled: list[Weights] = []
        for scale in self.scales:
            for point in mixtures:
                scaled.append(tuple(round(scale * weight, 12) for weight in point))
        if not scaled:
            return simplex_points
        ordered = anchors(size) + spread(simplex_points + scaled)
        return list(dict.fromkeys(ordered))[:MOST_SOUPS]

    def _simplex_points(self, size: int, merits: FloatArray | None) -> list[Weights]:
        """The anchors, then points of the grid, and of many ingredients soups of a few of them."""
        grid_points: list[Weights] = []
        if grid_size(size, self.step) <= LARGEST_GRID:
            grid_points = spread(weight_grid(size, self.step))
        if grid_points and size < MANY:
            return list(dict.fromkeys(anchors(size) + grid_points))[:MOST_SOUPS]
        # Leave room for soups of a few of the ingredients.
        if size >= MANY:
            grid_points = grid_points[: MOST_SOUPS // 2]
        points = dict.fromkeys(anchors(size) + grid_points)

        # The lower an ingredient ranks by its own objective, the fewer soups contain it.
        rank = np.zeros(size, dtype=np.int64)
        if merits is not None:
            rank = np.argsort(np.argsort(-merits, kind="stable"))
        odds = FADING**rank / np.sum(FADING**rank)
        limit = max(MOST_SOUPS, 3 * size)  # the anchors alone are 1 + size
        attempts = 20 * MOST_SOUPS  # a coarse step has few points
        for point in itertools.islice(scattered(size, self.step, odds), attempts):
            points[point] = None
            if len(points) >= limit:
                break
        return list(points)

    def predicted_points(self, size: int) -> list[Weights]:
        return self.points(size)

    @property
    def uses_singles(self) -> bool:
        return True

    def count(self, size: int) -> int | None:
        return None

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """(expected, most) items of a search that ends by itself: as many as measured ones usually took, and a number
        that hardly any exceeded. Without early stopping, both are the limit."""
        limit = len(self.points(size)) * items
        if self.max_items is not None:
            limit = min(limit, self.max_items)
        if not self.early_stopping:
            return limit, limit
        factor, size_power, items_power = USUAL
        expected = round(factor * size**size_power * items**items_power)
        return min(expected, limit), min(UPPER_ESTIMATE * expected, limit)

    def describe(self, size: int) -> str:
        clauses = [f"adaptive, {len(self.points(size))} possible soups"]
        if self.early_stopping:
            clauses.append("stops when more answers would not change the pick")
        return ", ".join(clauses + limit_texts(self))


class AdaptiveSearch(Search):
    """Running adaptive search over `points`.

    It explores, soup by soup and sample by sample, until more answers would gain little; then it
    confirms: the best soups answer the rest of the split. Cells that are open count as known, at
    their expected values.
    """

    def __init__(
        self,
        points: Sequence[Weights],
        space: SearchSpace,
        seed: int,
        stops: bool,
        budget: int | None,
    ) -> None:
        """`stops` says whether the search ends by itself, `budget` how many items it may request (None: any number)."""
        plain_points = [tuple(map(float, point)) for point in points]
        self._points: list[Weights] = list(dict.fromkeys(plain_points))
        self._soup_of = {point: soup for soup, point in enumerate(self._points)}
        self._space = space
        self._stops = stops
        self._budget = budget

        self._model = SoupModel(
            np.array(self._points),
            item_samples(space, seed),
            np.array(list(space.coefficients.values()), dtype=float),
            value=space.value,
            singles=space.singles,
        )
        self._bound_model: BoundModel | None = None
        if space.bounds is not None:
            self._bound_model = BoundModel(self._model, space, space.bounds, self._points)

        self._open: list[Query] = []
        # Number of items that were requested so far, and of those at the last check whether to end.
        self._spent = 0
        self._spent_at_check = 0
        # Number of soups that were confirmed.
        self._confirmed = 0
        # Why exploring ended; None while it goes on.
        self._stop_reason: StopReason | None = None

        self._take_in_singles()
        self._refit()

    def _take_in_singles(self) -> None:
        """Observe the single models' scores, if they are known."""
        singles = self._space.singles
        if singles is None:
            return
        lengths = self._space.lengths
        # A space that was built by hand may have scores without lengths.
        if lengths is None:
            lengths = np.zeros_like(singles)
        for number, vertex in enumerate(vertices(len(self._space.ingredients))):
            if vertex in self._soup_of:
                self._model.request_split(self._soup_of[vertex])
                self._observe(vertex, slice(None), singles[number], lengths[number])

    def _observe(
        self, point: Weights, items: slice | list[int], values: FloatArray, lengths: FloatArray
    ) -> None:
        """Give a soup's scores and answer lengths on some items of the split to the models."""
        soup = self._soup_of[point]
        self._model.observe(soup, items, values)
        if self._bound_model is not None:
            self._bound_model.observe(soup, items, lengths)

    def _refit(self) -> None:
        """Fit the models to all answers, and note how many they were."""
        self._known_at_fit = self._model.known
        self._model.fit()
        if self._bound_model is not None:
            self._bound_model.fit()

    # ---------------------------------------------------------------- asking

    def ask(self) -> Query | None:
        """The next query: while exploring, one that tells most; after that, the rest of the split for a best soup."""
        if self._stop_reason is None:
            query = self._explore()
            if query is not None:
                return query
        # Which soup is confirmed depends on all answers.
        if self._open:
            return None
        if self._known_at_fit < self._model.known:
            self._refit()
        return self._confirm()

    def _explore(self) -> Query | None:
        """The query that tells most about which soup is best; None, with the reason noted, at the end.

        Its samples are marked as requested.
        """
        model = self._model
        mean, cov = model.objective()
        leader, rivals, urgency = expected_improvement(mean, cov, RIVALS, self._odds())
        self._stop_reason = self._reason_to_end(leader, rivals)
        if self._stop_reason:
            return None

        worth = self._worth_of_samples(leader, rivals, urgency)
        soup, categories = self._choose(worth)
        # The first sample of each category that was not requested.
        next_samples = model.unrequested[soup, categories].argmax(axis=-1)
        samples = self._enough(soup, list(zip(categories, next_samples, strict=True)))
        items: list[int] = []
        for c, b in samples:
            items.extend(model.item_samples[c][b].tolist())

        # The leader must still be able to answer the whole split.
        if not self._affords(len(items) + len(model.unrequested_items(leader))):
            self._stop_reason = StopReason(reason="the budget ends")
            return None
        for c, b in samples:
            model.requested[soup, c, b] = True
        return self._open_query(soup, items)

    def _reason_to_end(self, leader: int, rivals: IntArray) -> StopReason | None:
        """Why exploring ends here; None while it goes on. Notes when it last checked the gain."""
        if not self._model.unrequested.any():
            return StopReason(reason="every soup has answered the whole split")
        if not self._stops:
            return None

        # Check whether more answers would pay only after each third of a split: the gain takes long to compute.
        split_size = len(self._space.categories)
        if self._spent < self._spent_at_check + split_size // 3:
            return None
        self._spent_at_check = self._spent
        gain = self._model.finishing_gain(np.array([leader, *rivals]), self._odds())
        if gain >= ENOUGH_GAIN:
            return None
        return StopReason(reason="more answers would add", gain=gain)

    def _worth_of_samples(self, leader: int, rivals: IntArray, urgency: FloatArray) -> FloatArray:
        """What the next sample of each soup and category tells of the rivals' leads [S, C].

        A sample lowers the variance of the difference of a rival and the leader by cov^2 / var,
        where cov is that of the difference with the sample's score and var that of the score.
        `urgency` [rivals] is how fast a rival's expected improvement changes with its variance.
        """
        slopes = self._model.slopes(np.array([leader, *rivals]))
        categories = slopes.shape[1]
        worth = np.zeros((len(self._points), categories))
        for c in range(categories):
            posterior = self._model.posterior(c)
            of_leader = slopes[0, c] * posterior.next_covariance[leader]
            of_rivals = slopes[1:, c, None] * posterior.next_covariance[rivals]
            variance = np.maximum(posterior.next_variance, TINY)
            worth[:, c] = urgency @ ((of_rivals - of_leader) ** 2 / variance)
        return worth

    def _choose(self, worth: FloatArray) -> tuple[int, list[int]]:
        """The soup, and categories of it, whose next samples tell most per item.

        A request counts as a batch of items at least, so categories are taken together, best
        first, as long as that raises the ratio of worth to items.
        """
        least_items = max(self._space.full_batch, self._space.min_items)
        unrequested = self._model.unrequested
        available = unrequested.any(axis=2)
        next_sample = unrequested.argmax(axis=2)
        price = self._model.size[np.arange(unrequested.shape[1]), next_sample]
        price = np.where(available, price, np.inf)

        # Worth and items [S, C] of the best category, of the best two, ..
        order = np.argsort(-worth / price, axis=1, kind="stable")
        total_worth = np.cumsum(np.take_along_axis(worth, order, 1), axis=1)
        total_items = np.cumsum(np.take_along_axis(price, order, 1), axis=1)
        ratio = total_worth / np.maximum(total_items, least_items)
        # Never chosen: a category without a sample left, or less than a whole split where only that counts.
        ratio[~np.isfinite(total_items)] = -1.0
        if self._space.whole:
            ratio[:, :-1] = -1.0

        soup = int(np.argmax(ratio.max(axis=1)))
        count = int(ratio[soup].argmax()) + 1
        return soup, sorted(order[soup, :count].tolist())

    def _enough(self, soup: int, samples: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """These samples (category, number) of a soup, and more of its samples until they have `min_items`.

        Samples are added from the category of which the least share was requested. If fewer than
        `min_items` of the split would be left for another request, they are added too.
        """
        sizes = np.nan_to_num(self._model.size, posinf=0)
        # Share of its category that is requested with each sample and those before it [C, B].
        share = sizes.cumsum(axis=1) / sizes.sum(axis=1, keepdims=True)
        unrequested = self._model.unrequested[soup]
        further = [(c, b) for c, b in np.argwhere(unrequested).tolist() if (c, b) not in samples]
        requested = sum(sizes[sample] for sample in samples)
        remaining = sizes[unrequested].sum() - requested
        for sample in sorted(further, key=lambda sample: share[sample]):
            if min(requested, remaining) >= self._space.min_items:
                break
            samples = [*samples, sample]
            requested += sizes[sample]
            remaining -= sizes[sample]
        return samples

    def _odds(self) -> FloatArray:
        """Probability [S] that a soup keeps to all bounds; 1 if there are none."""
        if self._bound_model is None:
            return np.ones(len(self._points))
        return self._bound_model.odds()

    def _confirm(self) -> Query | None:
        """The rest of the split for the best soup that the budget lets finish.

        None once the best has answered all, or enough soups were confirmed. Counts the soup as confirmed, and marks its
        samples as requested.
        """
        for soup in self._by_promise():
            items = self._model.unrequested_items(soup)
            if not items or self._confirmed >= FINALISTS:
                return None
            if self._affords(len(items)):
                self._confirmed += 1
                self._model.request_split(soup)
                return self._open_query(soup, items)
        return None

    def _by_promise(self) -> list[int]:
        """Soups that may still win, the posterior's best first."""
        mean, _ = self._model.objective()
        odds = self._odds()
        order = np.argsort(-mean, kind="stable")
        return [int(soup) for soup in order if odds[soup] >= LIKELY]

    def _affords(self, items: int) -> bool:
        """Whether the budget covers this number of further items."""
        return self._budget is None or self._spent + items <= self._budget

    def _open_query(self, soup: int, items: list[int]) -> Query:
        """The query of a soup on some items, noted as open and its items as spent."""
        self._spent += len(items)
        query = Query(weights=self._points[soup], items=tuple(items))
        # The whole split is a query without items.
        if len(items) == len(self._space.categories):
            query = Query(weights=self._points[soup])
        self._open.append(query)
        return query

    def tell(self, query: Query, result: Result) -> None:
        self._open.remove(query)
        items = slice(None) if query.items is None else list(query.items)
        self._observe(query.weights, items, result.values, result.lengths)
        if self._model.known >= GROWTH * self._known_at_fit:
            self._refit()

    # ---------------------------------------------------------------- result

    def best(self) -> Weights:
        """The posterior's best of the soups that answered the whole split.

        If the search was cut short, it is the best of all that answered anything.
        """
        answered = np.isfinite(self._model.values)
        if not answered.any():
            raise UserError(
                "the search ended without a result: raise optimiser.max_trials or optimiser.max_items"
            )
        complete = answered.all(axis=1)
        if self._stop_reason and complete.any():
            candidates = np.flatnonzero(complete)
        else:
            candidates = np.flatnonzero(answered.any(axis=1))
        # If no soup is likely to keep to the bounds, all count.
        admissible = self._odds()[candidates] >= LIKELY
        if admissible.any():
            candidates = candidates[admissible]

        # Equal means (but for rounding): fewer ingredients, then the earlier point.
        mean, _ = self._model.objective()
        ingredients = (self._model.table[candidates] > 0).sum(axis=1)
        order = np.lexsort((ingredients, -mean[candidates].round(9)))
        return self._points[int(candidates[order[0]])]

    def summary(self) -> SearchEnd:
        """Why the search ended, and the soups that may be as good as the pick (one-sided 95 %).

        With bounds, also the objective of the best soup if they are ignored (`without_guards`).
        """
        mean, cov = self._model.objective()
        pick = self._soup_of[self.best()]
        variance = self._model.surprise() * difference_variances(cov, pick)
        lead = (mean[pick] - mean) / np.sqrt(variance)
        best_first = np.argsort(-mean, kind="stable")
        is_close = lead[best_first] < ONE_SIDED_95
        indistinguishable = best_first[is_close & (best_first != pick)]
        odds = self._odds()
        leader, rivals, _ = expected_improvement(mean, cov, RIVALS, odds)
        gain = self._model.finishing_gain(np.array([leader, *rivals]), odds)

        return SearchEnd(
            stopped=self._stop_reason or StopReason(reason="a limit of the run"),
            indistinguishable=tuple(
                self._points[soup] for soup in indistinguishable[:LISTED_SOUPS]
            ),
            indistinguishable_count=len(indistinguishable),
            finishing_gain=gain,
            without_guards=None if self._bound_model is None else float(mean.max()),
        )


def merits_of(space: SearchSpace) -> FloatArray | None:
    """The ingredients' own objectives [K], if their scores are known."""
    if space.singles is None:
        return None
    categories = np.array(space.categories)
    means = [space.singles[:, categories == name].mean(axis=1) for name in space.coefficients]
    return space.objective(np.stack(means, axis=1))


def item_samples(space: SearchSpace, seed: int) -> list[list[IntArray]]:
    """[category][sample]: positions of items in the split. The samples double in size; if only whole splits count, a
    category has one.

    The seed decides the order of the groups, and every prefix is a random sample of groups.
    """
    _, group = np.unique(space.groups, return_inverse=True)
    group_order = np.random.default_rng(seed).permutation(group.max() + 1)
    rank = group_order[group]
    order = np.argsort(rank, kind="stable")
    categories = np.array(space.categories)[order]

    samples = []
    for name in space.coefficients:
        items = order[categories == name]
        if space.whole:
            samples.append([items])
        else:
            samples.append(_doubling_samples(items, rank[items]))
    return samples


def _doubling_samples(items: IntArray, rank: IntArray) -> list[IntArray]:
    """Cut the items of a category where groups end, near 1/8, 1/4 and 1/2 of the items.

    `rank` is the place of each item's group in the random order, equal within a group; items are sorted by it. A cut
    inside a group would let two samples share the draw of that group. A cut before FIRST_SAMPLE items is left out.
    """
    group_ends = 1 + np.flatnonzero(np.diff(rank))
    if not len(group_ends):  # a single group cannot be cut
        return [items]
    cuts = set()
    for halvings in range(1, MOST_SAMPLES):
        size = len(items) >> halvings
        if size >= FIRST_SAMPLE:
            nearest = np.argmin(abs(group_ends - size))
            cuts.add(int(group_ends[nearest]))
    return np.split(items, sorted(cuts))


# ---------------------------------------------------------------- what is looked at next


def expected_improvement(
    mean: FloatArray, cov: FloatArray, most: int, odds: FloatArray
) -> tuple[int, IntArray, FloatArray]:
    """(leader, its rivals, how fast each rival's improvement grows with its variance).

    The rivals are the `most` soups with the largest expected improvement over the leader,
    EI = s (phi(z) + z Phi(z)) of the difference to it, so dEI / ds^2 = phi(z) / 2s (Jones et al.
    1998). `odds` [S] are the probabilities of keeping to the bounds: the leader is likely to keep to
    them, and improvements are weighed by the odds (Gardner et al. 2014).
    """
    # If no soup is likely to keep to them, the one with the best odds leads.
    likely = odds >= min(LIKELY, np.max(odds))
    leader = int(np.argmax(np.where(likely, mean, -np.inf)))

    sd = np.sqrt(difference_variances(cov, leader))
    z = (mean - mean[leader]) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    improvement = sd * (density + z * _normal_cdf(z)) * odds
    improvement[leader] = -1  # below all others: the leader is not a rival

    order = np.argsort(-improvement, kind="stable")
    rivals: IntArray = order[: min(most, len(mean) - 1)]
    urgency = (density * odds)[rivals] / (2 * sd[rivals])
    return leader, rivals, urgency


def difference_variances(cov: FloatArray, soup: int) -> FloatArray:
    """Variance of each soup's difference to one of them [S]; never quite zero."""
    variances = np.diag(cov) + cov[soup, soup] - 2 * cov[soup]
    return np.asarray(np.maximum(variances, TINY))


def _normal_cdf(z: FloatArray) -> FloatArray:
    """Phi(z), the standard normal distribution function."""
    return np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in z])


class BoundModel:
    """How likely each soup keeps to the bounds of a search.

    A bound is about the scores, which the search's surrogate knows, or about the lengths of the
    answers, which have a surrogate of their own. Lengths count as minus multiples of the
    reference's mean, so that more is better and a margin is a share.
    """

    def __init__(
        self,
        scores: SoupModel,
        space: SearchSpace,
        bounds: SearchBounds,
        points: Sequence[Weights],
    ) -> None:
        """`scores` is the search's surrogate, whose soups are the `points`."""
        self._scores = scores
        self._bounds = bounds.bounds
        self._reference = bounds.reference
        # Lengths are 0 if tokens are not counted.
        self._unit = float(bounds.reference.lengths.mean()) or 1.0
        single_lengths = None
        if space.lengths is not None:
            single_lengths = -space.lengths / self._unit
        self._lengths = SoupModel(
            scores.table, scores.item_samples, scores.weights, rise=0.0, singles=single_lengths
        )
        self._items = [bound.covers(space.categories) for bound in self._bounds]
        self._reference_soup = _position_of(bounds.against, space, points)

    def observe(self, soup: int, items: slice | list[int], lengths: FloatArray) -> None:
        """Take in the tokens of a soup's answers to some items of the split."""
        if any(bound.lengths for bound in self._bounds):
            self._lengths.observe(soup, items, -lengths / self._unit)

    def fit(self) -> None:
        """Fit the lengths, if any are known; the scores are fitted by the search."""
        if self._lengths.known:
            self._lengths.fit()

    def odds(self) -> FloatArray:
        """Probability [S] that a soup's true loss is within all bounds."""
        odds = np.ones(len(self._scores.table))
        for bound, items in zip(self._bounds, self._items, strict=True):
            odds *= self._odds_within(bound, items)
        return odds

    def _odds_within(self, bound: Bound, items: BoolArray) -> FloatArray:
        """Probability [S] that a soup's mean over the items of a bound (mask [I]) is high enough.

        While no lengths are known, a bound on lengths rules out no soup.
        """
        model = self._lengths if bound.lengths else self._scores
        if bound.lengths and not model.known:
            return np.ones(len(model.table))
        # Lengths come with the scores: what was requested of one model was requested of the other.
        model.requested = self._scores.requested
        mean, cov = model.total(model.shares(items))
        if self._reference_soup is None:
            # The reference's answers are given, so only the soup's mean is uncertain.
            reference = self._reference.values
            if bound.lengths:
                reference = -self._reference.lengths / self._unit
            difference = mean - reference[items].mean()
            variance = np.diag(cov)
        else:
            # The search models the reference too, and its error is correlated with the soups'.
            difference = mean - mean[self._reference_soup]
            variance = difference_variances(cov, self._reference_soup)

        # Variances grow by how much more the answers vary than the surrogate believes.
        sd = np.sqrt(model.surprise() * np.maximum(variance, TINY))
        return _normal_cdf((bound.margin + difference) / sd)


def _position_of(model: str, space: SearchSpace, points: Sequence[Weights]) -> int | None:
    """Position of a single model among the points; None if it is not an ingredient, or not a point."""
    if model not in space.ingredients:
        return None
    vertex = vertices(len(space.ingredients))[space.ingredients.index(model)]
    if vertex not in points:
        return None
    return points.index(vertex)
