"""Ledger of the report fold. Each way to look twice and pay once, with the look that it is told to be."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from souping.core.scores import Weighted
from souping.core.types import Recipe
from souping.pipeline.ledger import Ledger
from souping.pipeline.store import Store
from tests.conftest import claim, command_line, make_items, pool_of, recipe

ITEMS = make_items(4)
HALF, OTHER = recipe(0.5, 0.5), recipe(0.3, 0.7)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "s") as one:
        yield one


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


class TestClaims:
    def test_a_claim_that_is_made_again_keeps_its_look(self, ledger: Ledger) -> None:
        soups = (HALF, OTHER, HALF, OTHER, recipe(0.8, 0.2), OTHER)
        assert [ledger.open_report(claim(soup, ITEMS)).number for soup in soups] == [
            1,
            2,
            1,
            2,
            3,
            2,
        ]

    @pytest.mark.parametrize(
        "other",
        [
            claim(HALF, ITEMS, Weighted(weights={"w": 2.0, "x": 1.0})),
            claim(HALF, ITEMS, margin=2.0),
            claim(HALF, [replace(item, answer="another") for item in ITEMS]),
            claim(HALF, ITEMS, candidates=("f-a", "f-b", "f-c")),
            claim(HALF, ITEMS[:-1]),
            claim(HALF, [item for item in ITEMS if item.category == "x"]),
            replace(claim(HALF, ITEMS), evaluator="another template"),
            claim(recipe(1.0, 0.0), ITEMS),
            claim(replace(HALF, dtype="F32"), ITEMS),
        ],
        ids=[
            "objective",
            "margin",
            "key",
            "candidate",
            "item",
            "category",
            "evaluator",
            "single",
            "dtype",
        ],
    )
    def test_whatever_a_claim_rests_on_makes_it_another(self, ledger: Ledger, other: Any) -> None:
        assert [ledger.open_report(one).number for one in (claim(HALF, ITEMS), other, other)] == [
            1,
            2,
            2,
        ]

    def test_names_order_and_rounding_make_no_other_claim(self, ledger: Ledger) -> None:
        renamed = [
            replace(item, id=f"x{item.id}", category=f"c {item.category}", group="g")
            for item in ITEMS[::-1]
        ]
        names = Recipe(
            ingredients=("y", "x"),
            fingerprints=("f-b", "f-a"),
            weights=(0.5, 0.5 + 4e-4),
            dtype="BF16",
        )
        for one in (
            claim(HALF, ITEMS),
            claim(HALF, renamed),
            claim(names, ITEMS, candidates=("f-b", "f-a")),
        ):
            assert ledger.open_report(one).number == 1

    def test_claims_are_counted_by_item(self, ledger: Ledger) -> None:
        one, two = make_items(4, ("w",)), make_items(8, ("w",))
        assert ledger.open_report(claim(HALF, one)).number == 1
        assert ledger.open_report(claim(HALF, two[4:])).number == 1
        assert ledger.open_report(claim(OTHER, two)).number == 2
        assert (
            ledger.claims(one),
            ledger.claims(two[4:]),
            ledger.claims(make_items(9, ("z",))[8:]),
        ) == (2, 2, 0)

    def test_deleted_rows_count_as_claims(self, ledger: Ledger, store: Store) -> None:
        ledger.open_report(claim(HALF, ITEMS))
        ledger.open_report(claim(HALF, ITEMS))
        ledger.note_search(["f-a"], ITEMS)
        ledger.note_search(["f-a"], ITEMS)
        assert ledger.deleted() == 0
        with store.writing() as db:
            db.execute("DELETE FROM looks")
        assert ledger.deleted() == 1
        assert ledger.open_report(claim(HALF, ITEMS)).number == 2
        assert ledger.open_report(claim(OTHER, make_items(20)[-1:])).number == 2


class TestShown:
    def test_only_the_pick_pays_for_them(self, ledger: Ledger) -> None:
        ledger.note_shown([recipe(w, 1 - w) for w in (0.2, 0.4, 0.6, 0.4, 1.0)], ITEMS)
        unseen = ledger.open_report(claim(recipe(0.5, 0.5, names=("a", "c")), ITEMS))
        assert (unseen.number, unseen.shown) == (1, 0)
        picked = ledger.open_report(claim(recipe(0.6, 0.4), ITEMS))
        assert (picked.number, picked.shown) == (4, 3)

    @pytest.mark.parametrize(("weight", "number"), [(0.55, 2), (0.549, 2), (0.56, 1), (0.45, 2)])
    def test_a_near_soup_is_the_same(self, ledger: Ledger, weight: float, number: int) -> None:
        ledger.note_shown([HALF], ITEMS)
        soup = replace(recipe(weight, 1 - weight), dtype="F32", method="slerp")
        assert ledger.open_report(claim(soup, ITEMS)).number == number

    def test_a_claim_that_is_made_again_does_not_pay_for_its_own_rows(self, ledger: Ledger) -> None:
        for _ in range(2):
            assert ledger.open_report(claim(HALF, ITEMS)).number == 1
            ledger.note_shown([HALF, OTHER], ITEMS)

    def test_soups_of_soups_are_their_ingredients(
        self, ledger: Ledger, store: Store, tmp_path: Path
    ) -> None:
        store.remember_folder("f-s", tmp_path, "s", json.dumps({"f-a": 0.5, "f-b": 0.5}))
        # edited: it names itself
        store.remember_folder("f-t", tmp_path, "t", json.dumps({"f-s": 0.5, "f-t": 0.5}))
        store.remember_folder("f-s", tmp_path, "s", "")  # its recipe.json was deleted
        ledger.note_shown([recipe(1.0, names=("s",)), recipe(1.0, names=("t",))], ITEMS)
        assert ledger.open_report(claim(recipe(0.75, 0.25), ITEMS)).number == 1
        assert ledger.open_report(claim(recipe(0.5, 0.5, names=("a", "s")), ITEMS)).number == 2
        assert ledger.open_report(claim(HALF, ITEMS)).number == 3


class TestSearches:
    def test_a_search_over_one_of_the_ingredients_is_enough(self, ledger: Ledger) -> None:
        ledger.note_search(["f-a", "f-b"], ITEMS[:2])
        ledger.note_search(["f-b", "f-c"], ITEMS[1:3])
        identities = [item.identity for item in ITEMS]
        assert ledger.chosen_on(recipe(0.5, 0.5, names=("a", "d"))) == set(identities[:2])
        assert ledger.chosen_on(recipe(0.1, 0.9)) == set(identities[:3])
        assert ledger.chosen_on(recipe(1.0, names=("d",))) == set()


# ------------------------------------------------------------ whole runs


@dataclass
class Runs:
    family: Path
    place: Path

    def __call__(
        self, *arguments: str, pool: Sequence[str | Path] = ("ant", "bee", "cat"), items: str = ""
    ) -> None:
        own = f"benchmark.path={self.place / (items or 'items.jsonl')}"
        base = [*pool_of(self.family, *map(str, pool)), own, "selector=all", "optimiser=fixed"]
        words = sorted([*base, *arguments], key=lambda word: word != "-m")
        assert command_line(self.place, *words) == 0

    def report(self, *arguments: str, **where: Any) -> Mapping[str, Any]:
        run_dir = f"runs/{len(list(self.place.glob('runs/*')))}"
        self(*arguments, f"hydra.run.dir={run_dir}", **where)
        report: Mapping[str, Any] = json.loads((self.place / run_dir / "report.json").read_text())
        return report

    def look(self, *arguments: str, **where: Any) -> int:
        return int(self.report(*arguments, **where)["verdict"]["opened"])

    def rewrite(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> str:
        rows = [json.loads(line) for line in (self.place / "items.jsonl").read_text().splitlines()]
        (self.place / name).write_text(
            "\n".join(json.dumps(row) for row in map(change, rows) if row)
        )
        return name

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.place / "outputs/store.sqlite")) as db:
            found = db.execute(query).fetchall()
            db.commit()
        return found


SOUP = "optimiser.weights=[0.5,0.2,0.3]"


@pytest.fixture(scope="module")
def first(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one soup was reported: look 1. Shown were that soup and the uniform one."""
    place = tmp_path_factory.mktemp("first")
    lines = (family / "items.jsonl").read_text().splitlines()
    (place / "items.jsonl").write_text("\n".join(lines[:30] + lines[60:90] + lines[120:150]))
    assert Runs(family, place).look(SOUP) == 1
    return place


