"""Evaluates recipes through the store: what is there is never computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from souping.core import FloatArray, Item, ItemScores, Recipe, Record
from souping.protocols import Evaluator, Served
from souping.store import Store


class Evaluation:
    """An evaluator, the kitchen that serves it soups, and the store that remembers.

    `evaluated` and `reused` count items. `serve` is called only for soups with items that are not in the store.
    """

    def __init__(
        self, store: Store, evaluator: Evaluator, serve: Callable[[Recipe], Served], advance: Callable[[int], None]
    ) -> None:
        self._store, self._evaluator, self._serve, self._advance = store, evaluator, serve, advance
        self.evaluated = self.reused = 0

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        """Scores of one soup on items, in the items' order. Each batch is committed before the next begins."""
        known = self._store.load(recipe.fingerprint, self._evaluator.fingerprint)
        fresh = 0
        for batch in self._evaluator.batches(items):
            missing = [item for item in batch if item.fingerprint not in known]
            if missing:
                known.update(self._batch(recipe, missing))
                fresh += len(missing)
            self._advance(len(batch))
        self.evaluated += fresh
        self.reused += len(items) - fresh
        return ItemScores(items=tuple(items), values=self._values(items, [known[i.fingerprint] for i in items]))

    def _values(self, items: Sequence[Item], records: Sequence[Record]) -> FloatArray:
        """[I] values whose mean over a category's items is the category's score."""
        aggregate = getattr(self._evaluator, "aggregate", None)
        values: FloatArray = aggregate(items, records) if aggregate else np.array([r.score for r in records])
        return values

    def _batch(self, recipe: Recipe, items: Sequence[Item]) -> dict[str, Record]:
        records = self._evaluator.evaluate(self._serve(recipe), items)
        self._store.add(recipe, self._evaluator.fingerprint, self._evaluator.settings, items, records)
        return {item.fingerprint: record for item, record in zip(items, records, strict=True)}
