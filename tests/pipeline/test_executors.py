"""What every executor promises: tasks come back whole, whatever the order."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from souping.core.executor_protocols import Executor, Workers
from souping.core.types import Answered, BlockTask
from souping.pipeline.executors import TOGETHER, LocalExecutor, LocalWorkers
from souping.pipeline.ray_actors import RayExecutor
from tests.support.actors import Busy, Makes, tasks
from tests.support.choices import differing, each

ROWS: dict[str, list[Executor]] = {"local": [LocalExecutor()], "ray": [RayExecutor(actors=2, cpus=0.5)]}


def test_every_choice_has_a_row() -> None:
    assert differing("executor", ROWS) == {}


@pytest.mark.parametrize("executor", each(ROWS))
def test_every_task_comes_back_with_its_own_records(executor: Executor, tmp_path: Path) -> None:
    assert Executor in type(executor).__mro__
    if isinstance(executor, RayExecutor) and not find_spec("ray"):
        assert "ray" in executor.needs()[0].sentence()
        return
    assert executor.needs() == []
    workers = executor.start(Busy(tmp_path), Makes(tmp_path))
    assert Workers in type(workers).__mro__
    asked = tasks(5)
    for task in asked:
        workers.put(task)
    done = [pair for _ in asked for pair in workers.take()]
    workers.close()
    workers.close()
    assert sorted(task.number for task, _ in done) == list(range(5))
    assert workers.slots >= 1
    for task, answered in done:
        assert [record.item for record in answered.records] == [item.id for item in task.items]
        assert {record.score for record in answered.records} == {task.recipe.weights[0]}


class Counting(Busy):
    """Worker that knows how many items it was asked at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sizes: list[int] = []

    def answer(self, task: BlockTask) -> Answered:
        self.sizes.append(len(task.items))
        return super().answer(task)


def test_drafts_of_one_soup_are_verified_together(tmp_path: Path) -> None:
    worker = Counting(tmp_path)
    worker.seconds = 0.01
    workers = LocalWorkers(worker)
    plain, *others = tasks(TOGETHER + 4)
    soup = others[0].recipe
    blocks = [replace(task, recipe=soup, drafts=tuple(() for _ in task.items)) for task in others[:-1]]
    asked = [plain, *blocks, replace(others[-1], drafts=tuple(() for _ in others[-1].items))]
    for task in asked:
        workers.put(task)
    done = [pair for _ in range(4) for pair in workers.take()]
    size = len(plain.items)
    assert worker.sizes == [size, TOGETHER * size, 2 * size, size]
    assert [task for task, _ in done] == asked
    for task, answered in done:
        assert [record.item for record in answered.records] == [item.id for item in task.items]
    assert sum(answered.seconds for _, answered in done) == pytest.approx(4 * worker.seconds)
