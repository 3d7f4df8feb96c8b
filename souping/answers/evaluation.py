"""Evaluation of recipes through the store: an answer that is stored is never computed again.

A request for a soup's scores on a split is cut into blocks, by a rule of the evaluator. What the store lacks of a block
goes to a worker as a smaller request, and the response is committed before anything else happens. `executor=local` has
one worker, in this process.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from souping.answers.claims import Measurement, content_of, in_order
from souping.answers.store import Store, StoredAnswers
from souping.core.fields import component
from souping.core.protocols import Evaluator, Executor, LoadedModel, Workers, evaluator_fingerprint
from souping.core.text import named
from souping.core.types import (
    OUTCOMES,
    OWN_BENCHMARK,
    FloatArray,
    Item,
    ItemScores,
    Names,
    Outcome,
    Recipe,
    Record,
    Request,
    Response,
    UserError,
    digest,
)
from souping.core.unit import SCORE_ROUNDING
from souping.evaluate.scoring import Grade, Known, user_scores
from souping.search.loop import RecipeEvaluator


@dataclass(frozen=True, kw_only=True)
class Block:
    """Items of one block, for their answer number `repeat`, from 0.

    The store finds an answer by soup, evaluator, question, `repeat` and `key`, which identifies the block. `known` are
    {item id: record} in the store; the scores of `rescored` items are not stored yet. `missing` items have to be
    answered, together with the rest of their block if its answers depend on each other.
    """

    key: str
    items: tuple[Item, ...]
    repeat: int
    known: Mapping[str, Record]
    rescored: tuple[Item, ...]
    missing: tuple[Item, ...]


@dataclass(kw_only=True)
class Pending:
    """Request that waits for `open` blocks, with its records so far by (item id, repeat), their lengths in tokens, and
    what they cost: `seconds` of each answer, tokens `generated` and `prefilled`."""

    request: Request
    evaluator: Evaluator
    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    lengths: dict[tuple[str, int], int] = field(default_factory=dict)
    # `submit` holds one, so that nothing is complete before all of its blocks are sent.
    open: int = 1
    reused: int = 0
    seconds: list[float] = field(default_factory=list)
    generated: int = 0
    prefilled: int = 0

    def take(self, block: Block, records: Mapping[str, Record]) -> None:
        """Keep the {item id: record} of a block, and add up what these answers cost."""
        for item in block.items:
            record = records[item.id]
            self.seconds.append(record.seconds)
            self.generated += len(record.tokens)
            self.prefilled += record.prompt_tokens
            # Tokens and prompts are in the store; those of a whole split would fill the memory.
            self.records[item.id, block.repeat] = replace(record, tokens=(), prompt="")
            self.lengths[item.id, block.repeat] = len(record.tokens)

    def scores(self) -> ItemScores:
        """Scores of the request's items, their mean lengths in tokens, and what the answers cost, once all are here."""
        repeats = range(self.evaluator.sampling.answers_per_item)
        answers = []
        lengths = []
        for item in self.request.items:
            answers.append([self.records[item.id, n] for n in repeats])
            lengths.append(np.mean([self.lengths[item.id, n] for n in repeats]))
        return replace(
            item_scores(self.evaluator, self.request.items, answers),
            lengths=np.array(lengths),
            seconds=math.fsum(self.seconds),
            generated=self.generated,
            prefilled=self.prefilled,
            reused=self.reused,
        )


