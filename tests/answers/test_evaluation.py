"""Evaluation of recipes: the store, which other runs and kills may meet; executors; how soups reach evaluators."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.answers.counted_looks import CountedLooks
from souping.answers.evaluation import Evaluation, LocalExecutor, records_of
from souping.answers.ray_actors import RayExecutor
from souping.answers.store import APPLICATION_ID, Store, StoredAnswers, row_number
from souping.core.folders import hold_folder
from souping.core.protocols import (
    Executor,
    Hosting,
    LoadedModel,
    Sampling,
    Scoring,
    evaluator_fingerprint,
)
from souping.core.types import Candidate, FloatArray, Item, Recipe, Record, UserError
from souping.core.unit import Unit
from souping.evaluate.generate import LocalEvaluator
from souping.merge.local import LocalMerge
from souping.runs.asking import FilesExecutor
from souping.soups import serving
from souping.soups.models import RunPool
from tests.conftest import FakeEvaluator, claim, make_items, recipe, show_report
from tests.support.actors import Busy, requests
from tests.support.choices import differing
from tests.support.models import HeldModel


def serve(recipe: Recipe) -> HeldModel:
    return HeldModel(soup="+".join(recipe.ingredients))


def evaluation(store: Store, judge: FakeEvaluator, ends: tuple[int, ...] = ()) -> Evaluation:
    return Evaluation(store, judge, serve, lambda r: ends, lambda n: None)


def test_nothing_is_evaluated_twice(tmp_path: Path) -> None:
    items = make_items(10)
    judge = FakeEvaluator({"a": 5, "b": 3, "a+b": 8})
    with Store(tmp_path / "s") as store:
        first = evaluation(store, judge)
        scores = first.scores(recipe(1.0, 0.0), items)
        assert scores.values.mean() == 0.5
        assert (first.evaluated, first.reused) == (20, 0)
        second = evaluation(store, judge)
        again = second.scores(recipe(1.0, names=("a",)), items)
        assert (again.values == scores.values).all()
        assert (second.evaluated, second.reused) == (0, 20)
        assert len(judge.asked) == 20


def asked(
    store: Store, judge: FakeEvaluator, items: Sequence[Item], ends: tuple[int, ...] = ()
) -> int:
    """Answers that a soup's evaluation asks for anew; as many as it said beforehand."""
    fresh = evaluation(store, judge, ends)
    expected = sum(fresh.missing_answers(recipe(1.0, 0.0), items).values())
    fresh.scores(recipe(1.0, 0.0), items)
    assert fresh.evaluated == expected
    return fresh.evaluated


def test_a_block_is_asked_whole_and_known_by_its_shape(tmp_path: Path) -> None:
    items = make_items(10)
    judge = FakeEvaluator({"a": 5})
    with Store(tmp_path / "s") as store:
        assert asked(store, judge, items) == 20
        # the last block lost an item, so that its shape is another
        assert asked(store, judge, items[:-1]) == 5
        assert asked(store, judge, items[:14]) == 0
        assert asked(store, judge, items[1:8]) == 7
        # other end tokens end answers elsewhere
        assert asked(store, judge, items, ends=(2, 7)) == 20
        assert asked(store, judge, items) == 0


@pytest.mark.parametrize("answered", [0, 7])
def test_answers_with_which_another_batch_size_finished_a_claim_stand(
    tmp_path: Path, answered: int
) -> None:
    """Whatever settings crashed first: otherwise each crash would leave another draw for later."""
    items = make_items(10)
    soup = recipe(0.5, 0.5)
    with Store(tmp_path / "s") as store:
        crashed = evaluation(store, FakeEvaluator({"a+b": 8}))
        if answered:
            crashed.scores(soup, items[:answered])
        finished = evaluation(store, FakeEvaluator({"a+b": 5}, batch_size=5))
        order = [one.measurement([soup], items) for one in (crashed, finished)]
        (shown,) = finished.scores_first_shown([soup], items, order)
        again = evaluation(store, FakeEvaluator({"a+b": 8}))
        (scores,) = again.scores_first_shown([soup], items, order)
        assert scores.values.tolist() == shown.values.tolist()
        assert again.evaluated == 0


@dataclass
class Alone(FakeEvaluator):
    sampling = Sampling(blocks_matter=False)


