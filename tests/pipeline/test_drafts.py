"""Drafts between the store and an evaluator: which answers are offered, and that drafted ones lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from souping.core.protocols import Drafts, Served
from souping.core.types import Draft, Inquiry, Item, Recipe, Record, Reply, UserError
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.executors import TOGETHER
from souping.pipeline.store import Store
from tests.conftest import FakeEvaluator, make_items, recipe

SKILL = {"a": 5, "b": 3, "a+b": 8}


@dataclass
class FakeVerifier(FakeEvaluator):
    """Verifier whose soups answer with a token of their own; of a draft it takes one token."""

    mode: Drafts = "search"
    offered: list[tuple[tuple[Draft, ...], ...]] = field(default_factory=list)
    stop: int = 10**6

    @property
    def drafts(self) -> Drafts:
        return self.mode

    def evaluate(self, model: Served, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        token = int(model.soup)
        return [
            replace(record, tokens=(token, replicate), prompt_key=record.item)
            for record in super().evaluate(model, items, replicate)
        ]

    def verify(
        self, model: Served, items: Sequence[Item], replicate: int, drafts: Sequence[Sequence[Draft]]
    ) -> list[Record]:
        if len(self.offered) >= self.stop:
            raise KeyboardInterrupt
        self.offered.append(tuple(map(tuple, drafts)))
        return [replace(record, accepted=1) for record in self.evaluate(model, items, replicate)]


def serve(soup: Recipe) -> SimpleNamespace:
    share = soup.weights[0] if soup.ingredients[0] == "a" else 0.0
    return SimpleNamespace(module="+".join(soup.ingredients), soup=str(round(100 * share)))


def evaluation(store: Store, judge: FakeVerifier) -> Evaluation:
    return Evaluation(store, judge, serve, lambda r: (), lambda n: None)


def ask(own: Evaluation, soup: Recipe, items: Sequence[Item]) -> Reply:
    own.submit(Inquiry(number=1, recipe=soup, items=tuple(items), drafts=True))
    return own.collect()[1]


def first_tokens(offered: tuple[tuple[Draft, ...], ...]) -> list[list[int]]:
    return [[draft.tokens[0] for draft in drafts] for drafts in offered]


def test_the_nearest_soups_answers_are_offered_first(tmp_path: Path) -> None:
    items, judge = make_items(7)[:7], FakeVerifier(SKILL)
    with Store(tmp_path / "s") as store:
        own = evaluation(store, judge)
        for soup in (recipe(1.0, 0.0), recipe(0.0, 1.0)):
            own.scores(soup, items)
        assert judge.offered == []  # those were asked plainly
        for weight in (0.5, 0.6, 0.3, 0.46):
            ask(own, recipe(weight, 1 - weight), items)
        assert first_tokens(judge.offered[0])[0] == [0, 100]  # of singles as near as each other
        assert [tokens[0] for tokens in first_tokens(judge.offered[2])] == [50] * 7
        assert first_tokens(judge.offered[3])[0][:3] == [50, 60, 30]
        assert all(draft.prompt_key == item.id for item, (draft, *_) in zip(items, judge.offered[3], strict=True))


def test_drafted_and_plain_answers_lie_apart(tmp_path: Path) -> None:
    items, judge, soup = make_items(7), FakeVerifier(SKILL), recipe(0.5, 0.5)
    with Store(tmp_path / "s") as store:
        own = evaluation(store, judge)
        drafted = ask(own, soup, items)
        assert (drafted.reused, drafted.drafted, drafted.generated) == (0, len(items), 2 * len(items))
        assert ask(own, soup, items).reused == len(items)
        asked = len(judge.asked)
        plain = own.scores(soup, items)
        assert len(judge.asked) == asked + len(items)  # anew
        assert (plain.values == drafted.scores.values).all()
        again = ask(own, soup, items)  # a plain answer serves where a drafted one would do
        assert (again.reused, again.drafted, len(judge.asked)) == (len(items), 0, asked + len(items))
        assert own.missing(soup, items) == own.missing(soup, items, drafts=True) == []
        other = recipe(0.2, 0.8)
        ask(own, other, items)
        assert len(own.missing(other, items)) == len(items)
        assert own.missing(other, items, drafts=True) == []


@pytest.mark.parametrize(
    ("mode", "trial", "choice", "claim"), [("off", 0, 0, 0), ("search", 1, 0, 0), ("all", 1, 1, 0)]
)
def test_who_is_asked_with_drafts(mode: Drafts, trial: int, choice: int, claim: int, tmp_path: Path) -> None:
    items, judge = make_items(3)[:3], FakeVerifier(SKILL, mode=mode)
    with Store(tmp_path / "s") as store:
        own = evaluation(store, judge)
        assert own.drafts == (mode != "off")
        counts = []
        for number, act in enumerate(
            (
                lambda soup: ask(own, soup, items),
                lambda soup: own.all_scores([(soup, "")], items, claimed=False),
                lambda soup: own.all_scores([(soup, "")], items),
            )
        ):
            before = len(judge.offered)
            act(recipe(0.1 * (number + 1), 1 - 0.1 * (number + 1)))
            counts.append(len(judge.offered) - before)
        assert counts == [trial, choice, claim]


class Unscored(FakeVerifier):
    """Verifier whose answers are scored by a scorer of the user's."""

    def evaluate(self, model: Served, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        return [replace(record, score=float("nan")) for record in super().evaluate(model, items, replicate)]

    def rescore(self, item: Item, record: Record) -> Record:
        return replace(record, score=float("nan"))


def test_a_scorer_that_fails_loses_no_answer_of_blocks_that_came_together(tmp_path: Path) -> None:
    items, soup, judge = make_items(40), recipe(0.5, 0.5), Unscored(SKILL)

    def grade(mine: Sequence[Item], outputs: Sequence[str], known: object) -> tuple[list[float], UserError | None]:
        return [float("nan")] * len(mine), UserError("the scorer is broken")

    with Store(tmp_path / "s") as store:
        own = Evaluation(store, judge, serve, lambda r: (), lambda n: None, grade=grade)
        with pytest.raises(UserError, match="the scorer is broken"):
            ask(own, soup, items)
        assert len(judge.offered) == 1  # several blocks, verified as one
        again = Evaluation(
            store, judge, serve, lambda r: (), lambda n: None, grade=lambda m, o, k: ([1.0] * len(m), None)
        )
        assert ask(again, soup, items).reused == TOGETHER * judge.batch_size < len(items)


def test_a_killed_search_goes_on_with_what_it_had(tmp_path: Path) -> None:
    items, soup = make_items(40), recipe(0.5, 0.5)
    first, second = FakeVerifier(SKILL, stop=1), FakeVerifier(SKILL)
    with Store(tmp_path / "s") as store, pytest.raises(KeyboardInterrupt):
        ask(evaluation(store, first), soup, items)
    with Store(tmp_path / "s") as store:
        reply = ask(evaluation(store, second), soup, items)
    assert first.asked + second.asked == [item.id for item in items]
    assert (reply.reused, reply.drafted) == (7 * TOGETHER, len(items))  # what was drafted before is counted as it was


def test_answers_of_several_numbers_are_drafts_of_their_own_number(tmp_path: Path) -> None:
    items, judge = make_items(3)[:3], FakeVerifier(SKILL, times=2)
    with Store(tmp_path / "s") as store:
        own = evaluation(store, judge)
        ask(own, recipe(0.5, 0.5), items)
        ask(own, recipe(0.6, 0.4), items)
        assert [draft.tokens for (draft,) in judge.offered[2]] == [(50, 0)] * 3
        assert [draft.tokens for (draft,) in judge.offered[3]] == [(50, 1)] * 3


def test_what_drafts_did_is_counted(tmp_path: Path) -> None:
    items, judge = make_items(5), FakeVerifier(SKILL)
    with Store(tmp_path / "s") as store:
        own = evaluation(store, judge)
        own.scores(recipe(1.0, 0.0), items)
        reply = ask(own, recipe(0.5, 0.5), items)
        assert (reply.drafted_items, reply.drafted, reply.whole_drafts) == (len(items), len(items), 0)
        assert 0 < reply.drafted_seconds <= reply.seconds
        plain = ask(own, recipe(1.0, 0.0), items)
        assert (plain.reused, plain.drafted_items, plain.drafted_seconds) == (len(items), 0, 0.0)