@pytest.fixture
def runs(family: Path, first: Path, tmp_path: Path) -> Runs:
    shutil.copytree(first, tmp_path / "w")
    return Runs(family, tmp_path / "w")


@pytest.fixture
def fresh(family: Path, first: Path, tmp_path: Path) -> Runs:
    (tmp_path / "w").mkdir()
    shutil.copy(first / "items.jsonl", tmp_path / "w")
    return Runs(family, tmp_path / "w")


ALL = 1 + 2
"""The look of another claim on the first run's soup: it pays for the two soups that were shown."""


def test_the_same_claim_renamed_and_in_another_order_is_free(runs: Runs) -> None:
    renamed = runs.rewrite("renamed.jsonl", lambda row: {**row, "id": f"new {row['id']}"})
    assert runs.look(SOUP) == runs.look(SOUP, items=renamed) == 1
    assert runs.look("optimiser.weights=[0.3,0.5,0.2]", pool=("cat", "ant", "bee")) == 1


@pytest.mark.slow
def test_settings_compared_on_the_search_fold_are_free(fresh: Runs) -> None:
    weights = "optimiser.weights=[0.5,0.2,0.3],[0.2,0.2,0.6],[0.2,0.6,0.2]"
    fresh("-m", weights, "stop_after=search", "hydra.sweep.dir=sweep")
    jobs = [json.loads(path.read_text()) for path in sorted(fresh.place.glob("sweep/*/job.json"))]
    best = max(jobs, key=lambda job: job["objective"])
    assert fresh.look(next(word for word in best["overrides"] if "weights" in word)) == 1


