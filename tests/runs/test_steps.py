"""The six steps have the same names in the code, in the docs and on the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from souping.evaluate.benchmark import ListedItems
from souping.report.progress import Progress
from souping.runs.settings import ExtraEntry, model_settings
from souping.runs.steps import STEPS, extra_benchmarks
from tests.conftest import ROOT, Cli, FakeEvaluator, make_items, pool_of


def test_the_page_of_the_method_lists_the_steps() -> None:
    page = (ROOT / "docs/method.md").read_text()
    (listed,) = re.findall(r"A run has six steps.*?```text\n(.*?)```", page, re.DOTALL)
    assert tuple(line.split()[0] for line in listed.splitlines()) == STEPS


def test_contributing_lists_the_steps() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (listed,) = re.findall(r"A run is six steps \((.*?):", text)
    assert tuple(listed.split(", ")) == STEPS


def test_a_run_prints_the_steps_in_their_order(finished: Path) -> None:
    begun = re.findall(r"^(\w+): ", (finished / "terminal.txt").read_text(), re.MULTILINE)
    assert tuple(dict.fromkeys(name for name in begun if name in STEPS)) == STEPS


@pytest.mark.slow
def test_every_stage_belongs_to_a_step(
    family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(Progress, "stage", lambda self, name, *_, **__: names.append(name))
    extras = (
        "analysis=[shapley]",
        f"extra_benchmarks=[{family / 'items.jsonl'}]",
        "pareto=[red,blue]",
    )
    souping(*pool_of(family), *extras, "selector=topk", "selector.k=2", "optimiser=grid").ok()
    assert len(names) > len(STEPS)
    assert {name.partition(": ")[0] for name in names} == {*STEPS}
    order = [STEPS.index(name.partition(": ")[0]) for name in names]
    assert order == sorted(order)


def test_an_extra_benchmark_is_answered_on_the_device_of_the_run() -> None:
    settings = {"device": "cuda:1", "threads": 2, "tasks": ["x"]}
    assert model_settings(settings) == {}
    assert model_settings({**settings, "dtype": "int4"}) == {}
    shared = {"device": "cuda:1", "threads": 2}
    for dtype in (None, "bfloat16"):
        assert model_settings({**settings, "dtype": dtype}) == {**shared, "dtype": dtype}


def test_an_extra_benchmark_has_the_first_items_of_each_category() -> None:
    items = make_items(5)
    entry = ExtraEntry(name="other", limit=2, benchmark=ListedItems(listed=items))
    (opened,) = extra_benchmarks([entry], FakeEvaluator(skill={}))
    (dry_run,) = extra_benchmarks([entry], FakeEvaluator(skill={}), 1)
    assert [item.category for item in opened.items] == ["w", "w", "x", "x"]
    assert len(dry_run.items) == 2
    assert set(opened.items) <= set(items)


def test_the_limit_of_an_extra_benchmark_is_a_count(family: Path, souping: Cli) -> None:
    entry = f"{{path: {family / 'items.jsonl'}, limit: 0}}"
    souping(*pool_of(family), f"extra_benchmarks=[{entry}]").refused("extra_benchmarks[0].limit=0")
