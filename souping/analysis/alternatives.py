"""What a soup is up against: its own search score, a router by category, and an upper bound over its ingredients.

Shape legend: K ingredients, I items, C categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from souping.core.protocols import Objective
from souping.core.types import ItemScores, ScoreMatrix, frozen
from souping.report.content import Report, Router, UpperBound
from souping.statistics.score_table import ItemTable


@frozen
class RoutedAnswers:
    """A router: `routes` are {category: ingredient}; `scores` has each item's score by the ingredient that answers it.

    If all routes lead to one ingredient, `name` is that ingredient's name. It is never the name of another model.
    """

    name: str
    routes: Mapping[str, str]
    scores: ItemScores


def best_by_category(
    ingredients: Sequence[str], chosen_by: ScoreMatrix, categories: Iterable[str]
) -> dict[str, str]:
    """{category: the ingredient that is best in it by `chosen_by`}

    A category that `chosen_by` lacks goes to the ingredient with the best mean over the categories of `chosen_by`.
    """
    choosing = chosen_by.rows(ingredients)  # [K, C]
    routes = {}
    for category in dict.fromkeys(categories):
        in_category = [name == category for name in chosen_by.categories]
        if any(in_category):
            means = choosing[:, in_category].mean(axis=1)
        else:
            means = choosing.mean(axis=1)
        # Sums in another order differ in the last digits; of equal ingredients, the first counts.
        routes[category] = ingredients[int(means.round(12).argmax())]
    return routes


def routed(
    ingredients: Mapping[str, ItemScores], routes: Mapping[str, str], names: Sequence[str]
) -> RoutedAnswers | None:
    """Each item answered by the ingredient to which the `routes` {category: ingredient} send it.

    `names` are those of all candidates. None if a score is not a fraction of 1.
    """
    columns = [(model.values, model.truncated, model.unanswered) for model in ingredients.values()]
    answers = np.array(columns)  # [K, 3, I]
    if answers.min() < 0 or answers.max() > 1:
        return None

    items = next(iter(ingredients.values())).items
    # The number of the ingredient that answers each item.
    numbers = {name: number for number, name in enumerate(ingredients)}
    routed_to = [numbers[routes[item.category]] for item in items]
    # One of K for each item: [I, 3], turned into three arrays [I].
    values, truncated, unanswered = answers[routed_to, :, range(len(items))].T
    name = "router"
    if name in names:
        name = "router by category"
    if len(set(routes.values())) == 1:
        name = routes[items[0].category]
    scores = ItemScores(items=items, values=values, truncated=truncated, unanswered=unanswered)
    return RoutedAnswers(name=name, routes=routes, scores=scores)


def with_alternatives(
    report: Report,
    search_score: float,
    soup: ItemScores,
    ingredients: Mapping[str, ItemScores],
    router: RoutedAnswers | None,
    objective: Objective,
) -> Report:
    """The report with selection bias, router and upper bound; with selection bias alone if there is no router (scores
    are not fractions).

    The soup and its `ingredients` have scores on the test split. Selection bias is the soup's score on the search split
    minus that on the test split. The router chose by the scores of the select split. The upper bound counts an item as
    the best of the ingredients answers it, which no system can know. Router and upper bound come with the number of
    models in memory and of answers per request.
    """
    unit = report.unit
    table = ItemTable.of(soup.items, objective)
    selection_bias = unit.raw(search_score) - unit.raw(table.score(soup.values))
    report = replace(report, selection_bias=selection_bias)
    if router is None:
        return report
    best = np.max([model.values for model in ingredients.values()], axis=0)
    count = len(ingredients)
    return replace(
        report,
        router=Router(
            score=unit.raw(table.score(router.scores.values)),
            routes=dict(router.routes),
            models=len(set(router.routes.values())),
            answers=1,
        ),
        upper_bound=UpperBound(score=unit.raw(table.score(best)), models=count, answers=count),
    )
