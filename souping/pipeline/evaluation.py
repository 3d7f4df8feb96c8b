"""Evaluation of recipes through the store: what is there is never computed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from souping.core.protocols import Evaluator, Served
from souping.core.types import Item, ItemScores, Recipe, Record
from souping.pipeline.store import Store


class Evaluation:
    """Evaluator of recipes, the pool that serves it soups, and the store that remembers.

    `evaluated` and `reused` count items. `serve` is called only for soups with items that are not in the store.
    """

    def __init__(
        self, store: Store, evaluator: Evaluator, serve: Callable[[Recipe], Served], advance: Callable[[int], None]
    ) -> None:
        self._store, self._evaluator, self._serve, self._advance = store, evaluator, serve, advance
        self.evaluated = self.reused = 0

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        """The ways in which this soup may be asked, the default first."""
        return self._evaluator.choices(recipe)

    def _asking(self, recipe: Recipe, handler: str) -> Evaluator:
        """The evaluator that asks this soup: a handler that it does not have leaves it with its default."""
        mine = self.handlers(recipe)
        chosen = handler if handler in mine else mine[0]
        return self._evaluator.by(chosen) if chosen else self._evaluator

    def known(self, recipe: Recipe, handler: str = "") -> tuple[str, set[str]]:
        """(what keys this soup's answers in the store beside the soup, the items that are there)."""
        asking = self._asking(recipe, handler)
        return asking.fingerprint, set(self._store.load(recipe.fingerprint, asking.fingerprint))

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores:
        """Scores of one soup on items, in the items' order. Each batch is committed before the next begins."""
        asking = self._asking(recipe, handler)
        known = self._store.load(recipe.fingerprint, asking.fingerprint)
        fresh = 0
        for batch in asking.batches(items):
            missing = [item for item in batch if item.fingerprint not in known]
            if missing:
                known.update(self._batch(asking, recipe, missing))
                fresh += len(missing)
            self._advance(len(batch))
        self.evaluated += fresh
        self.reused += len(items) - fresh
        return ItemScores(
            items=tuple(items), values=self._evaluator.aggregate(items, [known[i.fingerprint] for i in items])
        )

    def _batch(self, asking: Evaluator, recipe: Recipe, items: Sequence[Item]) -> dict[str, Record]:
        model, started = self._serve(recipe), time.monotonic()
        records = asking.evaluate(model, items)
        seconds = time.monotonic() - started
        self._store.add(recipe, asking.fingerprint, asking.settings, items, records)
        self._store.add_timing(recipe.fingerprint, asking.fingerprint, len(items), seconds)
        return {item.fingerprint: record for item, record in zip(items, records, strict=True)}
