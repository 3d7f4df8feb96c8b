"""Weight search: ask the optimiser for soups, evaluate them on the search split, tell it; then finish the winner.

Shape legend: K ingredients, I items of the search split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from souping.core.protocols import Objective, Optimiser, Search
from souping.core.scores import value, value_of
from souping.core.text import listed, named
from souping.core.types import (
    TOLERANCE,
    FloatArray,
    Item,
    Items,
    ItemScores,
    JsonObject,
    Names,
    Query,
    Recipe,
    Request,
    Result,
    SearchBounds,
    SearchEnd,
    SearchSpace,
    Trial,
    UserError,
    Weights,
    frozen,
)
from souping.search.points import vertices


@dataclass(kw_only=True)
class SearchCost:
    """What a search took: items, tokens prefilled and generated, seconds of answering.

    All but `evaluated` (items answered anew by this run) were measured when the answers were first given.
    """

    items: int = 0
    evaluated: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def add(self, scores: ItemScores) -> None:
        """Add the cost of one request."""
        self.items += len(scores.items)
        self.evaluated += len(scores.items) - scores.reused
        self.prefilled_tokens += scores.prefilled
        self.generated_tokens += scores.generated
        self.seconds += scores.seconds


@frozen
class SearchResult:
    """Winner of a search and every trial that led to it.

    `summary` is what the optimiser says of its search.
    """

    recipe: Recipe
    result: Result
    trials: tuple[Trial, ...]
    cost: SearchCost = field(default_factory=SearchCost)
    summary: SearchEnd | JsonObject = field(default_factory=dict)


def result_of(scores: ItemScores, objective: Objective) -> Result:
    """Category means and objective of scores."""
    categories = {name: float(values.mean()) for name, values in scores.by_category().items()}
    return Result(
        objective=value(objective, categories),
        categories=categories,
        items=len(scores.items),
        values=scores.values,
        lengths=scores.lengths,
    )


def check_budget(optimiser: Optimiser, items: int) -> None:
    """Refuse a budget of items that does not cover one soup (UserError): no budget is ever exceeded."""
    if optimiser.max_items is not None and optimiser.max_items < items:
        raise UserError(
            f"optimiser.max_items={optimiser.max_items} is below the {items} items of the search split"
        )


class RecipeEvaluator(Protocol):
    """Evaluator with a memory, which scores soups by their recipes and computes no answer twice.

    Up to `slots` requests may be open; their scores come in any order. A run has one over its store, and with
    `executor=files` another around that, which keeps the order of earlier requests.
    """

    full_batch: int
    """Items that are answered together; fewer at a time are slow."""
    min_items: int
    """Items of a request at least, unless the split is smaller."""

    @property
    def slots(self) -> int:
        """Requests that may be open at once."""

    @property
    def whole_splits(self) -> bool:
        """Whether only whole splits give an item's score."""

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        """Scores of one soup on these items; waits until all are there."""

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        """Scores of several soups on the same items."""

    def submit(self, request: Request) -> None:
        """Open a request; `collect` returns it with its scores."""

    def collect(self) -> tuple[Request, ItemScores]:
        """Wait for the next request that is completely answered."""


class RecipeSource(Protocol):
    """Pool as far as a search needs it: names of candidates, and recipes of weights."""

    @property
    def names(self) -> Names:
        """Names of the candidates."""

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The soup of {candidate: weight}."""


def find_weights(
    optimiser: Optimiser,
    objective: Objective,
    seed: int,
    pool: RecipeSource,
    evaluation: RecipeEvaluator,
    ingredients: Names,
    items: Items,
    log: Callable[[Trial], None] = lambda trial: None,
    bounds: SearchBounds | None = None,
) -> SearchResult:
    """The best weights of the `ingredients` (names of candidates) on these items. One ingredient needs no search.

    `log` is called with every trial. The search prefers soups that keep to the `bounds`.
    """
    singles = [pool.recipe({name: 1.0}) for name in ingredients]
    if len(singles) == 1:
        (single,) = singles
        result = result_of(evaluation.scores(single, items), objective)
        return SearchResult(recipe=single, result=result, trials=())
    # Scores of the single ingredients; empty if the search does not need them.
    known = evaluation.all_scores(singles if optimiser.uses_singles else [], items)
    space = _search_space(objective, pool, evaluation, ingredients, items, known)
    space = replace(space, bounds=bounds)
    running = optimiser.start(space, seed)
    name = f"optimiser {named(optimiser)}"
    if not isinstance(running, Search):
        raise UserError(
            f"{name} started a {type(running).__name__}, which is not a Search: subclass it"
        )

    def recipe_of(weights: Weights) -> Recipe:
        """The soup of these weights (UserError if their number is wrong)."""
        if len(weights) != len(ingredients):
            raise UserError(
                f"{name} gave {len(weights)} weights for {len(ingredients)} ingredients"
            )
        return pool.recipe(dict(zip(ingredients, weights, strict=True)))

    # Not strict, as `known` may be empty.
    scores_of = dict(zip(vertices(len(ingredients)), known, strict=False))
    return SearchRun(
        running, optimiser, recipe_of, evaluation, items, space, log, known=scores_of
    ).run()


def _search_space(
    objective: Objective,
    pool: RecipeSource,
    evaluation: RecipeEvaluator,
    ingredients: Names,
    items: Items,
    known: Sequence[ItemScores],
) -> SearchSpace:
    """What a search knows before it starts; `known` are the single ingredients' scores, or empty."""
    names = list(dict.fromkeys(item.category for item in items))
    space = SearchSpace(
        ingredients=ingredients,
        candidates=pool.names,
        categories=tuple(item.category for item in items),
        groups=tuple(item.group for item in items),
        coefficients=dict(zip(names, objective.coefficients(names).tolist(), strict=True)),
        value=value_of(objective, names),
        full_batch=evaluation.full_batch,
        min_items=evaluation.min_items,
        whole=evaluation.whole_splits,
    )
    if not known:
        return space
    return replace(
        space,
        singles=np.array([scores.values for scores in known]),
        lengths=np.array([scores.lengths for scores in known]),
    )