class Evaluation(RecipeEvaluator):
    """Evaluator of recipes through the store. Workers never write to the store; this process does.

    `evaluated` and `reused` count answers. Block requests to the workers have numbers of their own; those of the caller
    stay with `Pending.request`.
    """

    def __init__(
        self,
        store: Store,
        evaluator: Evaluator,
        serve: Callable[[Recipe], LoadedModel],
        ends: Callable[[Recipe], tuple[int, ...]],
        advance: Callable[[int], None],
        workers: Workers | None = None,
        benchmark: str = OWN_BENCHMARK,
        grade: Grade = user_scores,
    ) -> None:
        """Without `workers`, the evaluator runs in this process, and `serve` makes soups with missing answers ready.

        `workers` make the soups themselves, and know the evaluator by the name of its `benchmark`. `ends` gives the end
        tokens that a soup's answers depend on, `advance` gets the number of answered items, and `grade` calls the
        user's own scorers.
        """
        self._store = store
        self._evaluator = evaluator
        self._ends = ends
        self._advance = advance
        self._workers = workers or EvaluatorWorker({benchmark: (evaluator, serve)})
        self._benchmark = benchmark
        self._grade = grade
        # {number of a block request: (block request, the request that waits for it, block)}
        self._sent: dict[int, tuple[Request, Pending, Block]] = {}
        # {number: request} of those with all of their answers that `collect` has not returned yet.
        self.answered: dict[int, Pending] = {}
        self._requests = 0
        # {fingerprint of a soup: {ids of items: scores}} as they were read, until the soup gets answers.
        self._stored_scores: dict[str, dict[Names, ItemScores]] = {}
        self.evaluated = 0
        self.reused = 0
        sampling = evaluator.sampling
        self.length_key = sampling.length_key
        self.full_batch = sampling.full_batch
        self.min_items = self._workers.min_items
        self.answers_per_item = sampling.answers_per_item

    @property
    def slots(self) -> int:
        return self._workers.slots

    @property
    def whole_splits(self) -> bool:
        return self._evaluator.scoring.whole_splits

    def key(self, recipe: Recipe) -> str:
        """The evaluator's fingerprint for this soup, under which the store keeps its answers."""
        return evaluator_fingerprint(self._evaluator.for_recipe(recipe))

    # ------------------------------------------------------------ requests

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        """Scores of one soup on items, in the items' order."""
        return self.all_scores([recipe], items)[0]

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        """Scores of each soup on the items, in the order of the soups."""
        for number, recipe in enumerate(soups):
            self.submit(Request(number=number, recipe=recipe, items=tuple(items)))
        by_number = {}
        for _ in soups:
            request, scores = self.collect()
            by_number[request.number] = scores
        return [by_number[number] for number in range(len(soups))]

    def submit(self, request: Request) -> None:
        """Take what is stored, and send the rest to the workers, block by block."""
        pending = Pending(request=request, evaluator=self._evaluator.for_recipe(request.recipe))
        repeats = pending.evaluator.sampling.answers_per_item
        for block in self._blocks(pending.evaluator, request.recipe, request.items, repeats):
            self._send(pending, block)
        # The one that `Pending.open` began with.
        self._close_one(pending)

    def collect(self, number: int | None = None) -> tuple[Request, ItemScores]:
        """(a submitted request that has all of its answers, its scores); waits until a request has all.

        It is the first that had all, or that of this `number`, which is one of those `answered`.
        """
        while not self.answered:
            block_request, response = self._workers.take()
            self._finish(*self._sent.pop(block_request.number), response)
        if number is None:
            number = next(iter(self.answered))
        pending = self.answered.pop(number)
        return pending.request, pending.scores()

    def _send(self, pending: Pending, block: Block) -> None:
        """Send what the store lacks of a block to the workers; give the request a block that is stored, or answered
        at once."""
        recipe = pending.request.recipe
        # New scores of stored answers are stored first.
        if block.rescored:
            records = [block.known[item.id] for item in block.rescored]
            scored = self._commit(recipe, pending.evaluator, block, block.rescored, records)
            block = replace(block, known={**block.known, **scored})
        if not block.missing:
            self._give(pending, block, {})
            return
        pending.open += 1
        self._requests += 1
        block_request = Request(
            number=self._requests,
            recipe=recipe,
            items=block.missing,
            repeat=block.repeat,
            benchmark=self._benchmark,
        )
        response = self._workers.put(block_request)
        # The response comes later, in `collect`.
        if response is None:
            self._sent[block_request.number] = block_request, pending, block
        else:
            self._finish(block_request, pending, block, response)

    def _finish(
        self, block_request: Request, pending: Pending, block: Block, response: Response
    ) -> None:
        """Commit a block's answers and give them to the request that waits for them."""
        recipe = block_request.recipe
        items = block_request.items
        seconds = response.seconds / len(items)
        records = [replace(record, seconds=seconds) for record in response.records]
        committed = self._commit(recipe, pending.evaluator, block, items, records)
        pending.evaluator.hosting.release(recipe.fingerprint, items)
        self._give(pending, block, committed)
        self._close_one(pending)

    def _close_one(self, pending: Pending) -> None:
        pending.open -= 1
        if not pending.open:
            self.answered[pending.request.number] = pending

    def _commit(
        self,
        recipe: Recipe,
        evaluator: Evaluator,
        block: Block,
        items: Sequence[Item],
        records: list[Record],
    ) -> dict[str, Record]:
        """Store the answers as they came, let the user's scorers score answers without a score, and store these scores.

        Returns {item id: scored record}.
        """
        key = (recipe, evaluator_fingerprint(evaluator), evaluator.settings, block.key, items)
        self._store.add(*key, records)
        if any(math.isnan(record.score) for record in records):
            # Puts the scores into `records`. Those before an error are stored too.
            error = score_missing(items, records, self._grade, self._store.known_scores)
            self._store.add(*key, records)
            if error is not None:
                raise error
        return {record.item: record for record in records}

    def _give(self, pending: Pending, block: Block, records: Mapping[str, Record]) -> None:
        """Give a block's answers to a request, what the store had and the new `records`, and count them."""
        pending.take(block, {**block.known, **records})
        self._stored_scores.pop(pending.request.recipe.fingerprint, None)
        reused = len(block.items) - len(block.missing)
        self.evaluated += len(block.missing)
        self.reused += reused
        pending.reused += reused
        self._advance(len(block.items))

    # ------------------------------------------------------------ what is stored; nothing is computed

    def missing_answers(
        self, recipe: Recipe, items: Sequence[Item], any_block: bool = False
    ) -> dict[tuple[str, int], int]:
        """{(question, number of its answer): count} of the answers that would be computed.

        The count is 1, but answers with higher numbers than any stored one are counted together, by the first such
        number. With `any_block` nothing is missing if the stored answers, from whatever blocks, cover the items.
        """
        if any_block and self.stored_scores(recipe, items).items == tuple(items):
            return {}
        evaluator = self._evaluator.for_recipe(recipe)
        stored = self._store.load(recipe.fingerprint, evaluator_fingerprint(evaluator))
        repeats = evaluator.sampling.answers_per_item
        # Answers from this number on are not stored for any item. Those of number 0 are always looked up.
        unstored = min(max(1, stored.repeats), repeats)
        missing = dict[tuple[str, int], int]()
        for block in self._blocks(evaluator, recipe, items, unstored):
            missing |= {(item.answer_digest, block.repeat): 1 for item in block.missing}
        if repeats > unstored:
            missing |= {(item.answer_digest, unstored): repeats - unstored for item in items}
        return missing

    def stored_answers(self, recipe: Recipe, items: Sequence[Item]) -> dict[str, list[Record]]:
        """{item id: its answers} of the items that have all of their answers in the store.

        An answer from the block that these items make now is preferred to one from another block, as a search leaves
        it.
        """
        evaluator = self._evaluator.for_recipe(recipe)
        stored = self._store.load(recipe.fingerprint, evaluator_fingerprint(evaluator))
        repeats = evaluator.sampling.answers_per_item
        if stored.repeats < repeats:
            return {}
        answers = dict[str, list[Record]]()
        for block in self._blocks(evaluator, recipe, items, repeats):
            for name, record in block.known.items():
                # Tokens of a whole split would fill the memory.
                answers.setdefault(name, []).append(replace(record, tokens=()))
        for item in items:
            if len(answers.get(item.id, ())) >= repeats:
                continue
            answers[item.id] = []
            for repeat in range(repeats):
                first = stored.first(item, repeat)
                if first is not None:
                    answers[item.id].append(replace(first, tokens=()))
        return {name: records for name, records in answers.items() if len(records) == repeats}

    def stored_scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        """Scores of the items with stored answers, which are looked up once."""
        known = self._stored_scores.setdefault(recipe.fingerprint, {})
        names = tuple(item.id for item in items)
        if names not in known:
            known[names] = self._scores_in_store(recipe, items)
        return known[names]

    def _scores_in_store(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        answers = self.stored_answers(recipe, items)
        answered = [item for item in items if item.id in answers]
        if not answered:
            return ItemScores(items=(), values=np.zeros(0))
        evaluator = self._evaluator.for_recipe(recipe)
        return item_scores(evaluator, answered, [answers[item.id] for item in answered])

    def all_stored_scores(
        self, soups: Iterable[Recipe], items: Sequence[Item]
    ) -> tuple[dict[str, ItemScores], dict[str, FloatArray]]:
        """({recipe id: scores} of models with stored answers to all items, {recipe id: values [I]} of those with
        answers to a part, nan elsewhere)."""
        complete = dict[str, ItemScores]()
        partial = dict[str, FloatArray]()
        places = {item.id: place for place, item in enumerate(items)}
        for recipe_id, recipe in {recipe.id: recipe for recipe in soups}.items():
            scores = self.stored_scores(recipe, items)
            if len(scores.items) == len(items):
                complete[recipe_id] = scores
            elif scores.items:
                values = np.full(len(items), np.nan)
                values[[places[item.id] for item in scores.items]] = scores.values
                partial[recipe_id] = values
        return complete, partial

    def measurement(self, models: Sequence[Recipe], items: Sequence[Item]) -> Measurement:
        """How this evaluator measures a claim about models on items."""
        return Measurement.of(
            evaluator_fingerprint(self._evaluator), models, items, self.answers_per_item
        )

    def first_answers(
        self, recipe: Recipe, items: Sequence[Item], measurements: Sequence[Measurement]
    ) -> dict[str, list[Record]]:
        """{item id: its answers in the first of a claim's `measurements` that has all answers to the item}.

        Empty if these are all of the measurement that this evaluator makes now: it reads those answers itself.
        """
        current = self.measurement([recipe], items)
        content = digest(content_of(recipe))
        answers: dict[str, list[Record]] = {}
        from_others = False
        for measurement in measurements:
            # The recipe of this content that answered then; today's if the measurement lacks the model.
            model = measurement.models.get(content, recipe.fingerprint)
            is_other = measurement._replace(models={content: model}) != current
            stored = self._store.load(model, measurement.evaluator)
            for item, earlier_id in zip(in_order(items), measurement.ids, strict=True):
                # The same item may have had another id then.
                earlier_item = replace(item, id=earlier_id)
                records = [stored.first(earlier_item, n) for n in range(measurement.answers)]
                known = [replace(record, item=item.id) for record in records if record]
                if len(known) == measurement.answers and item.id not in answers:
                    answers[item.id] = known
                    from_others |= is_other
        return answers if from_others else {}

    def scores_first_shown(
        self, soups: Sequence[Recipe], items: Sequence[Item], measurements: Sequence[Measurement]
    ) -> list[ItemScores]:
        """Scores of soups of a claim: the answers with which it was first shown stand, and others are evaluated."""
        # {recipe id: {item id: answers}}
        shown = {soup.id: self.first_answers(soup, items, measurements) for soup in soups}
        # Together, as workers and jobs elsewhere take several soups at once.
        new_soups = [soup for soup in soups if not shown[soup.id]]
        new_scores = self.all_scores(new_soups, items)
        scores = {soup.id: result for soup, result in zip(new_soups, new_scores, strict=True)}
        for soup in soups:
            if shown[soup.id]:
                scores[soup.id] = self._completed(soup, items, shown[soup.id])
        return [scores[soup.id] for soup in soups]

    def _completed(
        self, recipe: Recipe, items: Sequence[Item], answers: Mapping[str, list[Record]]
    ) -> ItemScores:
        """Scores by {item id: answers} that were shown, and by new answers of this evaluator to the other items."""
        self.reused += sum(map(len, answers.values()))
        self._advance(len(answers) * self.answers_per_item)
        lengths = {}
        for name, records in answers.items():
            lengths[name] = float(np.mean([len(record.tokens) for record in records]))
        unanswered = [item for item in items if item.id not in answers]
        if unanswered:
            new_scores = self.scores(recipe, unanswered)
            lengths |= zip([item.id for item in unanswered], new_scores.lengths, strict=True)
            answers = {**self.stored_answers(recipe, unanswered), **answers}
        scores = item_scores(self._evaluator, items, [answers[item.id] for item in items])
        return replace(scores, lengths=np.array([lengths[item.id] for item in items]))

    def _blocks(
        self, evaluator: Evaluator, recipe: Recipe, items: Sequence[Item], repeats: int
    ) -> Iterator[Block]:
        """The blocks of these items as the evaluator cuts them, compared with the store."""
        stored = self._store.load(recipe.fingerprint, evaluator_fingerprint(evaluator))
        ends = list(self._ends(recipe))
        for repeat in range(repeats):
            for members in batches_of(evaluator, items, repeat):
                yield _block(evaluator, stored, members, repeat, ends)


def _block(
    evaluator: Evaluator,
    stored: StoredAnswers,
    members: tuple[Item, ...],
    repeat: int,
    ends: list[int],
) -> Block:
    """A block of these items for their answer number `repeat`, compared with the store; `ends` are the soup's end
    tokens."""
    # Batched arithmetic rounds differently with other neighbours, so that an answer of such an evaluator belongs to its
    # block: the key names all members, and a block that lacks one answer is computed whole.
    neighbours = []
    if evaluator.sampling.blocks_matter:
        neighbours = [item.answer_digest for item in members]
    key = digest([neighbours, ends])
    known = dict[str, Record]()
    rescored = list[Item]()
    for item in members:
        record = stored.find(item, repeat, key)
        # The answer is stored, but not its score by the item's present scorer.
        if record is not None and math.isnan(record.score):
            record = evaluator.scoring.rescore(item, record)
            if record is not None:
                rescored.append(item)
        if record is not None:
            known[item.id] = record
    missing = tuple(item for item in members if item.id not in known)
    if missing and evaluator.sampling.blocks_matter:
        missing = members
    return Block(
        key=key,
        items=members,
        repeat=repeat,
        known=known,
        rescored=tuple(rescored),
        missing=missing,
    )


def item_scores(
    evaluator: Evaluator, items: Sequence[Item], answers: Sequence[Sequence[Record]]
) -> ItemScores:
    """Inner scores of the items, and how the answers ended. `answers` are the records of each item, one per repeat."""
    values = evaluator.scoring.item_scores(items, answers)
    factor = evaluator.unit.factor
    noise = []
    reasons = Counter[str]()
    for records, value in zip(answers, values, strict=True):
        noise.append(_noise([record.score for record in records], value))
        reasons.update(record.reason for record in records if record.outcome == "unanswered")
    return ItemScores(
        items=tuple(items),
        values=values * factor,
        truncated=_shares(answers, "truncated"),
        unanswered=_shares(answers, "unanswered"),
        noise=factor**2 * np.array(noise),
        reasons=reasons,
    )


def score_missing(
    items: Sequence[Item],
    records: list[Record],
    grade: Grade,
    known: Callable[[Sequence[Item]], Known],
) -> UserError | None:
    """Score the `records` without a score in place, by their items' own scorers.

    Returns the error at which scoring stopped, if any. `known` looks up scores of equal answers.
    """
    places = [place for place, record in enumerate(records) if math.isnan(record.score)]
    unscored = [items[place] for place in places]
    outputs = [records[place].output for place in places]
    values, error = grade(unscored, outputs, known(unscored))
    for place, value in zip(places, values, strict=True):
        records[place] = replace(records[place], score=value)
    return error


def _shares(answers: Sequence[Sequence[Record]], outcome: Outcome) -> FloatArray:
    """The share of each item's answers that ended with this outcome [I]."""
    shares = []
    for records in answers:
        shares.append(sum(record.outcome == outcome for record in records) / len(records))
    return np.array(shares)


def _noise(scores: Sequence[float], value: float) -> float:
    """Variance of an item's score `value` over the draw of its answers, whose scores are `scores`; nan for one answer,
    or if the value is not their mean (pass@k)."""
    if len(scores) < 2 or not math.isclose(value, np.mean(scores), abs_tol=1e-9):
        return math.nan
    return float(np.var(scores, ddof=1) / len(scores))


# ------------------------------------------------------------ what evaluators return, which may be the user's


def batches_of(
    evaluator: Evaluator, items: Sequence[Item], repeat: int = 0
) -> list[tuple[Item, ...]]:
    """The blocks into which an evaluator cuts these items.

    Raises:
        UserError: an item is in no block, or in two.
    """
    batches = [tuple(block) for block in evaluator.batches(items, repeat) or ()]
    names = [item.id for item in itertools.chain.from_iterable(batches)]
    if sorted(names) != sorted(item.id for item in items):
        raise UserError(
            f"evaluator {named(evaluator)}: its batches have {len(names)} items of {len(items)}: each once"
        )
    return batches


def records_of(
    evaluator: Evaluator, items: Sequence[Item], returned: Iterable[Record]
) -> list[Record]:
    """The records that an evaluator returned for a block, in the items' order.

    Raises:
        UserError: one is missing, or cannot be stored.
    """
    # A user's evaluator may return anything.
    records = [*returned] if isinstance(returned, Iterable) else [returned]
    by_item = {record.item: record for record in records if isinstance(record, Record)}
    if len(records) != len(items) or by_item.keys() != {item.id for item in items}:
        raise UserError(
            f"evaluator {named(evaluator)} returned {len(records)} results: return one Record for each of the "
            f"{len(items)} items"
        )
    return [_plain(by_item[item.id], evaluator) for item in items]


def _plain(record: Record, evaluator: Evaluator) -> Record:
    """The record with Python's own numbers, since numpy's would be stored as bytes; a score may be nan.

    Raises:
        UserError: a field of a user's record has a wrong type or value.
    """
    wrong = ""
    if not all(isinstance(value, Real) for value in (record.score, *record.statistics)):
        wrong = "score and statistics must be numbers"
    # A score outside 0 to 1, up to rounding. With statistics, the score is made of those of all items.
    elif (
        evaluator.unit.fractions
        and not record.statistics
        and abs(record.score - 0.5) > 0.5 + SCORE_ROUNDING
    ):
        wrong = f"score {float(record.score):g} must be a fraction of 1"
    elif not isinstance(record.output, str) or record.outcome not in OUTCOMES:
        wrong = f"output must be a text, outcome one of {', '.join(OUTCOMES)}"
    if wrong:
        raise UserError(f"evaluator {named(evaluator)}, item {record.item!r:.60}: {wrong}")
    return replace(
        record, score=float(record.score), statistics=tuple(map(float, record.statistics))
    )


# ------------------------------------------------------------ workers


class EvaluatorWorker(Workers):
    """The worker of a process: evaluators by the name of their benchmark, each with a function that serves it soups."""

    def __init__(
        self, evaluators: Mapping[str, tuple[Evaluator, Callable[[Recipe], LoadedModel]]]
    ) -> None:
        self._evaluators = evaluators

    def put(self, request: Request) -> Response:
        """The answers to a request, and the seconds that they took without making the soup."""
        evaluator, serve = self._evaluators[request.benchmark]
        evaluator = evaluator.for_recipe(request.recipe)
        model = serve(request.recipe)
        started = time.monotonic()
        returned = evaluator.evaluate(model, request.items, request.repeat)
        records = records_of(evaluator, request.items, returned)
        return Response(records=tuple(records), seconds=time.monotonic() - started)

    @property
    def fingerprints(self) -> dict[str, str]:
        """{benchmark: fingerprint of its evaluator}"""
        return {
            name: evaluator_fingerprint(evaluator)
            for name, (evaluator, _) in self._evaluators.items()
        }


@component
class LocalExecutor(Executor):
    """Soups are made and evaluated in this process, one after another."""

    def start(self, here: Workers, elsewhere: Callable[[], Workers]) -> Workers:
        return here
