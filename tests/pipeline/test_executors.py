"""What every executor promises, and what is checked of an evaluator's batches and records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.core.protocols import Executor, Workers
from souping.core.types import Item, Record, UserError
from souping.core.unit import Unit
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline.evaluation import LocalExecutor, batches_of, records_of
from souping.pipeline.ray_actors import RayExecutor
from tests.support.actors import Busy, Makes, requests
from tests.support.choices import differing

ROWS: dict[str, list[Executor]] = {"local": [LocalExecutor()], "ray": [RayExecutor(actors=2, cpus=0.5)]}


def test_every_choice_has_a_row() -> None:
    assert differing("executor", ROWS) == {}


@pytest.mark.parametrize(
    "executor", [*ROWS["local"], *(pytest.param(one, marks=pytest.mark.slow) for one in ROWS["ray"])]
)
def test_every_request_comes_back_with_its_own_records(executor: Executor, tmp_path: Path) -> None:
    assert Executor in type(executor).__mro__
    if isinstance(executor, RayExecutor) and not find_spec("ray"):
        assert "ray" in executor.needs()[0].sentence()
        return
    assert executor.needs() == []
    workers = executor.start(Busy(tmp_path), Makes(tmp_path))
    assert Workers in type(workers).__mro__
    sent = requests(5)
    done = [(request, response) for request in sent if (response := workers.put(request)) is not None]
    done += [workers.take() for _ in range(5 - len(done))]
    assert workers.slots >= 1
    workers.close()
    workers.close()
    assert sorted(request.number for request, _ in done) == list(range(5))
    for request, response in done:
        assert [record.item for record in response.records] == [item.id for item in request.items]
        assert {record.score for record in response.records} == {request.recipe.weights[0]}


@pytest.mark.skipif(not find_spec("ray"), reason="needs the extra ray")
@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (RayExecutor(gpus=999), "1 actor with 999 GPU and 1 CPU each do not fit"),
        (RayExecutor(actors=9999), "9999 actors with 1 CPU each do not fit"),
    ],
)
def test_what_the_machine_or_the_cluster_lacks_is_reported_before_work(executor: Executor, said: str) -> None:
    assert said in executor.needs()[0].sentence()
    assert not [one for one in RayExecutor(gpus=999, address="auto").needs() if "fit" in one.what]


ITEMS = [Item(id=name, category="c", prompt=name, answer="") for name in ("a", "b")]
GIVEN = [Record(item="a", score=1.0), Record(item="b", score=0.0)]


class Own(LocalEvaluator):
    """An evaluator of the user's that loses the last item."""

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        return [tuple(items[:-1])]


class Tool(Own):
    unit = Unit(fractions=False)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [1.0, 0.0],
        GIVEN[:1],
        [*GIVEN, Record(item="z", score=1.0)],
        [*GIVEN, GIVEN[0]],
        [GIVEN[0], Record(item="b", score="good")],  # type: ignore[arg-type]
        [GIVEN[0], Record(item="b", score=75.0)],
        [GIVEN[0], Record(item="b", score=1.0, output=None)],  # type: ignore[arg-type]
        [GIVEN[0], Record(item="b", score=1.0, outcome="odd")],  # type: ignore[arg-type]
    ],
)
def test_what_an_evaluator_returns_is_checked(given: Any) -> None:
    with pytest.raises(UserError, match=r"evaluator tests.*Own \(.*test_executors.py:\d+\)"):
        records_of(Own(), ITEMS, given)


def test_records_come_in_the_items_order_with_plain_numbers() -> None:
    odd = [Record(item="b", score=np.float32(0.5), statistics=(np.float32(2),)), replace(GIVEN[0], score=math.nan)]  # type: ignore[arg-type]
    first, second = records_of(Own(), ITEMS, iter(odd))
    assert (first.item, second.item, math.isnan(first.score)) == ("a", "b", True)
    assert [type(number) for number in (second.score, *second.statistics)] == [float, float]
    outside = [replace(GIVEN[0], score=23.4), replace(GIVEN[1], score=-3.1)]  # what a tool calls a score
    assert [record.score for record in records_of(Tool(), ITEMS, outside)] == [23.4, -3.1]
    assert records_of(Own(), ITEMS, [replace(GIVEN[0], score=1 + 2**-52), GIVEN[1]])[0].score > 1  # a rounded mean


def test_batches_hold_each_item_once() -> None:
    assert batches_of(LocalEvaluator(batch_size=1), ITEMS) == [(ITEMS[0],), (ITEMS[1],)]
    with pytest.raises(UserError, match="1 items of 2"):
        batches_of(Own(), ITEMS)
