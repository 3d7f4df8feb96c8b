"""What selection would pick, as far as it can be known before anything is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from souping.core import Item, ItemScores, Selection, UserError
from souping.records import selection_dict
from souping.scores import ScoreMatrix


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The selection and where its scores come from; `selection` is None where the candidates must be measured first.

    `sizes` are the numbers of ingredients that are possible.
    """

    basis: str
    sizes: tuple[int, ...]
    selection: Selection | None = None
    scores: ScoreMatrix | None = None
    trouble: str = ""
    steady: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        found = selection_dict(self.selection, self.scores) if self.selection else None
        return {"basis": self.basis, "sizes": list(self.sizes), "selection": found, "steady": self.steady}


def choose(run: Any, names: Sequence[str], items: Sequence[Item], stored: Callable[[str], ItemScores | None]) -> Choice:
    """Select from published scores, or from the store where it holds every candidate on the select fold.

    `stored(candidate)` gives its scores on `items`, or None where one is missing.
    """
    if run.scores.published:
        return _from(run, run.scores.matrix(names, lambda: None), "published scores")
    known = {name: stored(name) for name in names}
    whole = {name: scores for name, scores in known.items() if scores is not None}
    if len(whole) == len(names) and items:
        return _from(run, ScoreMatrix.from_items(whole), "the store, which has every candidate on the select fold")
    return Choice(basis="scores that must be measured first", sizes=_possible(run, len(names)))


def _from(run: Any, scores: ScoreMatrix, basis: str) -> Choice:
    try:
        selection = run.selector.select(scores)
    except UserError as error:
        return Choice(basis=basis, sizes=(), scores=scores, trouble=str(error))
    sizes = (len(selection.ingredients),)
    return Choice(basis=basis, sizes=sizes, selection=selection, scores=scores, steady=steady(run.selector, scores))


def _possible(run: Any, candidates: int) -> tuple[int, ...]:
    """How many ingredients the selector may pick: of k candidates, of all, or any number."""
    kind = type(run.selector).__name__
    if kind == "All":
        return (candidates,)
    k = getattr(run.selector, "k", None)
    if kind == "TopK" and k:
        return (min(k, candidates),)
    return tuple(range(1, min(k or candidates, candidates) + 1))


def steady(selector: Any, scores: ScoreMatrix) -> tuple[float, float] | None:
    """The range of thresholds around the selector's own, in steps of 0.01, that gives the same ingredients."""
    own = getattr(selector, "threshold", None)
    if own is None:
        return None
    wanted = selector.select(scores).ingredients

    def same(value: float) -> bool:
        try:
            return bool(replace(selector, threshold=value).select(scores).ingredients == wanted)
        except UserError:
            return False

    grid = [round(float(v), 2) for v in np.arange(0.01, 1.001, 0.01)]
    low = high = own
    for value in reversed([v for v in grid if v < own]):
        if not same(value):
            break
        low = value
    for value in (v for v in grid if v > own):
        if not same(value):
            break
        high = value
    return low, high
