"""Stability of a selection: would the selector choose again?

Bootstrap of items, sweep of the threshold, jackknife over models, reliability of categories.

Shape legend: M models, C categories, D bootstrap draws.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from souping.analysis.correlation import (
    GroupSums,
    correlated,
    disattenuated,
    pearson,
    reliability,
)
from souping.core.protocols import Correlation, Selector
from souping.core.text import first_line
from souping.core.types import FloatArray, ScoreMatrix, Selection, UserError, frozen
from souping.report.content import (
    CorrelationPair,
    NamedNumbers,
    OtherChoice,
    SelectionStability,
)

STABILITY_SALT = 0x57AB
# 0.05, 0.06 .. 0.50
THRESHOLDS = tuple(round(0.05 + 0.01 * step, 2) for step in range(46))
PUBLISHED_NOTE = (
    "published scores hold no items: how often an expert would be picked again is not estimable"
)
NO_SELECTION_NOTE = "no bootstrap draw gave a selection: its stability is not estimable"
# {words of an error of a selector: what it is counted as}
REASONS = {
    "the models differ": "a category is constant",
    "low-correlation": "no low-correlation category",
}


def stability(
    scores: ScoreMatrix, selector: Selector, draws: int = 500, seed: int = 0
) -> SelectionStability:
    """Run the selection again on scores that might as well have come out.

    With per-item scores: bootstrap of groups within category strata, the selector run on every draw. Published scores
    have no items, so that part is None. Both get a sweep of the threshold over 0.05..0.50 and a jackknife over models.
    Shares are of the draws that gave a selection.
    """
    # A selector without correlations is shown those by Pearson.
    correlation = selector.deciding_correlation or pearson
    if not scores.items:
        items = None
        tables = None
        method = "threshold sweep and jackknife over models"
        shares = SelectionShares(notes=(PUBLISHED_NOTE,))
        reliabilities = None
    else:
        items = GroupSums.of(scores)
        tables = items.draws(draws, np.random.default_rng([STABILITY_SALT, seed]))
        method = "bootstrap over items"
        shares = _over_draws(tables, scores, selector)
        reliable_shares = map(_number, reliability(items))
        reliabilities = dict(zip(scores.categories, reliable_shares, strict=True))
    return SelectionStability(
        method=method,
        draws=0 if tables is None else len(tables),
        not_estimable=sum(shares.reasons.values()),
        reasons=shares.reasons,
        experts=shares.experts,
        ingredients=shares.ingredients,
        low_correlation=shares.low_correlation,
        sizes=shares.sizes,
        correlations=_pairs(scores, correlation, tables, items),
        reliability=reliabilities,
        threshold=selector.deciding_threshold,
        thresholds=sweep(scores, selector),
        jackknife=jackknife(scores, selector),
        notes=shares.notes,
    )


# ---------------------------------------------------------------- other thresholds, other models


def sweep(scores: ScoreMatrix, selector: Selector) -> tuple[OtherChoice, ...]:
    """The selection at each of THRESHOLDS; empty for a selector that has no threshold."""
    if selector.deciding_threshold is None:
        return ()
    choices = []
    for threshold in THRESHOLDS:
        choice = _choice(selector.with_threshold(threshold), scores)
        choices.append(dataclasses.replace(choice, threshold=threshold))
    return tuple(choices)


def jackknife(scores: ScoreMatrix, selector: Selector) -> tuple[OtherChoice, ...]:
    """The selection without each model in turn."""
    choices = []
    for left_out in scores.models:
        models = tuple(model for model in scores.models if model != left_out)
        candidates = tuple(model for model in scores.candidates if model != left_out)
        if not candidates:  # the only candidate cannot be left out
            continue
        without = dataclasses.replace(
            scores, models=models, candidates=candidates, values=scores.rows(models), items=None
        )
        choice = _choice(selector, without)
        choices.append(dataclasses.replace(choice, left_out=left_out))
    return tuple(choices)


def _choice(selector: Selector, scores: ScoreMatrix) -> OtherChoice:
    """What is selected by these scores, or why nothing is."""
    try:
        selection = select_again(selector, scores)
    except UserError as error:
        return OtherChoice(ingredients=None, low_correlation=None, error=str(error))
    low_correlation = tuple(selection.low_correlation)
    return OtherChoice(
        ingredients=tuple(selection.ingredients), low_correlation=low_correlation, error=None
    )


def select_again(selector: Selector, scores: ScoreMatrix) -> Selection:
    """The selection of scores that might have come out.

    Raises:
        UserError: there is none; also where a selector of the user's fails on scores that it never met in the run.
    """
    try:
        return selector.select_checked(scores)
    except UserError:
        raise
    except Exception as error:  # a failure is counted, and does not end the run
        raise UserError(f"{type(error).__name__}: {first_line(error)}") from error


# ---------------------------------------------------------------- bootstrap over items


@frozen
class SelectionShares:
    """Shares of the bootstrap draws that gave a selection, and why the others gave none."""

    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)  # {why: draws}
    experts: Mapping[str, NamedNumbers] | None = None  # {category: {candidate: share}}
    ingredients: NamedNumbers | None = None  # {candidate: share}
    low_correlation: NamedNumbers | None = None  # {category: share}
    sizes: NamedNumbers | None = None  # {number of ingredients: share}
    notes: tuple[str, ...] = ()


def _over_draws(tables: FloatArray, scores: ScoreMatrix, selector: Selector) -> SelectionShares:
    """The selector's choices by the category means of bootstrap draws, `tables` [D, M, C]."""
    selections = []
    reasons = Counter[str]()
    for means in tables:
        try:
            if not np.isfinite(means).all():
                raise UserError("a category lost all its items")
            drawn = dataclasses.replace(scores, values=means, items=None)
            selections.append(select_again(selector, drawn))
        except UserError as error:
            reasons[_reason(error)] += 1
    if not selections:
        return SelectionShares(reasons=reasons, notes=(NO_SELECTION_NOTE,))
    return _shares(selections, scores, reasons)


