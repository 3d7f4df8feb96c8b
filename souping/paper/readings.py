"""Readings of the paper's selection rule, and what each selects from its tables.

The stated rule is Algorithm 1: |rho| < 0.2 by Pearson, ties to the better overall. The paper's prose leaves others
open: signed correlations, other ties, wider thresholds, one expert per cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import Literal, get_args

import numpy as np

from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import Json, JsonObject, Names, ScoreMatrix, Selection, UserError
from souping.paper.published import PaperTable
from souping.selection import SoCE, SoCECluster

Sign = Literal["absolute", "signed"]
Ties = Literal["overall", "all", "first"]
PAPERS_SELECTION = "the paper's"
CLUSTERS = "one expert per cluster (the abstract; selector=soce_cluster)"


def reading(threshold: float = 0.2, sign: Sign = "absolute", ties: Ties = "overall") -> SoCE:
    """One way to read the rule; the defaults are Algorithm 1."""
    return SoCE(
        correlation=pearson,
        objective=Mean(),
        threshold=threshold,
        sign=sign,
        ties=ties,
        fallback="error",
    )


STATED = reading()
READINGS = {
    "|rho| < 0.2, ties=overall": STATED,
    "|rho| < 0.2, ties=all": reading(ties="all"),
    "|rho| < 0.2, ties=first": reading(ties="first"),
    "|rho| < 0.3, ties=overall": reading(0.3),
    "|rho| < 0.3, ties=all": reading(0.3, ties="all"),
    "|rho| < 0.5, ties=overall": reading(0.5),
    "rho < 0.2, ties=overall": reading(sign="signed"),
    "rho < 0.2, ties=all": reading(sign="signed", ties="all"),
}


def difference(ingredients: Sequence[str], chosen: Sequence[str]) -> str:
    """How a selection differs from the paper's `chosen` models, in words; empty if the paper does not name them."""
    if not chosen:
        return ""
    added = [f"adds {name}" for name in ingredients if name not in chosen]
    lacking = [f"lacks {name}" for name in chosen if name not in ingredients]
    return ", ".join(added + lacking) or PAPERS_SELECTION


def spans(
    scores: ScoreMatrix, sign: Sign, ties: Ties
) -> list[tuple[float, float, tuple[str, ...]]]:
    """(lower end, upper end, ingredients) of each range of thresholds with one selection.

    A selection changes only where the threshold is the value of a correlation, so one threshold between each two is
    tried, and neighbours with equal ingredients become one range.
    """
    rho = pearson(scores.values).rho[np.triu_indices(len(scores.categories), k=1)]
    if sign == "absolute":
        rho = np.abs(rho)
    edges = np.unique(rho).tolist()
    ranges: list[tuple[float, float, tuple[str, ...]]] = []
    last_names: tuple[str, ...] | None = None
    for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
        # A correlation of 1 is the last edge already.
        if high <= low:
            continue
        names = reading((low + high) / 2, sign, ties).select(scores).ingredients
        start = low
        if names == last_names:
            start, _, _ = ranges.pop()
        ranges.append((start, high, names))
        last_names = names
    return ranges


def selections(table: PaperTable) -> JsonObject:
    """What each reading of Algorithm 1 selects from one table, and each range of thresholds.

    `stated` is the literal reading; `beside` says how a selection differs from the paper's own, if it names one.
    """
    scores = table.scores
    chosen = table.chosen
    stated = STATED.select(scores)
    thresholds: list[Json] = []
    for low, high, names in spans(scores, "absolute", "overall"):
        beside = difference(names, chosen)
        thresholds.append({"above": low, "to": high, "ingredients": list(names), "beside": beside})
    notes = _notes(stated, chosen)
    if chosen:
        notes.append(_where(scores, chosen))
    return {
        "title": table.title,
        "paper": list(chosen),
        "stated": list(stated.ingredients),
        "beside": difference(stated.ingredients, chosen),
        "readings": _readings(table),
        "thresholds": thresholds,
        "notes": notes,
        "command": table.command,
    }


def _readings(table: PaperTable) -> list[Json]:
    """One object per selection: its `ingredients`, how they differ from the paper's (`beside`), and the `rules`, the
    readings that select them."""
    scores = table.scores
    rules: dict[Names, list[Json]] = {}
    for rule, selector in READINGS.items():
        names: Names = ()
        with suppress(UserError):  # no category is below the threshold
            names = selector.select(scores).ingredients
        rules.setdefault(names, []).append(rule)
    clusters = SoCECluster(correlation=pearson, objective=Mean()).select(scores).ingredients
    rules.setdefault(clusters, []).append(CLUSTERS)

    rows: list[Json] = []
    for names, same_rules in rules.items():
        beside = "no category is below the threshold"
        if names:
            beside = difference(names, table.chosen)
        rows.append({"ingredients": list(names), "beside": beside, "rules": same_rules})
    return rows


def _notes(stated: Selection, chosen: Sequence[str]) -> list[str]:
    """Remarks on the selection by the stated rule, beside the models that the paper has `chosen`."""
    low = stated.low_correlation
    notes = []
    for name in stated.ingredients:
        if chosen and name not in chosen:
            won = [category for category, expert in stated.experts.items() if expert == name]
            notes.append(f"{name} is the best candidate in {', '.join(won)}.")
    if len(stated.ingredients) == 1:
        notes.append(
            f"One expert for all low-correlation categories ({', '.join(low)}): nothing to soup."
        )
    if len(low) == len(stated.categories):
        notes.append(
            "Every category counts as low-correlation, so the rule takes the winner of each."
        )
    return notes


def _where(scores: ScoreMatrix, chosen: Names) -> str:
    """A sentence on the readings and thresholds that give the paper's own selection."""
    places = []
    for sign, ties in product(get_args(Sign), get_args(Ties)):
        for low, high, names in spans(scores, sign, ties):
            if set(names) == set(chosen):
                places.append(f"{sign}, ties={ties}: {low:.3f} < threshold <= {high:.3f}")
    if not places:
        return "No threshold of any reading (absolute or signed, ties overall, all or first) gives the paper's choice."
    return "The paper's choice comes from " + "; ".join(places) + "."