@pytest.mark.parametrize(
    "change",
    [("objective=weighted", "objective.weights={red:2,green:1,blue:1}"), ("margin=2",)],
    ids=str,
)
def test_another_objective_or_margin(runs: Runs, change: Sequence[str]) -> None:
    report = runs.report(SOUP, *change)
    assert report["verdict"]["opened"] == ALL
    assert any(f"look {ALL}" in warning for warning in report["warnings"])


@pytest.mark.slow
def test_another_answer_key(runs: Runs) -> None:
    assert (
        runs.look(SOUP, items=runs.rewrite("key.jsonl", lambda row: {**row, "scorer": "contains"}))
        == ALL
    )


@pytest.mark.slow
def test_a_candidate_taken_out_or_added(runs: Runs) -> None:
    assert runs.look("optimiser.weights=[0.7,0.3]", pool=("ant", "cat")) == 2
    more = ("ant", "bee", "cat", "dog")
    assert runs.look("optimiser.weights=[0.5,0.2,0.3,0]", pool=more) == 1 + 4  # two of either run


@pytest.mark.slow
def test_items_or_a_category_left_out(runs: Runs) -> None:
    fewer = runs.rewrite(
        "fewer.jsonl", lambda row: None if row["id"].endswith(("7", "8", "9")) else row
    )
    assert runs.look(SOUP, items=fewer) == ALL
    assert runs.look(SOUP, "benchmark.exclude=[blue]") == ALL