def _shares(
    selections: Sequence[Selection], scores: ScoreMatrix, reasons: Mapping[str, int]
) -> SelectionShares:
    """How often these selections chose each expert, ingredient, category and number of ingredients."""
    experts = {category: Counter[str]() for category in scores.categories}
    ingredients = Counter[str]()
    low_correlation = Counter[str]()
    sizes = Counter[int]()
    for selection in selections:
        for category, model in selection.experts.items():
            experts[category][model] += 1
        ingredients.update(selection.ingredients)
        low_correlation.update(selection.low_correlation)
        sizes[len(selection.ingredients)] += 1

    total = len(selections)
    expert_shares = {}
    for category, counts in experts.items():
        if counts:
            chosen = [name for name in scores.candidates if counts[name]]
            expert_shares[category] = {name: counts[name] / total for name in chosen}
    return SelectionShares(
        reasons=reasons,
        experts=expert_shares,
        ingredients={name: ingredients[name] / total for name in scores.candidates},
        low_correlation={name: low_correlation[name] / total for name in scores.categories},
        sizes={str(size): sizes[size] / total for size in sorted(sizes)},
    )


def _reason(error: UserError) -> str:
    """Short reason for an error, without numbers and names, so that equal reasons are counted together."""
    text = str(error)
    for words, reason in REASONS.items():
        if words in text:
            return reason
    # Numbers and names come after the colon.
    return text.split(": ")[0]


# ---------------------------------------------------------------- pairs of categories


def _pairs(
    scores: ScoreMatrix,
    correlation: Correlation,
    tables: FloatArray | None,
    items: GroupSums | None,
) -> tuple[CorrelationPair, ...]:
    """Correlation of every two categories, with limits over the bootstrap draws `tables` [D, M, C].

    `tables` and `items` are None if there are no item scores.
    """
    correlations = correlated(correlation, scores.values)
    bootstrap_low = np.full_like(correlations.rho, np.nan)
    bootstrap_high = bootstrap_low
    without_noise = bootstrap_low
    if tables is not None and items is not None:
        rhos = [correlated(correlation, means).rho for means in tables]
        bootstrap_low, bootstrap_high = percentiles(rhos)
        without_noise = disattenuated(items)

    pairs = []
    for a, b in zip(*np.triu_indices(len(scores.categories), 1), strict=True):
        pair = CorrelationPair(
            a=scores.categories[a],
            b=scores.categories[b],
            rho=_number(correlations.rho[a, b]),
            low=_number(correlations.low[a, b]),
            high=_number(correlations.high[a, b]),
            bootstrap_low=_number(bootstrap_low[a, b]),
            bootstrap_high=_number(bootstrap_high[a, b]),
            disattenuated=_number(without_noise[a, b]),
        )
        pairs.append(pair)
    return tuple(pairs)


def percentiles(rhos: Sequence[FloatArray]) -> FloatArray:
    """2.5 and 97.5 percent points [2, C, C] over the draws that have a correlation; nan if fewer than half do."""
    stack = np.stack(rhos)
    known = 2 * np.isfinite(stack).sum(axis=0) >= len(stack)
    limits = np.full((2, *known.shape), np.nan)
    limits[:, known] = np.nanquantile(stack[:, known], (0.025, 0.975), axis=0)
    return limits


def _number(value: float) -> float | None:
    """A number for JSON, None for nan."""
    return float(value) if np.isfinite(value) else None
