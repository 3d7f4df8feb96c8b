"""One interval and one p-value: p is below the level exactly where the interval excludes 0, whatever corrects them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import souping as library
from souping.comparison.result import CompareResult
from souping.core.protocols import Objective
from souping.core.scores import Mean, WorstCategory
from souping.core.types import Item
from souping.core.unit import POINTS
from souping.runs.evidence import Pair, by_category
from souping.statistics import bootstrap_t, comparison, joint
from souping.statistics.corrections import ALPHA, Level
from souping.statistics.score_table import Answers, ItemTable, ScoreTable
from tests.support.logs import Frame

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreement does not depend on how many patterns are drawn."""
    for module in (comparison, joint):
        monkeypatch.setattr(module, "draws_for", lambda alpha, draws: 1008)
    monkeypatch.setattr(bootstrap_t, "BOOTSTRAP_DRAWS", 999)


def excludes_zero(interval: Any) -> bool:
    return bool(interval.low > 0 or interval.high < 0)


def made_logs(seed: int) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Logs of two or three models and how to compare them: tasks, groups, graded scores, runs, missing answers."""
    rng = np.random.default_rng([5, seed])
    tasks = int(rng.integers(1, 5))
    sizes = rng.integers(4, 50, tasks)
    grouped = rng.random() < 0.4
    graded = rng.random() < 0.4
    missing = rng.random() < 0.4
    runs = int(rng.choice([1, 1, 1, 2, 3]))
    easy = [rng.random(size) for size in sizes]
    logs: dict[str, list[Any]] = {}
    for number in range(int(rng.choice([2, 2, 3]))):
        gain = float(rng.choice([0.0, 0.1, 0.3])) * number
        shares = rng.random() * 0.15 * missing
        sources = []
        for run in range(runs):
            rows = []
            for task, size in enumerate(sizes):
                score = 0.6 * easy[task] + 0.4 * rng.random(size) + gain - 0.2
                score = np.clip(score, 0, 1) if graded else (score > 0.4).astype(float)
                for n in range(size):
                    lost = bool(rng.random() < shares)
                    row = {
                        "item": f"i{n}",
                        "category": f"task{task}",
                        "score": 0.0 if lost else float(score[n]),
                        "stop_reason": "error" if lost else "stop",
                        "run": run,
                    }
                    if grouped:
                        row["group"] = f"g{n // 3}"
                    rows.append(row)
            sources.append(Frame(rows))
        logs[f"m{number}"] = sources
    settings = {
        "average": str(rng.choice(["task", "item", "leaf"])),
        "look": int(rng.choice([1, 1, 2, 5])),
        "margin": float(rng.choice([1.0, 5.0])) if rng.random() < 0.5 else None,
    }
    return logs, settings


def check(result: CompareResult) -> int:
    """Number of rows that show a difference; each has the p-value of its interval, and the verdict of both."""
    shown = 0
    for row in result.verdicts:
        significant = row.p_value < ALPHA
        assert excludes_zero(row) == significant, row
        assert row.low <= row.difference + 1e-9, row
        assert row.difference <= row.high + 1e-9, row
        upwards = row.low > 0 if row.higher_is_better else row.high < 0
        if row.verdict and not (row.required and row.reason):
            assert (row.verdict == "better") == upwards, row
        shown += significant
    return shown


@pytest.mark.parametrize(
    "seeds",
    [[*range(8), 3001], pytest.param(range(8, 120), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_of_made_logs_p_is_below_the_level_exactly_where_the_interval_excludes_zero(
    seeds: Sequence[int],
) -> None:
    """Seed 3001: a variance of 2.4 degrees of freedom, whose far quantiles overflow."""
    shown = []
    for seed in seeds:
        logs, settings = made_logs(seed)
        shown.append(check(library.compare(logs, **settings)))
    assert sum(shown) > len(seeds) / 2
    assert 0 in shown


def made_pair(seed: int, objective: Objective | None = None) -> tuple[list[Item], Pair]:
    """A soup and another model on a test split, some answers of both missing."""
    rng = np.random.default_rng([6, seed])
    count = int(rng.integers(20, 160))
    categories = rng.integers(0, 4, count)
    categories[:4] = range(4)
    groups = np.arange(count) // int(rng.choice([1, 1, 3]))
    items = [
        Item(id=f"{n}", category="abcd"[c], group=f"{g}", prompt="", answer="")
        for n, (c, g) in enumerate(zip(categories, groups, strict=True))
    ]
    hard = rng.random(count)
    gain = rng.choice([0.0, 0.1, 0.2])
    scores = 0.6 * hard + 0.4 * rng.random((2, count)) + np.array([[gain], [0.0]])
    if rng.random() < 0.6:
        scores = (scores > 0.5).astype(float)
    scores = np.clip(scores, 0, 1)
    missing = (rng.random((2, count)) < rng.choice([0.0, 0.05, 0.15], (2, 1))).astype(float)
    scores = np.where(missing > 0, 0.0, scores)
    is_worst = rng.random() < 0.2
    if objective is None:
        objective = WorstCategory() if is_worst else Mean()
    answers = {}
    for name, values, gone in zip(("soup", "other"), scores, missing, strict=True):
        answers[name] = Answers.of(values, gone)
    pair = Pair(
        soup="soup",
        other="other",
        scores=ScoreTable(items=ItemTable.of(items, objective), answers=answers),
        level=Level(int(rng.choice([1, 2, 5]))),
    )
    return items, pair


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 120), marks=pytest.mark.slow)], ids=str
)
def test_a_reports_comparison_and_its_categories_agree_with_p_at_every_look(seeds: range) -> None:
    shown = 0
    for seed in seeds:
        _, pair = made_pair(seed)
        whole = pair.compare()
        assert excludes_zero(whole) == (whole.p_look < ALPHA)
        shown += excludes_zero(whole)
        for difference in by_category(POINTS, [pair]):
            p_value = difference.p_at(pair.level.looks)
            assert p_value is not None
            significant = p_value < ALPHA
            assert excludes_zero(difference) == significant
            assert excludes_zero(difference) == (difference.verdict != "no difference shown")
            # No difference that is shown is smaller than the smallest that can be.
            if excludes_zero(difference):
                assert difference.least is not None
                assert difference.difference is not None
                assert difference.least < abs(difference.difference)
            shown += excludes_zero(difference)
    assert shown > len(seeds) / 10


def log_of(model: str, pair: Pair, items: Sequence[Item]) -> Frame:
    """The same answers as a table."""
    answers = pair.scores.answers[model]
    rows = []
    for n, item in enumerate(items):
        lost = answers.lowest[0, n] < answers.highest[0, n]
        row = {
            "item": item.id,
            "category": item.category,
            "group": item.group,
            "score": float(answers.counted[0, n]),
            "stop_reason": "error" if lost else "stop",
        }
        rows.append(row)
    return Frame(rows)


@pytest.mark.parametrize("number", range(12))
def test_compare_says_of_two_rows_of_a_run_what_its_report_says(number: int) -> None:
    """Difference, interval, p-value and items at the report's look, with groups, graded scores and missing answers."""
    items, pair = made_pair(number, Mean())
    reported = pair.compare()
    logs = {model: log_of(model, pair, items) for model in ("other", "soup")}
    row = library.compare(logs, average="leaf", look=pair.level.looks).average_row("soup")
    assert (row.items, row.groups) == (reported.n, reported.groups)
    assert (row.difference, row.low, row.high) == pytest.approx(reported.estimate, abs=1e-12)
    assert row.discordant == pytest.approx(reported.discordant, abs=1e-12)
    assert row.p_value == pytest.approx(reported.p_look, rel=1e-9)


@pytest.mark.parametrize("number", range(12))
def test_compare_says_of_a_category_what_the_report_says(number: int) -> None:
    """Interval and corrected p-value of every category, in the order in which the items have them."""
    items, pair = made_pair(number, Mean())
    reported = {one.category: one for one in by_category(POINTS, [pair])}
    logs = {model: log_of(model, pair, items) for model in ("other", "soup")}
    result = library.compare(logs, average="leaf", look=pair.level.looks)
    rows = {row.name: row for row in result.rows("soup") if row.kind == "task"}
    assert rows.keys() == reported.keys()
    for name, row in rows.items():
        said = reported[name]
        numbers = [row.difference, row.low, row.high, row.p_value]
        expected = [said.difference, said.low, said.high, said.p_at(pair.level.looks)]
        assert numbers == pytest.approx(expected, abs=1e-12)
        assert row.level == pytest.approx(said.level)


def test_a_wrong_p_value_would_be_noticed() -> None:
    logs, settings = made_logs(3)
    result = library.compare(logs, **settings)
    for row in result.verdicts:
        object.__setattr__(row, "p_value", 1.0 - row.p_value)
    with pytest.raises(AssertionError):
        check(result)
