"""Reports as values: files are written as they were read, and whatever somebody made of one can be read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from souping.core.reading import read, to_json
from souping.core.types import Correlations, SearchEnd, Selection, StopReason, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS, Estimate, Unit
from souping.report.analysis_results import UserResult, read_content
from souping.report.content import (
    Report,
    RouterFile,
    RowDifference,
    ScoreInterval,
    SearchUse,
    SelectionFile,
    TrialRow,
)
from souping.report.report_page import markdown
from souping.report.run_files import (
    as_json,
    read_report,
    read_trials,
    search_summary,
    selection_summary,
    write_trials,
)
from souping.runs.analyses import analysis_results
from souping.runs.verdict import power_summary
from souping.search.loop import SearchCost
from souping.statistics.comparison import Comparison
from souping.statistics.intervals import Interval
from souping.statistics.power import Power
from tests.conftest import ROOT
from tests.support.report import sample

KEPT = ROOT / "tests" / "data" / "main_job" / "report.json"
PLAIN = {str: "text", bool: True, int: 3, float: 0.25, Any: {"deep": [1, "two", None]}}


def example(hint: Any) -> Any:
    """JSON that a type describes, with all its keys."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (Union, UnionType):
        return example(arguments[0])
    if origin is tuple:
        return [example(arguments[0])] * 2
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return {field.name: example(hints[field.name]) for field in known(hint)}
    if origin is not None:
        assert issubclass(origin, Mapping)
        return {"a": example(arguments[1]), "b": example(arguments[1])}
    return PLAIN[hint]


def known(kind: Any) -> list[Any]:
    return [field for field in fields(kind) if "rest" not in field.metadata]


def whole() -> dict[str, Any]:
    """A report with every key."""
    report: dict[str, Any] = example(Report)
    report["unit"] = asdict(POINTS)
    for entry in report["extra_benchmarks"]:
        entry["unit"] = asdict(BITS_PER_BYTE)
    table = {"header": ["a", 1], "rows": [["x", 2], [None, 0.5]]}
    report["analyses"] = {
        "own": {"title": "Own", "sentences": ["One."], "tables": [table], "extra": {"a": 1}},
        "short": {"not_estimable": "too few soups"},
        "broken": {"failed": "no"},
        "plain": {"numbers": [1, 2.5]},
    }
    return report