@dataclass(kw_only=True)
class SearchedSoup:
    """Soup of a search."""

    recipe: Recipe
    weights: Weights
    # [2, I] scores and tokens of its answers, nan where there is none yet.
    answers: FloatArray
    # The soup's best trial; None until it has answered all items.
    trial: Trial | None = None
    # Answers that were stored before.
    reused: int = 0

    @property
    def values(self) -> FloatArray:
        """Scores of the soup, [I]."""
        return np.asarray(self.answers[0])


class SearchRun:
    """A running search: the open queries, the cost so far, and what is known about each soup.

    Reused items count, so that a run that is repeated from the store takes the same path.
    """

    def __init__(
        self,
        running: Search,
        optimiser: Optimiser,
        recipe_of: Callable[[Weights], Recipe],
        evaluation: RecipeEvaluator,
        items: Sequence[Item],
        space: SearchSpace,
        log: Callable[[Trial], None],
        known: Mapping[Weights, ItemScores] | None = None,
    ) -> None:
        """`running` is the search that `optimiser` started; `known` are scores of soups from before it."""
        self._name = f"optimiser {named(optimiser)}"
        self._space = space
        self._search = running
        self._optimiser = optimiser
        self._recipe_of = recipe_of
        self._evaluation = evaluation
        self._items = tuple(items)
        self._log = log
        self._cost = SearchCost()
        self._trials = list[Trial]()
        self._soups: dict[Weights, SearchedSoup] = {}
        self._open: dict[int, Query] = {}
        self._known_scores = dict(known or {})
        self._started_trials = 0
        self._requested_items = 0  # of open requests too
        self._last_request = 0  # number of the latest request
        self._ended = False  # whether a limit of the run ended the search
        self._counted = set[Weights]()  # soups that started a trial

    def run(self) -> SearchResult:
        """Ask and tell until the search ends or reaches a limit; then finish the winner. Results come in any order."""
        for weights, known in self._known_scores.items():
            soup = self._soup(weights)
            soup.answers = np.array([known.values, known.lengths])
            soup.reused = len(known.values)  # evaluated before the search
            self._note(soup, self._result(soup.answers))
        self._ask()
        while self._open:
            self._take()
            self._ask()
        winner = self._winner()
        # Soups that were dropped before they had answered all items are trials of a part of the split.
        for soup in self._soups.values():
            if soup.trial is None and np.isfinite(soup.values).any():
                self._note(soup, self._result(soup.answers), whole=False)
        return SearchResult(
            recipe=winner.recipe,
            result=winner.result,
            trials=tuple(self._trials),
            cost=self._cost,
            summary=self._search.summary(),
        )

    def _ask(self) -> None:
        """Submit queries of the search, as many as may be open at once."""
        while not self._ended and len(self._open) < self._evaluation.slots:
            query = self._search.ask()
            if query is None:
                return
            _check_query(query, self._name, len(self._items), self._optimiser.scales)
            if not self._admits(query):
                self._ended = True
                return
            self._submit(query)

    def _soup(self, weights: Weights) -> SearchedSoup:
        """The soup of these weights; one that is new to the search is added without answers."""
        if weights not in self._soups:
            recipe = self._recipe_of(weights)
            # Rows: the scores and the tokens of the answers.
            unknown = np.full((2, len(self._items)), np.nan)
            self._soups[weights] = SearchedSoup(recipe=recipe, weights=weights, answers=unknown)
        return self._soups[weights]

    def _admits(self, query: Query) -> bool:
        """Whether a query is within the limits.

        That enough of the budget is left to finish one soup is up to an optimiser that asks for parts of a split.
        """
        trials = self._optimiser.max_trials
        budget = self._optimiser.max_items
        if trials is not None and self._starts_trial(query) and self._started_trials >= trials:
            return False
        if budget is None:
            return True
        price = len(self._items if query.items is None else query.items)
        return self._requested_items + price <= budget

    def _starts_trial(self, query: Query) -> bool:
        """Whether a query counts as a new trial: the first one of a soup, or one of the whole split."""
        return query.items is None or query.weights not in self._counted

    def _submit(self, query: Query) -> None:
        """Send a query's items to the evaluator; a query without items is of the whole split."""
        if self._starts_trial(query):
            self._counted.add(query.weights)
            self._started_trials += 1
        soup = self._soup(query.weights)
        items = self._items
        if query.items is not None:
            items = tuple(self._items[place] for place in query.items)
        self._last_request += 1
        self._requested_items += len(items)
        self._open[self._last_request] = query
        self._evaluation.submit(Request(number=self._last_request, recipe=soup.recipe, items=items))

    def _take(self, tell: bool = True) -> None:
        """Collect the answers to one query and record them; `tell` the search unless it has ended."""
        request, scores = self._evaluation.collect()
        query = self._open.pop(request.number)
        self._cost.add(scores)
        result = self._observe(query, scores)
        if tell:
            self._search.tell(query, result)

    def _observe(self, query: Query, scores: ItemScores) -> Result:
        """Record a soup's new scores: a trial if it was evaluated on the whole split, or now has all of its answers."""
        soup = self._soups[query.weights]
        whole_split = query.items is None
        places = slice(None) if query.items is None else list(query.items)
        answers = np.full((2, len(self._items)), np.nan)
        answers[0, places] = scores.values
        answers[1, places] = scores.lengths
        # An optimiser may evaluate a soup on the whole split again: the newest answers replace all others.
        if whole_split:
            soup.answers = answers
            soup.reused = scores.reused
        else:
            soup.answers = np.where(np.isfinite(answers), answers, soup.answers)
            soup.reused += scores.reused
        if whole_split or (soup.trial is None and np.isfinite(soup.values).all()):
            self._note(soup, self._result(soup.answers))
        result = replace(self._result(answers), values=scores.values, lengths=scores.lengths)
        return replace(result, seconds=scores.seconds, tokens=scores.generated)

    def _note(self, soup: SearchedSoup, result: Result, whole: bool = True) -> None:
        """Record and log a trial of a soup. Of several trials, the soup keeps the one with the best objective."""
        trial = Trial(
            number=len(self._trials),
            recipe=soup.recipe,
            weights=soup.weights,
            result=result,
            reused=soup.reused,
            whole=whole,
        )
        self._trials.append(trial)
        self._log(trial)
        if soup.trial is None or result.objective > soup.trial.result.objective:
            soup.trial = trial

    def _result(self, answers: FloatArray) -> Result:
        """Means of the scores of `answers` [2, I]: scores and tokens, nan for items without an answer."""
        values, lengths = answers
        known = np.flatnonzero(np.isfinite(values))
        means: dict[str, list[float]] = {name: [] for name in self._space.coefficients}
        for place in known:
            means[self._items[place].category].append(float(values[place]))
        categories = {name: float(np.mean(scores)) for name, scores in means.items() if scores}
        # Unknown while a category has no answer.
        objective = math.nan
        if len(categories) == len(means):
            objective = float(self._space.objective(np.array([*categories.values()])))
        return Result(
            objective=objective,
            categories=categories,
            items=len(known),
            values=values,
            lengths=lengths,
        )

    def _winner(self) -> Trial:
        """The optimiser's best soup, evaluated on the rest of the split.

        If the budget does not cover the rest: the best soup that was fully evaluated.
        """
        soup = self._soup(self._search.best())
        unanswered = np.flatnonzero(~np.isfinite(soup.values)).tolist()
        limit = self._optimiser.max_items
        if limit is not None and self._requested_items + len(unanswered) > limit:
            trials = [searched.trial for searched in self._soups.values()]
            complete = [trial for trial in trials if trial is not None]
            if complete:
                return max(complete, key=lambda trial: trial.result.objective)
        if unanswered:
            self._submit(Query(weights=soup.weights, items=tuple(unanswered)))
            self._take(tell=False)
        assert soup.trial is not None, "its whole split is answered now"
        return soup.trial


def _check_query(query: Query, name: str, items: int, scales: Sequence[float]) -> None:
    """Refuse a query that cannot be evaluated: the search may be the user's.

    Raises:
        UserError: it is not a query, its weights are not a point of the simplex or of a scaled one, or a position is
            not in the split.
    """
    if not isinstance(query, Query) or not all(0 <= place < items for place in query.items or ()):
        raise UserError(f"{name}: {query!r:.60} must be a Query with positions below {items}")
    total = sum(query.weights)
    sums = (1.0, *scales)
    is_allowed = any(math.isclose(total, allowed, abs_tol=TOLERANCE) for allowed in sums)
    if min(query.weights) < 0 or not is_allowed:
        raise UserError(
            f"{name}: weights={list(query.weights)} must sum to {listed(map(str, sums))}, none below 0"
        )


def trial_limit(optimiser: Optimiser, size: int, items: int) -> int | None:
    """The largest number of trials of a search over `size` ingredients on a split of `items`; None if unlimited."""
    affordable = None
    if optimiser.max_items is not None and items:
        affordable = optimiser.max_items // items
    limits = (optimiser.count(size), optimiser.max_trials, affordable)
    return min((limit for limit in limits if limit is not None), default=None)
