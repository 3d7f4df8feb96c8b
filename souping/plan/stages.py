"""Stages of a plan: how many evaluations each takes."""

from __future__ import annotations

from souping.core.types import frozen

IntRange = tuple[int, int]


@frozen
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) if the selection is open.

    With `in_parts` the search decides which soups answer how many items: the pairs are (expected, most), and `models`
    are the whole folds that the items would fill.
    """

    name: str
    models: IntRange
    items: int
    asked: IntRange
    todo: IntRange
    benchmark: str = ""
    in_parts: bool = False