def without_empty(value: Any) -> Any:
    """JSON without keys whose value is empty."""
    if isinstance(value, dict):
        inner = {key: without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in inner.items() if entry not in (None, "", [], {})}
    return [without_empty(entry) for entry in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- round trip


def test_every_key_that_the_types_know_is_written_as_it_was_read() -> None:
    assert as_json(to_json(read(Report, whole()))) == as_json(whole())
    for kind in (RouterFile, SelectionFile, TrialRow):
        table = example(kind) | ({} if kind is TrialRow else {"unit": asdict(POINTS)})
        assert to_json(read(kind, table)) == table


def test_the_kept_report_is_written_as_it_was_read() -> None:
    kept = json.loads(KEPT.read_text())

    assert as_json(to_json(read(Report, kept))) == as_json({**kept, "unit": asdict(POINTS)})


@pytest.mark.parametrize("stop", ["", "search", "select"])
@pytest.mark.parametrize("ingredients", [1, 3])
def test_no_number_of_a_part_of_a_report_is_lost(stop: str, ingredients: int) -> None:
    report, trials = sample(k=ingredients, stop=stop)
    assert without_empty(to_json(read(Report, report))) == without_empty(report)
    for trial in trials:
        assert read(TrialRow, to_json(trial)) == trial


@pytest.mark.slow
def test_the_files_of_a_run_are_written_as_they_were_read(finished: Path, tmp_path: Path) -> None:
    run = finished / "run"
    kinds = {"report.json": Report, "router.json": RouterFile, "selection.json": SelectionFile}
    for name, kind in kinds.items():
        path = run / name
        assert as_json(to_json(read(kind, json.loads(path.read_text())))) == path.read_text()
    trials = read_trials(run / "trials.csv")
    assert trials
    write_trials(trials, read_report(run / "report.json"), tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").read_text() == (run / "trials.csv").read_text()


def test_a_line_with_too_few_or_too_many_cells_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    for line in ("2,g", "2,g,0.5,1.0"):
        path.write_text(f"number,recipe_id,objective\n1,f,0.5\n{line}\n")
        with pytest.raises(UserError, match=r"trials\.csv.* line 3 "):
            read_trials(path)


def test_an_analysis_has_the_type_that_is_given_for_it() -> None:
    class Counted(UserResult):
        pass

    kinds = dict.fromkeys(("own", "short", "broken"), Counted)
    report = read_content(whole(), kinds)
    found = {name: type(result) for name, result in (report.analyses or {}).items()}
    # One that found nothing has nothing of its type.
    assert found == {"own": Counted, "short": UserResult, "broken": UserResult, "plain": UserResult}
    assert as_json(to_json(report)) == as_json(whole())
    assert read_content({}, kinds).analyses is None


def test_a_report_gives_the_first_model_of_a_role() -> None:
    report = read(Report, sample()[0])
    best = report.row("best_candidate")
    assert best is not None
    assert best.name == report.selection.ingredients[0] if report.selection else False
    assert report.row("nobody") is None
    assert read(Report, {}).row("soup") is None


# ---------------------------------------------------------------- edited files


def nested(depth: int) -> Any:
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


def odd_values() -> list[Any]:
    units: list[dict[str, Any]] = [
        {"scale": 0},
        {"digits": 99},
        {"name": "\x00"},
        {"min_gain": 10**400},
        {"scale": [1]},
    ]
    return [
        None, True, False, 0, -1, 10**400, -(10**400), 3.0, 1e308, math.nan, math.inf, -math.inf,
        "", "text", "12", "\x1b[2J\u202e\ud800", [], [None], [[]], ["a", 1, {}], {}, {"mean": "x"},
        {"a": {"b": []}}, nested(700), *({**asdict(POINTS), **change} for change in units),
    ]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything inside."""
    found = list[tuple[Any, Any]]()
    containers = [value]
    while containers:
        container = containers.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                containers.append(container[key])
    return found


def mutate(report: dict[str, Any], donor: dict[str, Any], rng: random.Random) -> None:
    """Remove or replace something anywhere, or add something."""
    container, key = rng.choice(places(report))
    change = rng.randrange(4)
    if change == 0:
        del container[key]
    elif change == 1:
        container[key] = rng.choice(odd_values())
    elif change == 2:
        other, place = rng.choice(places(donor))
        container[key] = other[place]
    elif isinstance(container, dict):
        container[f"unknown {rng.randrange(9)}"] = rng.choice(odd_values())


def check_mutations(seeds: range) -> None:
    """A damaged report is read without an error, and as written again it is the same."""
    text = json.dumps(whole())
    donor = json.loads(text)
    names = {field.name for field in known(Report)}
    kinds = {"own": UserResult}
    for seed in seeds:
        rng = random.Random(seed)
        table = json.loads(text)
        for _ in range(rng.randint(1, 6)):
            mutate(table, donor, rng)
        report = read_content(table, kinds)
        written = json.dumps(to_json(report), allow_nan=False)
        assert read_content(json.loads(written), kinds) == report, seed
        unknown = {key: value for key, value in table.items() if key not in names}
        assert report.others == to_json(unknown), seed
        # The next change must not reach into the donor.
        donor = json.loads(text)


def test_whatever_was_edited_can_be_shown() -> None:
    text = json.dumps(whole())
    for seed in range(50):
        rng = random.Random(seed)
        table = json.loads(text)
        for _ in range(rng.randint(1, 6)):
            mutate(table, json.loads(text), rng)
        assert markdown(read_content(table), []).startswith("# "), seed


@pytest.mark.parametrize("name", analysis_results())
def test_every_analysis_is_shown_whatever_was_edited(name: str) -> None:
    kind = analysis_results()[name]
    table = example(kind)
    for end in ("not_estimable", "failed"):
        table.pop(end)
    assert to_json(read(kind, table)) == table
    text = json.dumps(table)
    donor = json.dumps(whole())
    for seed in range(30):
        rng = random.Random(seed)
        data = json.loads(text)
        for _ in range(rng.randint(0, 6)):
            mutate(data, json.loads(donor), rng)
        report = read_content({"analyses": {name: data}}, analysis_results())
        shown = markdown(report, [])
        assert shown.startswith("# "), seed
        assert "nan" not in shown, seed


def test_whatever_was_edited_can_be_read() -> None:
    check_mutations(range(50))


@pytest.mark.slow
def test_whatever_was_edited_can_be_read_in_a_thousand_ways() -> None:
    check_mutations(range(50, 600))


@pytest.mark.parametrize("part", ["search", "cost"])
def test_keys_that_an_optimiser_or_a_later_version_adds_are_kept(part: str) -> None:
    report = whole()
    report[part]["more"] = {"of": [1, None, "x"]}
    report["later"] = [{"key": 1}]
    report["analyses"]["own"]["more"] = 2
    assert as_json(to_json(read_content(report, {}))) == as_json(report)


COMPARISON = Comparison(
    a="soup",
    b="a",
    estimate=Estimate(0.02, 0.01, 0.03),
    p_alone=0.01,
    test="flips",
    n=10,
    groups=5,
    discordant=0.1,
)
INTERVAL = Interval(estimate=Estimate(0.5, 0.4, 0.6), n=10, groups=5, effective_n=7.0)
POWER_OF_A_TEST = Power(gain=0.05, items=100, margin=0.01, needed=1000, assumed=False)
END = SearchEnd(
    stopped=StopReason(reason="enough"),
    indistinguishable=(),
    indistinguishable_count=0,
    finishing_gain=0.0,
)


ONE = np.ones((1, 1))
SELECTION = Selection(
    ingredients=("a",), categories=("w",), correlations=Correlations(rho=ONE, low=ONE, high=ONE)
)


@pytest.mark.parametrize(
    ("value", "write", "unwritten"),
    [
        (INTERVAL, ScoreInterval.of, set()),
        # They plan items and runs, and a report has what was planned by them.
        (COMPARISON, RowDifference.of, {"step", "degrees", "run_share"}),
        (POWER_OF_A_TEST, power_summary, set()),
        (END, lambda end, unit: search_summary(unit, end), set()),
        (SELECTION, lambda selection, unit: selection_summary(unit, selection), set()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_computed_reaches_the_report_with_every_field(
    value: Any, write: Callable[[Any, Unit], object], unwritten: set[str]
) -> None:
    """A new field of one of these is written, or named here with why it is not."""
    seen = set[str]()

    def spy(self: Any, name: str) -> Any:
        seen.add(name)
        return object.__getattribute__(self, name)

    spied = type("Spied", (type(value),), {"__getattribute__": spy})
    names = {field.name for field in fields(value)}
    write(spied(**{name: getattr(value, name) for name in names}), BITS_PER_BYTE)
    assert names - seen == unwritten


def test_what_a_search_cost_reaches_the_report_with_every_field() -> None:
    cost = to_json(SearchCost(items=1, evaluated=2, prefilled_tokens=3, generated_tokens=4))
    written = to_json(read(SearchUse, cost))
    assert isinstance(cost, dict)
    assert isinstance(written, dict)
    assert cost.items() <= written.items()