def test_a_single_model_is_a_claim(runs: Runs) -> None:
    assert runs.look("optimiser.weights=[1,0,0]") == 2
    assert runs.look("optimiser.weights=[0.2,0.7,0.1]") == 3


@pytest.mark.slow
def test_uniform_and_top_k_rows_of_other_pools(fresh: Runs) -> None:
    pools = {"ant": ("ant", "bee", "cat"), "bee": ("bee", "cat", "dog")}
    for number, names in enumerate(pools.values(), start=1):
        top = ("selector=topk", "selector.k=2", "optimiser.weights=[1,0]")
        assert fresh.look(*top, pool=names) == number
    ((shown,),) = fresh.rows("SELECT COUNT(*) FROM shown")
    assert shown >= 3
    assert fresh.look("optimiser=uniform", pool=pools["bee"]) == 1 + shown


@pytest.mark.slow
def test_report_items_as_an_extra_benchmark(fresh: Runs) -> None:
    fresh.rewrite("other.jsonl", lambda row: {**row, "prompt": f"{row['prompt']} again"})
    assert fresh.look(SOUP, f"also=[{fresh.place / 'items.jsonl'}]", items="other.jsonl") == 1
    assert fresh.look(SOUP) == 2
    assert fresh.look("optimiser.weights=[0.1,0.1,0.8]") == 2


@pytest.mark.slow
def test_soups_written_by_a_merge_as_candidates(fresh: Runs) -> None:
    pool = f"pool.candidates=[{fresh.family / 'ant'},{fresh.family / 'bee'}]"
    soups = [fresh.place / f"soup{number}" for number in range(3)]
    for soup, weights in zip(soups, ("0.2,0.8", "0.4,0.6", "0.7,0.3"), strict=True):
        words = ["+experiment=merge", pool, f"optimiser.weights=[{weights}]", f"out={soup}"]
        assert command_line(fresh.place, *words) == 0
    assert fresh.look("optimiser.weights=[1,0,0,0]", pool=("cat", *soups)) == 1
    # three and the uniform one
    assert fresh.look("optimiser.weights=[0.41,0.59]", pool=("ant", "bee")) == 1 + 4


@pytest.mark.slow
def test_a_search_on_the_report_items_under_other_shares(fresh: Runs) -> None:
    fresh("optimiser.weights=[0.5,0.2,0.3]", "benchmark.folds={search:0.5}", "stop_after=search")
    spaced = fresh.place / "ant"
    shutil.copytree(fresh.family / "ant", spaced)
    config = spaced / "config.json"
    config.write_text(config.read_text() + " ")
    reports = [
        fresh.report(SOUP),
        fresh.report("optimiser.weights=[0.3,0.2,0.5]", pool=("cat", "bee", "ant")),
        fresh.report(SOUP, "merge.dtype=float32"),
        fresh.report("optimiser.weights=[0.5,0.5]", pool=(spaced, "dog")),
    ]
    (left,) = {report["folds"]["left_out"] for report in reports}
    assert left > 0
    assert all(
        report["rows"][-1]["objective"]["n"] == report["folds"]["report"] for report in reports
    )
    assert any("report items are left out" in warning for warning in reports[0]["warnings"])


def test_rows_that_were_deleted(runs: Runs) -> None:
    runs.rows("DELETE FROM looks")
    runs.rows("DELETE FROM shown")
    report = runs.report(SOUP)
    assert report["verdict"]["opened"] == 1 + 3
    assert any("were deleted" in warning for warning in report["warnings"])


def test_a_second_look_is_announced_with_its_price(
    runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    report = runs.report("optimiser.weights=[0.2,0.2,0.6]")
    told = " ".join(capfd.readouterr().out.split())
    # before the models load, and before the fold opens
    assert told.count("multiplied by 6 (k (k + 1)") == 2
    assert told.index("multiplied by 6") < told.index("selected")
    assert any(
        "look 2" in warning and "stop_after=search" in warning for warning in report["warnings"]
    )