def test_where_blocks_do_not_matter_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    items = make_items(10)
    judge = Alone({"a": 5})
    with Store(tmp_path / "s") as store:
        assert [asked(store, judge, part) for part in (items[3:9], items, items[::-1])] == [
            6,
            14,
            0,
        ]


@dataclass(frozen=True, kw_only=True)
class Keeping(Hosting):
    store: Store
    key: str
    rows: list[int]

    def release(self, soup: str, items: Sequence[Item]) -> None:
        self.rows.append(len(self.store.load(soup, self.key)))


@dataclass
class Kept(FakeEvaluator):
    store: Store | None = None
    rows: list[int] = field(default_factory=list)

    @property
    def hosting(self) -> Hosting:
        assert self.store is not None
        return Keeping(store=self.store, key=evaluator_fingerprint(self), rows=self.rows)


def test_an_evaluator_hears_of_answers_once_they_are_stored(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        judge = Kept({"a": 5}, store=store)
        evaluation(store, judge).scores(recipe(1.0, 0.0), make_items(10))
        assert judge.rows == [7, 14, 20]


def test_answers_that_a_search_left_in_parts_are_read(tmp_path: Path) -> None:
    items = make_items(10)
    judge = FakeEvaluator({"a": 5})
    with Store(tmp_path / "s") as store:
        evaluation(store, judge).scores(recipe(1.0, 0.0), items[:3])
        answers = evaluation(store, judge).stored_answers(recipe(1.0, 0.0), items)
        assert list(answers) == [item.id for item in items[:3]]


def test_a_million_answers_are_counted_without_being_listed(tmp_path: Path) -> None:
    items = make_items(3, categories=("c",))
    with Store(tmp_path / "s") as store:
        evaluation(store, Wavering({"a": 5}, times=2)).scores(recipe(1.0, 0.0), items)
        many = evaluation(store, Wavering({"a": 5}, times=10**6))
        missing = many.missing_answers(recipe(1.0, 0.0), items)
        # Two answers to each of the three items are in the store.
        assert sum(missing.values()) == 3 * (10**6 - 2)
        assert len(missing) == 3
        assert not len(many.stored_scores(recipe(1.0, 0.0), items).items)


class ReadAgain(Scoring):
    def rescore(self, item: Item, answer: Record) -> Record | None:
        return replace(answer, score=float(item.answer == "new"))


class Reader(FakeEvaluator):
    scoring = ReadAgain()


@pytest.mark.parametrize("reads", [True, False])
def test_another_reference_needs_no_new_answer_where_an_old_one_can_be_scored(
    tmp_path: Path, reads: bool
) -> None:
    items = make_items(3)
    judge = (Reader if reads else FakeEvaluator)({"a": 5})
    changed = [replace(item, answer="new" if reads else "4") for item in items]
    with Store(tmp_path / "s") as store:
        assert asked(store, judge, items) == 6
        assert asked(store, judge, changed) == (0 if reads else 6)
        assert (
            evaluation(store, judge).scores(recipe(1.0, 0.0), changed).values.tolist() == [1.0] * 6
        )
        assert asked(store, judge, items) == 0


@dataclass
class Wavering(FakeEvaluator):
    """Right in the first of its answers; never answers the first item; the second answer to the next is cut."""

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        records = []
        for record in super().evaluate(model, items, repeat):
            number = int(record.item.split("-")[1])
            score = float(repeat == 0 and number > 0)
            record = replace(record, score=score, outcome="finished")
            if number == 0:
                record = replace(record, outcome="unanswered", reason="no room")
            elif (number, repeat) == (1, 1):
                record = replace(record, outcome="truncated")
            records.append(record)
        return records


def test_several_answers_are_rows_and_their_outcomes_are_counted(tmp_path: Path) -> None:
    items = make_items(3, categories=("c",))
    with Store(tmp_path / "s") as store:
        assert asked(store, Wavering({"a": 5}), items) == 3
        assert asked(store, Wavering({"a": 5}, times=4), items) == 9  # the first is there
        judge = Wavering({"a": 5}, times=4)
        scores = evaluation(store, judge).scores(recipe(1.0, 0.0), items)
    assert judge.asked == []
    assert scores.values.tolist() == [0.0, 0.25, 0.25]
    assert scores.unanswered.tolist() == [1.0, 0.0, 0.0]
    assert scores.truncated.tolist() == [0.0, 0.25, 0.0]
    assert scores.reasons == {"no room": 4}
    # One of four answers is right: their variance is 1/4, that of their mean a quarter of it.
    assert scores.noise.tolist() == pytest.approx([0.0, 0.0625, 0.0625])


ROWS: dict[str, list[Executor]] = {
    "files": [FilesExecutor(max_open=8)],
    "local": [LocalExecutor()],
    "ray": [RayExecutor(actors=2, cpus=0.5)],
}


def test_every_choice_has_a_row() -> None:
    assert differing("executor", ROWS) == {}


@pytest.mark.parametrize(
    "executor",
    [
        *ROWS["files"],
        *ROWS["local"],
        *(pytest.param(one, marks=pytest.mark.slow) for one in ROWS["ray"]),
    ],
)
def test_every_request_comes_back_with_its_own_records(executor: Executor, tmp_path: Path) -> None:
    if isinstance(executor, RayExecutor) and not find_spec("ray"):
        assert "ray" in executor.needs()[0].sentence()
        return
    assert executor.needs() == []
    if isinstance(executor, FilesExecutor):
        # Its workers belong to a run.
        with pytest.raises(LookupError):
            executor.start(Busy(tmp_path), partial(Busy, tmp_path))
        return
    workers = executor.start(Busy(tmp_path), partial(Busy, tmp_path))
    sent = requests(5)
    done = [
        (request, response) for request in sent if (response := workers.put(request)) is not None
    ]
    done += [workers.take() for _ in range(5 - len(done))]
    assert workers.slots >= 1
    workers.close()
    workers.close()
    assert sorted(request.number for request, _ in done) == list(range(5))
    for request, response in done:
        assert [record.item for record in response.records] == [item.id for item in request.items]
        assert {record.score for record in response.records} == {request.recipe.weights[0]}


ITEMS = [Item(id=name, category="c", prompt=name, answer="") for name in ("a", "b")]
GIVEN = [Record(item="a", score=1.0), Record(item="b", score=0.0)]


class Own(LocalEvaluator):
    """An evaluator of the user's."""


class Tool(Own):
    unit = Unit(fractions=False)


@pytest.mark.parametrize(
    "given",
    [
        None,
        GIVEN[:1],
        [*GIVEN, GIVEN[0]],
        [GIVEN[0], Record(item="b", score="good")],  # type: ignore[arg-type]
        [GIVEN[0], Record(item="b", score=75.0)],
    ],
)
def test_a_wrong_result_of_an_evaluator_names_its_file_and_line(given: Any) -> None:
    with pytest.raises(UserError, match=r"evaluator tests.*Own \(.*test_evaluation.py:\d+\)"):
        records_of(Own(), ITEMS, given)


def test_records_come_in_the_items_order_with_plain_numbers() -> None:
    half: Any = np.float32(0.5)
    two: Any = np.float32(2)
    odd = [Record(item="b", score=half, statistics=(two,)), replace(GIVEN[0], score=math.nan)]
    first, second = records_of(Own(), ITEMS, iter(odd))
    assert (first.item, second.item, math.isnan(first.score)) == ("a", "b", True)
    assert [type(number) for number in (second.score, *second.statistics)] == [float, float]
    # what a tool calls a score
    outside = [replace(GIVEN[0], score=23.4), replace(GIVEN[1], score=-3.1)]
    assert [record.score for record in records_of(Tool(), ITEMS, outside)] == [23.4, -3.1]
    # a rounded mean
    assert records_of(Own(), ITEMS, [replace(GIVEN[0], score=1 + 2**-52), GIVEN[1]])[0].score > 1


@dataclass
class FolderEvaluator(FakeEvaluator):
    hosting = Hosting(model_form="folder")
    folders: list[Path] = field(default_factory=list)


@pytest.fixture
def opened(family: Path, tmp_path: Path) -> RunPool:
    pool = [Candidate(name=name, path=family / name) for name in ("ant", "bee")]
    with Store(tmp_path / "store.sqlite") as store:
        return RunPool.fetch(pool, LocalMerge(), store)


def test_a_soup_is_served_as_the_folder_that_would_be_written(
    opened: RunPool, tmp_path: Path
) -> None:
    serve = opened.serving(FolderEvaluator(skill={}))
    recipe = opened.recipe({"ant": 0.5, "bee": 0.5})
    served = serve(recipe)
    opened.merge_pool.write(recipe, tmp_path / "soup")
    assert (served.folder / "model.safetensors").read_bytes() == (
        tmp_path / "soup" / "model.safetensors"
    ).read_bytes()
    assert serve(recipe).folder == served.folder
    other = serve(opened.recipe({"ant": 0.25, "bee": 0.75})).folder
    assert other.is_dir()
    assert not served.folder.exists()
    opened.close()
    assert not other.exists()
    assert not other.parent.exists()


def test_folders_of_a_killed_run_go(
    opened: RunPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SHARED_MEMORY", tmp_path)
    dead = tmp_path / f"{serving.STORED_SOUP_PREFIX}dead"
    live = tmp_path / f"{serving.STORED_SOUP_PREFIX}live"
    dead.mkdir()
    live.mkdir()
    hold_folder(dead).close()
    with hold_folder(live):
        served = opened.serving(FolderEvaluator(skill={}))(
            opened.recipe({"ant": 0.5, "bee": 0.5})
        ).folder
        assert [folder.exists() for folder in (dead, live)] == [False, True]
    opened.close()
    assert not served.parent.exists()


def test_evaluators_that_want_the_module_alike_share_it(opened: RunPool) -> None:
    one = LocalEvaluator(threads=1, device="cpu", max_new_tokens=2)
    two = LocalEvaluator(threads=1, device="cpu", max_new_tokens=3)
    half = LocalEvaluator(threads=1, device="cpu", dtype="bfloat16")
    recipe = opened.recipe({"ant": 0.5, "bee": 0.5})
    module = opened.serving(one)(recipe).module
    assert opened.serving(two)(recipe).module is module
    other = opened.serving(half)(recipe).module
    assert other is not module
    assert str(next(other.parameters()).dtype) == "torch.bfloat16"


def test_a_soup_without_end_tokens_does_not_keep_those_of_the_one_before(
    family: Path, tmp_path: Path
) -> None:
    pool = [Candidate(name=name, path=tmp_path / name) for name in ("ant", "bee")]
    for candidate, ends in zip(pool, ([5], None), strict=True):
        shutil.copytree(family / candidate.name, candidate.path)
        config = json.loads((candidate.path / "config.json").read_text())
        (candidate.path / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
        (candidate.path / "generation_config.json").unlink(missing_ok=True)
    with Store(tmp_path / "store.sqlite") as store:
        opened = RunPool.fetch(pool, LocalMerge(), store)
    serve = opened.serving(LocalEvaluator(threads=1, device="cpu"))
    found = [
        serve(opened.recipe({name: 1.0})).module.generation_config.eos_token_id
        for name in ("ant", "bee", "ant")
    ]
    assert found == [[5], None, [5]]


class CorpusScoring(Scoring):
    def item_scores(self, items: Any, records: Any) -> FloatArray:
        whole = [r.statistics for (r,) in records]
        return np.full(len(items), sum(s[0] for s in whole) / sum(s[1] for s in whole))


class Corpus(FakeEvaluator):
    """A corpus metric: the share of the items' counts, which is no mean of item scores."""

    scoring = CorpusScoring()

    def evaluate(self, model: Any, items: Any, repeat: int = 0) -> list[Record]:
        return [
            Record(item=item.id, score=0.0, statistics=(float(item.answer), 2.0)) for item in items
        ]


def test_statistics_are_kept_and_aggregated(tmp_path: Path) -> None:
    items: list[Item] = make_items(4)
    values = []
    for _ in range(2):  # the second time from the store alone
        with Store(tmp_path / "s.sqlite") as store:
            evaluation = Evaluation(store, Corpus(skill={}), serve, lambda r: (), lambda n: None)
            values.append(evaluation.scores(HALF, items).values)
    assert evaluation.evaluated == 0
    assert values[0].tolist() == values[1].tolist() == [12 / 16] * 8


HALF = recipe(0.5, 0.5)


def score_of(stored: StoredAnswers, item: Item) -> float | None:
    record = stored.find(item, repeat=0, block="block")
    return record.score if record else None


def test_every_part_of_an_answer_comes_back_and_the_first_writer_wins(tmp_path: Path) -> None:
    item = make_items(1)[0]
    record = Record(
        item=item.id,
        score=0.25,
        output="half a character: \ud800",
        statistics=(1.0, 2.5),
        outcome="truncated",
        reason="why",
        repeat=3,
        tokens=(5, 0, 151_643),
        prompt_tokens=12,
        prompt_key="k",
        seconds=0.5,
    )
    with Store(tmp_path / "deep" / "s") as one, Store(tmp_path / "deep" / "s") as two:
        for store, each in ((one, record), (two, replace(record, score=0.75, output="later"))):
            store.add(HALF, "j", {"a": 1}, "block", [item], [each])
        stored = two.load(HALF.fingerprint, "j")
        assert (
            stored.find(item, repeat=3, block="block")
            == stored.first(item, 3)
            == replace(record, output="half a character: ?")
        )
        assert (
            stored.find(item, repeat=0, block="block")
            is stored.find(item, repeat=3, block="another")
            is None
        )
        assert len(two.load(HALF.fingerprint, "other")) == 0


def test_a_new_scorer_finds_the_answer_and_adds_its_score(tmp_path: Path) -> None:
    item = make_items(1)[0]
    other = replace(item, answer="another", category="elsewhere")
    with Store(tmp_path / "s") as store:
        store.add(HALF, "j", {}, "block", [item], [Record(item=item.id, score=1.0, output="x")])
        stored = store.load(HALF.fingerprint, "j")
        answer = stored.find(other, repeat=0, block="block")
        assert answer is not None
        assert (answer.output, answer.score != answer.score, stored.first(other)) == (
            "x",
            True,
            None,
        )
        store.add(HALF, "j", {}, "block", [other], [replace(answer, score=0.0)])
        stored = store.load(HALF.fingerprint, "j")
        assert (len(stored), score_of(stored, item), score_of(stored, other)) == (1, 1.0, 0.0)


def test_a_block_that_breaks_off_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    items = make_items(2)
    records = [Record(item=i.id, score=1.0) for i in items]
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        with pytest.raises(ValueError, match="shorter"):
            one.add(HALF, "j", {}, "block", items, records[:1])
        assert len(two.load(HALF.fingerprint, "j")) == 0
        for store in (two, one):
            store.add(HALF, "j", {}, "block", items, records)
        assert len(one.load(HALF.fingerprint, "j")) == len(items)


def test_answers_are_read_once_until_somebody_writes(tmp_path: Path) -> None:
    items = make_items(3)
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        counts = []
        for store, item in zip((one, two, one), items[:3], strict=True):
            store.add(HALF, "j", {}, "block", [item], [Record(item=item.id, score=1.0)])
            stored = one.load(HALF.fingerprint, "j")
            assert one.load(HALF.fingerprint, "j") is stored
            counts.append(len(stored))
        assert counts == [1, 2, 3]


def test_only_so_many_answers_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = make_items(1)[0]
    monkeypatch.setattr("souping.answers.store.LOADED_BYTES", 1000)
    with Store(tmp_path / "s") as store:
        store.add(
            HALF, "j", {}, "block", [item], [Record(item=item.id, score=1.0, output="x" * 999)]
        )
        stored = store.load(HALF.fingerprint, "j")
        assert store.load(HALF.fingerprint, "j") is not stored


def test_scores_of_stored_answers_are_computed_once_until_the_soup_gets_answers(
    tmp_path: Path,
) -> None:
    items = make_items(10)
    with Store(tmp_path / "s") as store:
        parts = evaluation(store, FakeEvaluator({"a": 5}))
        parts.scores(recipe(1.0, 0.0), items[:3])
        scores = parts.stored_scores(recipe(1.0, 0.0), items)
        assert parts.stored_scores(recipe(1.0, 0.0), items) is scores
        parts.scores(recipe(1.0, 0.0), items)
        assert parts.stored_scores(recipe(1.0, 0.0), items).items == tuple(items)


def foreign(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (("CREATE TABLE items(id, price)", "PRAGMA user_version=1"), "another program's"),
        (("CREATE TABLE soups(fingerprint)", "PRAGMA application_id=7"), "another program's"),
        (("PRAGMA user_version=99",), "layout 99"),
        (
            (
                "CREATE TABLE soups(x)",
                f"PRAGMA application_id={APPLICATION_ID}",
                "PRAGMA user_version=4",
            ),
            "layout 4",
        ),
    ],
)
def test_a_foreign_file_is_not_touched(
    tmp_path: Path, statements: tuple[str, ...], said: str
) -> None:
    file = foreign(tmp_path / "s", *statements)
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"store=.*{said}"):
        Store(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_database_and_sqlites_notation_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("not a database, and longer than a header" * 50)
    with pytest.raises(UserError, match=r"store=.*cannot open"):
        Store(tmp_path / "s")
    with pytest.raises(UserError, match=r"^store=file:x"):
        Store(Path("file:x?mode=memory"))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def full(path: Path) -> list[Item]:
    """A store with something in every table."""
    items = make_items(100)
    with Store(path) as store:
        records = [Record(item=i.id, score=0.5, output="x" * 200) for i in items]
        store.add(HALF, "j", {}, "block", items, records)
        store.add(
            recipe(1.0, 0.0), "j", {}, "block", items[:1], [Record(item=items[0].id, score=1.0)]
        )
        store.hashes["x"] = "1"
        store.remember_folder("f-a", path)
        show_report(CountedLooks(store), claim(HALF, items))
    return items


def read_all(path: Path) -> int:
    with Store(path) as store:
        count = len(store.load(HALF.fingerprint, "j"))
        store.folder_of("f-a"), store.throughput(["s"], "j")
        dict(store.hashes), show_report(CountedLooks(store), claim(HALF, make_items(1)))
    return count


def test_a_damaged_page_is_reported_with_the_command_that_saves_the_rest(tmp_path: Path) -> None:
    full(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    errors = []
    for page in range(1, len(content) // 4096):
        file = tmp_path / f"{page}.sqlite"
        file.write_bytes(content[: 4096 * page] + bytes(4096) + content[4096 * (page + 1) :])
        try:
            read_all(file)
        except UserError as error:
            recovered = f"sqlite3 {file} .recover | sqlite3 {tmp_path}/{page}-saved.sqlite"
            errors.append(f"truncate -s %4096 {file}; {recovered}" in str(error))
    assert len(errors) > 5
    assert all(errors)


@pytest.mark.parametrize(
    "change",
    [
        "grades SET statistics = '{'",
        "grades SET score = 'x'",
        "answers SET tokens = 'x'",
        "answers SET seconds = 'x'",
    ],
)
def test_a_row_that_is_no_answer_is_reported_with_its_file(tmp_path: Path, change: str) -> None:
    item = make_items(1)[0]
    with Store(tmp_path / "s") as store:
        store.add(
            HALF,
            "j",
            {},
            "block",
            [item],
            [Record(item=item.id, score=1.0, output="x", statistics=(1.0,))],
        )
        with store.writing() as db:
            db.execute(f"UPDATE {change}")
        with pytest.raises(UserError, match=r"store="):
            store.load(HALF.fingerprint, "j")


def test_a_digest_that_is_no_text_is_unknown(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.hashes["x"] = "1"
        with store.writing() as db:
            db.execute("UPDATE hashes SET digest = x'ff'")
        assert "x" not in store.hashes


def test_what_referred_to_a_lost_row_belongs_to_nothing_else(tmp_path: Path) -> None:
    items = full(tmp_path / "s")
    other = recipe(0.25, 0.75)
    lost = row_number(recipe(1.0, 0.0).fingerprint)
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        db.execute("DELETE FROM soups WHERE id = ?", (lost,))
        db.execute("DELETE FROM answers WHERE rowid = (SELECT MAX(rowid) FROM answers)")
        db.commit()
    with Store(tmp_path / "s") as store:
        assert len(store.load(other.fingerprint, "j")) == 0
        store.add(
            other,
            "j",
            {},
            "block",
            items[:2],
            [Record(item=item.id, score=0.125) for item in items[:2]],
        )
        stored = store.load(other.fingerprint, "j")
        assert [score_of(stored, item) for item in items[:2]] == [0.125] * 2


def test_a_store_that_is_replaced_while_it_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Store(tmp_path / "s") as store, suppress(UserError):
        store.hashes["x"] = "0"
        (tmp_path / "s").unlink()
        (tmp_path / "s").touch()
        store.hashes["x"] = "1"
    assert "removed or replaced" in caplog.text
