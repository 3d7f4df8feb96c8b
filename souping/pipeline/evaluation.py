"""Evaluation of recipes through the store: what is there is never computed again."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from souping.core.executor_protocols import RecipeEvaluator, Workers
from souping.core.protocols import Evaluator, Served
from souping.core.types import (
    Answered,
    BlockTask,
    FloatArray,
    Inquiry,
    Item,
    ItemScores,
    Outcome,
    Recipe,
    Record,
    Reply,
    digest,
)
from souping.evaluate.scoring.own import Grade, grades
from souping.pipeline.executors import EvaluatorWorker, LocalWorkers, batches_of
from souping.pipeline.store import Store
from souping.pipeline.stored_answers import StoredAnswers


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


@dataclass(kw_only=True)
class PendingInquiry:
    """Inquiry on its way: records by item as far as they are there, and blocks that are out."""

    inquiry: Inquiry
    asking: Evaluator
    answers: dict[str, list[Record | None]]
    out: int = 0
    reused: int = 0
    costs: list[Cost] = field(default_factory=list)

    def take(self, block: Block, records: Mapping[str, Record]) -> None:
        for item in block.items:
            one = records[item.id]
            self.costs.append(Cost(one.seconds, len(one.tokens), one.prompt_tokens))
            self.answers[item.id][block.replicate] = replace(one, tokens=(), prompt="")  # they are in the store

    def reply(self) -> Reply:
        items = self.inquiry.items
        answers = [[record for record in self.answers[item.id] if record is not None] for item in items]
        return Reply(
            scores=item_scores(self.asking, items, answers),
            seconds=math.fsum(cost.seconds for cost in self.costs),
            generated=sum(cost.generated for cost in self.costs),
            prefilled=sum(cost.prefilled for cost in self.costs),
            reused=self.reused,
        )


class Cost(NamedTuple):
    """Seconds that an answer took when it was first given, and its tokens, generated and prefilled."""

    seconds: float
    generated: int
    prefilled: int


@dataclass(kw_only=True)
class BlockOut:
    """Block that a worker has, and the inquiries that wait for it."""

    recipe: Recipe
    asking: Evaluator
    block: Block
    waiting: list[PendingInquiry]


class Evaluation(RecipeEvaluator):
    """Evaluator of recipes, the workers that ask soups, and the store that remembers; this process alone writes to it.

    `evaluated` and `reused` count answers, `answers` those to an item. `serve` is called only for soups with answers
    that are not in the store, unless `workers`, to whom the evaluator is known by its `side`, do that. `ends` gives a
    soup's end tokens, which its answers depend on; `grade` calls scorers of the user's.
    """

    def __init__(
        self,
        store: Store,
        evaluator: Evaluator,
        serve: Callable[[Recipe], Served],
        ends: Callable[[Recipe], tuple[int, ...]],
        advance: Callable[[int], None],
        workers: Workers | None = None,
        side: str = "",
        grade: Grade = grades,
    ) -> None:
        self._store, self._evaluator, self._ends, self._advance = store, evaluator, ends, advance
        self._workers = workers or LocalWorkers(EvaluatorWorker({side: (evaluator, serve)}))
        self._side, self._grade = side, grade
        self._tasks = 0
        self._out: dict[int, BlockOut] = {}
        self._done: deque[PendingInquiry] = deque()
        self.evaluated = self.reused = 0
        self.length_key = evaluator.length_key
        self.block, self.answers = evaluator.block, evaluator.answers

    @property
    def slots(self) -> int:
        return self._workers.slots

    @property
    def whole_folds(self) -> bool:
        return self._evaluator.whole_folds

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        """The ways in which this soup may be asked, the default first."""
        return self._evaluator.choices(recipe)

    def key(self, recipe: Recipe, handler: str = "") -> str:
        """What keys this soup's answers in the store beside the soup, the items and their blocks."""
        return self._asking(recipe, handler).fingerprint

    def missing(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> list[tuple[str, int]]:
        """(question, number of the answer) of all that would be asked."""
        blocks = self._blocks(self._asking(recipe, handler), recipe, items)
        return [(item.question, block.replicate) for block in blocks for item in block.asked]

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores:
        """Scores of one soup on items, in the items' order. What comes is committed before more is asked."""
        return self.all_scores([(recipe, handler)], items)[0]

    def all_scores(self, asks: Sequence[tuple[Recipe, str]], items: Sequence[Item]) -> list[ItemScores]:
        """Scores of several soups on the same items; as many are asked at once as there are workers."""
        replies: dict[int, Reply] = {}
        waiting = deque(enumerate(asks))
        while len(replies) < len(asks):
            while waiting and len(asks) - len(waiting) - len(replies) < self.slots:
                number, (recipe, handler) = waiting.popleft()
                self.submit(Inquiry(number=number, recipe=recipe, items=tuple(items), handler=handler))
            inquiry, reply = self.collect()
            replies[inquiry.number] = reply
        return [replies[number].scores for number in range(len(asks))]

    def submit(self, inquiry: Inquiry) -> None:
        """Take from the store what is there and give the rest to the workers, block by block."""
        asking = self._asking(inquiry.recipe, inquiry.handler)
        slots: dict[str, list[Record | None]] = {item.id: [None] * asking.answers for item in inquiry.items}
        pending = PendingInquiry(inquiry=inquiry, asking=asking, answers=slots)
        for block in self._blocks(asking, inquiry.recipe, inquiry.items):
            self._begin(pending, block)
        if not pending.out:
            self._done.append(pending)

    def collect(self) -> tuple[Inquiry, Reply]:
        """The next inquiry with all of its answers; each block is committed when it comes."""
        while not self._done:
            task, answered = self._workers.take()
            out = self._out.pop(task.number)
            self._finish(out, self._keep(out, answered))
        pending = self._done.popleft()
        return pending.inquiry, pending.reply()

    def _begin(self, pending: PendingInquiry, block: Block) -> None:
        recipe, asking = pending.inquiry.recipe, pending.asking
        if block.rescored:
            old = {item.id: block.known[item.id] for item in block.rescored}
            self._add(recipe, asking, block, block.rescored, list(old.values()))
            graded = self._graded(recipe, asking, block, block.rescored, list(old.values()))
            block = replace(block, known={**block.known, **dict(zip(old, graded, strict=True))}, rescored=())
        if not block.asked:
            self._settle(pending, block, {})
            return
        pending.out += 1
        for out in self._out.values():  # two inquiries of one soup: it is asked once
            if out.recipe.fingerprint == recipe.fingerprint and out.block == block and out.asking == asking:
                out.waiting.append(pending)
                return
        self._tasks += 1
        self._out[self._tasks] = BlockOut(recipe=recipe, asking=asking, block=block, waiting=[pending])
        self._workers.put(
            BlockTask(
                number=self._tasks,
                recipe=recipe,
                items=block.asked,
                side=self._side,
                handler=self._handler(recipe, pending.inquiry.handler),
                replicate=block.replicate,
            )
        )

    def _add(
        self, recipe: Recipe, asking: Evaluator, block: Block, items: Sequence[Item], records: Sequence[Record]
    ) -> None:
        self._store.add(recipe, asking.fingerprint, asking.settings, block.key, items, records)

    def _keep(self, out: BlockOut, answered: Answered) -> list[Record]:
        """Commit a block's answers as they came, with their time."""
        block, each = out.block, answered.seconds / len(out.block.asked)
        records = [replace(record, seconds=each) for record in answered.records]
        self._add(out.recipe, out.asking, block, block.asked, records)
        self._store.add_timing(out.recipe.fingerprint, out.asking.fingerprint, len(block.asked), answered.seconds)
        return records

    def _finish(self, out: BlockOut, records: list[Record]) -> None:
        """Score a block's answers, and give them to whoever waits for them."""
        block = out.block
        records = self._graded(out.recipe, out.asking, block, block.asked, records)
        for pending in out.waiting:
            pending.out -= 1
            self._settle(pending, block, {record.item: record for record in records})
            if not pending.out:
                self._done.append(pending)

    def _graded(
        self, recipe: Recipe, asking: Evaluator, block: Block, items: Sequence[Item], records: list[Record]
    ) -> list[Record]:
        """Records that lie in the store with their scores; those by scorers of the user's are committed."""
        waiting = [number for number, record in enumerate(records) if math.isnan(record.score)]
        if not waiting:
            return records
        mine = [items[number] for number in waiting]
        verdicts, error = self._grade(mine, [records[number].output for number in waiting], self._store.verdicts(mine))
        for number, verdict in zip(waiting, verdicts, strict=True):
            records[number] = replace(records[number], score=verdict)
        self._add(recipe, asking, block, items, records)
        if error is not None:
            raise error
        return records

    def _settle(self, pending: PendingInquiry, block: Block, fresh: Mapping[str, Record]) -> None:
        pending.take(block, {**block.known, **fresh})
        reused = len(block.items) - len(block.asked)
        self.evaluated += len(block.asked)
        self.reused += reused
        pending.reused += reused
        self._advance(len(block.items))

    def _handler(self, recipe: Recipe, handler: str) -> str:
        """A handler that this soup does not have leaves it with its default."""
        mine = self.handlers(recipe)
        return handler if handler in mine else mine[0]

    def given(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> dict[str, list[Record]]:
        """{item id: its answers} that the store has of a whole fold, of items with all of them. Asks nothing."""
        asking, answers = self._asking(recipe, handler), dict[str, list[Record]]()
        for block in self._blocks(asking, recipe, items):
            for name, record in block.known.items():
                answers.setdefault(name, []).append(replace(record, tokens=()))
        return {name: records for name, records in answers.items() if len(records) == asking.answers}

    def found(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores:
        """Scores of the items whose answers the store has. Asks nothing.

        Those of the whole fold's own blocks come first, then those of other blocks, as a search asks them.
        """
        asking, answers = self._asking(recipe, handler), self.given(recipe, items, handler)
        stored = self._store.load(recipe.fingerprint, asking.fingerprint)
        for item in (item for item in items if item.id not in answers):
            first = [stored.first(item, n) for n in range(asking.answers)]
            if all(first):
                answers[item.id] = [record for record in first if record is not None]
        known = [item for item in items if item.id in answers]
        if not known:
            return ItemScores(items=(), values=np.zeros(0))
        return item_scores(asking, known, [answers[item.id] for item in known])

    def lacking(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> list[tuple[str, int]]:
        """What an analysis would ask: nothing where all that the store has, parts of a fold too, is the whole fold."""
        whole = self.found(recipe, items, handler).items == tuple(items)
        return [] if whole else self.missing(recipe, items, handler)

    def records(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> dict[str, Record]:
        """{item id: the first answer} of all that the store has of a whole fold. Asks nothing."""
        blocks = self._blocks(self._asking(recipe, handler), recipe, items)
        return {name: record for block in blocks if not block.replicate for name, record in block.known.items()}

    def _asking(self, recipe: Recipe, handler: str) -> Evaluator:
        """The evaluator that asks this soup."""
        chosen = self._handler(recipe, handler)
        return self._evaluator.by(chosen) if chosen else self._evaluator

    def _blocks(self, asking: Evaluator, recipe: Recipe, items: Sequence[Item]) -> Iterator[Block]:
        """The blocks of these items, as the evaluator's fixed rule cuts them, against what the store has."""
        stored, ends = self._store.load(recipe.fingerprint, asking.fingerprint), list(self._ends(recipe))
        for replicate in range(asking.answers):
            for members in batches_of(asking, items, replicate):
                yield _block(asking, stored, members, replicate, ends)


def _block(
    asking: Evaluator, stored: StoredAnswers, members: tuple[Item, ...], replicate: int, ends: list[int]
) -> Block:
    """A block against what is stored. It is asked whole or not at all if answers depend on what is asked with them."""
    key = digest([[item.question for item in members] if asking.blocks_matter else [], ends])
    known, rescored = {}, []
    for item in members:
        record = stored.graded(item, replicate, key)
        answer = stored.answer(item, replicate, key)
        if record is None and answer is not None and (record := asking.rescore(item, answer)) is not None:
            rescored.append(item)
        if record is not None:
            known[item.id] = record if record.item == item.id else replace(record, item=item.id)
    missing = tuple(item for item in members if item.id not in known)
    return Block(
        key=key,
        items=members,
        replicate=replicate,
        known=known,
        rescored=tuple(rescored),
        asked=members if missing and asking.blocks_matter else missing,
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
