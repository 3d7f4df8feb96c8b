"""How far chance explains a selection: few models correlate by chance, and so do scores dealt to them at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from souping.analysis.correlation import few_models
from souping.analysis.stability import select_again
from souping.core.protocols import Selector
from souping.core.types import IntArray, ScoreMatrix, Selection, UserError

PERMUTATIONS = 99
TAIL = 0.025


def selected(selector: Selector, scores: ScoreMatrix) -> Selection:
    """The selection, with notes on what of its correlations chance alone gives.

    Raises:
        UserError: there is none.
    """
    selection = selector.select_checked(scores)
    if selection.correlations is None:
        return selection
    notes = list(selection.notes)
    by_chance = None
    if selection.low_correlation:
        counts = low_counts_by_chance(selector, scores)
        by_chance = float(counts.mean())
        notes.append(low_note(selection, counts))
    # Correlations over few models are uncertain.
    if warning := few_models(len(scores.models)):
        notes.append(warning)
    return replace(selection, low_by_chance=by_chance, notes=tuple(notes))


def low_counts_by_chance(
    selector: Selector, scores: ScoreMatrix, permutations: int = PERMUTATIONS, seed: int = 0
) -> IntArray:
    """Numbers of low-correlation categories [permutations] after each category's scores were dealt to the models at
    random."""
    random = np.random.default_rng(seed)
    counts = []
    for _ in range(permutations):
        values = random.permuted(scores.values, axis=0)
        try:
            dealt = select_again(selector, replace(scores, values=values, items=None))
        except UserError:  # no category is below the threshold
            counts.append(0)
            continue
        counts.append(len(dealt.low_correlation))
    return np.array(counts)


def low_note(selection: Selection, counts: IntArray) -> str:
    """`9 of 10 categories are low-correlation; ... 8.7 on average: no more than chance`.

    `counts` are the numbers of such categories by chance.
    """
    low = len(selection.low_correlation)
    # p-values of a permutation test, among which the selection itself counts as one permutation.
    as_many = (1 + (counts >= low).sum()) / (1 + len(counts))
    as_few = (1 + (counts <= low).sum()) / (1 + len(counts))
    verdict = "no more than chance"
    if as_many <= TAIL:
        verdict = "more than chance"
    elif as_few <= TAIL:
        verdict = "fewer than by chance"
    return (
        f"{low} of {len(selection.categories)} categories are low-correlation; with each category's scores dealt "
        f"to the models at random, {counts.mean():.1f} on average: {verdict}"
    )
