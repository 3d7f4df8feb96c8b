"""Evaluation of recipes through the store: what is there is never computed again."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from souping.core.protocols import Evaluator, Served
from souping.core.types import FloatArray, Item, ItemScores, Outcome, Recipe, Record, digest
from souping.pipeline.store import IMPORTED, Store, StoredAnswers


@dataclass(frozen=True, kw_only=True)
class Block:
    """Items of a block, for their n-th answer: what the store knows of them, and which of them are asked.

    `known` is {item: record}; the records of `rescored` items have a score that the store does not have yet.
    """

    key: str
    items: tuple[Item, ...]
    replicate: int
    known: Mapping[str, Record]
    rescored: tuple[Item, ...]
    asked: tuple[Item, ...]


class Evaluation:
    """Evaluator of recipes, the pool that serves it soups, and the store that remembers.

    `evaluated` and `reused` count answers. `serve` is called only for soups with answers that are not in the store.
    `ends` gives a soup's end tokens, which its answers depend on.
    """

    def __init__(
        self,
        store: Store,
        evaluator: Evaluator,
        serve: Callable[[Recipe], Served],
        ends: Callable[[Recipe], tuple[int, ...]],
        advance: Callable[[int], None],
    ) -> None:
        self._store, self._evaluator, self._serve, self._ends, self._advance = store, evaluator, serve, ends, advance
        self.evaluated = self.reused = 0

    @property
    def answers(self) -> int:
        """Answers to an item."""
        return self._evaluator.answers

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        """The ways in which this soup may be asked, the default first."""
        return self._evaluator.choices(recipe)

    def key(self, recipe: Recipe, handler: str = "") -> str:
        """What keys this soup's answers in the store beside the soup, the items and their blocks."""
        return self._asking(recipe, handler).fingerprint

    def missing(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> list[tuple[str, int]]:
        """(question, number of the answer) of all that would be asked. Writes nothing."""
        blocks = self._blocks(self._asking(recipe, handler), recipe, items)
        return [(item.question, block.replicate) for block in blocks for item in block.asked]

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores:
        """Scores of one soup on items, in the items' order. Each block is committed before the next begins."""
        asking = self._asking(recipe, handler)
        answers: dict[str, list[Record]] = {item.id: [] for item in items}
        for block in self._blocks(asking, recipe, items):
            records = {**block.known, **self._ask(asking, recipe, block)}
            for item in block.items:  # their tokens are in the store, and many
                answers[item.id].append(replace(records[item.id], tokens=()))
            self.evaluated += len(block.asked)
            self.reused += len(block.items) - len(block.asked)
            self._advance(len(block.items))
        return item_scores(self._evaluator, items, [answers[item.id] for item in items])

    def records(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> dict[str, Record]:
        """{item id: the first answer} of all that the store has of a whole fold. Asks nothing."""
        blocks = self._blocks(self._asking(recipe, handler), recipe, items)
        return {name: record for block in blocks if not block.replicate for name, record in block.known.items()}

    def _asking(self, recipe: Recipe, handler: str) -> Evaluator:
        """The evaluator that asks this soup: a handler that it does not have leaves it with its default."""
        mine = self.handlers(recipe)
        chosen = handler if handler in mine else mine[0]
        return self._evaluator.by(chosen) if chosen else self._evaluator

    def _blocks(self, asking: Evaluator, recipe: Recipe, items: Sequence[Item]) -> Iterator[Block]:
        """The blocks of these items, as the evaluator's fixed rule cuts them, against what the store has."""
        stored, ends = self._store.load(recipe.fingerprint, asking.fingerprint), list(self._ends(recipe))
        for replicate in range(asking.answers):
            for members in asking.batches(items, replicate):
                yield _block(asking, stored, members, replicate, ends)

    def _ask(self, asking: Evaluator, recipe: Recipe, block: Block) -> dict[str, Record]:
        """Commit the new scores of old answers, and ask for what is missing; {item: record} of the latter."""
        store, key = self._store, asking.fingerprint
        if block.rescored:
            old = [block.known[item.id] for item in block.rescored]
            store.add(recipe, key, asking.settings, block.key, block.rescored, old)
        if not block.asked:
            return {}
        model, started = self._serve(recipe), time.monotonic()
        records = asking.evaluate(model, block.asked, block.replicate)
        seconds = time.monotonic() - started
        store.add(recipe, key, asking.settings, block.key, block.asked, records)
        store.add_timing(recipe.fingerprint, key, len(block.asked), seconds)
        return {record.item: record for record in records}


def _block(
    asking: Evaluator, stored: StoredAnswers, members: tuple[Item, ...], replicate: int, ends: list[int]
) -> Block:
    """A block against what is stored. Answers from elsewhere stand in any; the rest of it is asked whole or not at all
    where answers depend on what is asked with them."""
    own = [item for item in members if stored.answer(item, replicate, IMPORTED) is None]
    key = digest([[item.question for item in own] if asking.blocks_matter else [], ends])
    known, rescored = {}, []
    for item in members:
        record = stored.graded(item, replicate, key) or stored.graded(item, replicate, IMPORTED)
        answer = stored.answer(item, replicate, key)
        if record is None and answer is not None and (record := asking.rescore(item, answer)) is not None:
            rescored.append(item)
        if record is not None:
            known[item.id] = record if record.item == item.id else replace(record, item=item.id)
    missing = tuple(item for item in members if item.id not in known)
    asked = tuple(own) if missing and asking.blocks_matter else missing
    return Block(
        key=key, items=members, replicate=replicate, known=known, rescored=tuple(rescored), asked=asked or missing
    )


def item_scores(evaluator: Evaluator, items: Sequence[Item], answers: Sequence[Sequence[Record]]) -> ItemScores:
    """Scores of the items, and what became of their answers (in the items' order)."""
    flat = [record for records in answers for record in records]
    values = evaluator.item_scores(items, answers)
    return ItemScores(
        items=tuple(items),
        values=values,
        truncated=_shares(answers, "truncated"),
        unanswered=_shares(answers, "unanswered"),
        noise=np.array([_noise([r.score for r in records], v) for records, v in zip(answers, values, strict=True)]),
        reasons=Counter(record.reason for record in flat if record.outcome == "unanswered"),
    )


def _shares(answers: Sequence[Sequence[Record]], outcome: Outcome) -> FloatArray:
    return np.array([sum(record.outcome == outcome for record in records) / len(records) for records in answers])


def _noise(scores: Sequence[float], value: float) -> float:
    """Variance of an item's score by the draw of its answers; nan where it is not their mean (pass@k, a majority)."""
    if len(scores) < 2 or not math.isclose(value, np.mean(scores), abs_tol=1e-9):
        return math.nan
    return float(np.var(scores, ddof=1) / len(scores))
