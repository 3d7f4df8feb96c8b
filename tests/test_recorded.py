"""What was recorded before keys were renamed and code moved: stored answers are found again, and are the right ones.

A wrong mapping of a new name to an old one would evaluate anew in silence, or take the answers of other settings. The
values in `tests/data/recorded` are digests, counts, scores and a store. They never change. If a key, a choice or the
name of a row is renamed, add it to `RENAMED` in `tests/support/recorded.py`: {what was typed then: what is typed now}.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from souping.evaluate.benchmark import Benchmark
from tests.conftest import ROOT, Cli
from tests.support import recorded
from tests.support.main_job import same

FINGERPRINTS = recorded.recorded("fingerprints")
RECIPES = recorded.recorded("recipes")
SPLITS = recorded.recorded("splits")
RUNS = recorded.recorded("runs")
SELECT_ITEMS = 40
"""Items of the bundled run's select split."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded.make_place(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """A copy of all that the runs need, in the folder where `souping` works."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def recorded_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of lm_eval that was recorded, which fingerprints name. The settings need nothing else of it."""
    monkeypatch.setattr("souping.evaluate.lm_eval.version", lambda _: recorded.LM_EVAL)
    monkeypatch.setattr("souping.evaluate.lm_eval.require", lambda: None)


@pytest.mark.usefixtures("recorded_lm_eval")
@pytest.mark.parametrize("choice", FINGERPRINTS)
def test_an_evaluator_is_known_by_the_recorded_fingerprint(choice: str) -> None:
    row = FINGERPRINTS[choice]
    plain = recorded.config(row["words"])
    found = {}
    for words in row["identities"]:
        found[words] = recorded.identities(recorded.changed(plain, words.split(), choice))
    assert found == row["identities"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_soup_has_the_recorded_recipe_and_bytes(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert recorded.soup(place, RECIPES[name]) == RECIPES[name]["soup"]


def test_the_bundled_items_stay_in_their_splits() -> None:
    path = next((ROOT / "souping").rglob("items.jsonl"))
    items = Benchmark(path=str(path)).items()
    assert recorded.splits(items, False, "identity") == SPLITS["bundled"]
    assert recorded.splits(items, True, "identity") == SPLITS["bundled, published scores"]


@pytest.mark.parametrize("benchmark", ["bfcl", "mgsm", "flores36"])
def test_items_of_the_papers_benchmarks_stay_in_their_splits(benchmark: str) -> None:
    items = recorded.recorded_items(benchmark)
    assert recorded.splits(items, False, "id") == SPLITS[benchmark]
    assert recorded.splits(items, True, "id") == SPLITS[f"{benchmark}, published scores"]


@pytest.mark.slow
def test_items_of_bfcl_eval_have_the_recorded_groups(bfcl: Any) -> None:
    from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark, chosen_categories

    items = BfclBenchmark(data=bfcl.data, categories=chosen_categories(None)).items()
    found = [(item.category, item.group) for item in items]
    assert found == [(item.category, item.group) for item in recorded.recorded_items("bfcl")]


def installed(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def again(name: str, souping: Cli, *words: str) -> None:
    """Repeat a recorded run from the store in the folder where `souping` works."""
    typed = recorded.now([*RUNS[name]["words"], *words])
    souping(*typed, "name=again", "hydra.run.dir=run").ok()


@pytest.mark.parametrize(
    "name",
    [
        "bundled",
        pytest.param("adapters", marks=pytest.mark.slow),
        pytest.param("lm_eval", marks=pytest.mark.slow),
        pytest.param("training", marks=pytest.mark.slow),
    ],
)
def test_a_run_from_the_recorded_store_evaluates_nothing_and_finds_the_same(
    name: str, souping: Cli, here: Path
) -> None:
    if name == "lm_eval" and installed("lm_eval") != recorded.LM_EVAL:
        pytest.skip(f"needs lm_eval {recorded.LM_EVAL}: answers belong to a version")
    before = recorded.table_sizes(here / "store.sqlite")
    again(name, souping)
    assert recorded.table_sizes(here / "store.sqlite") == before
    assert same(recorded.numbers(here / "run"), recorded.recorded_numbers(RUNS[name]))


def change(store: Path, *statements: str) -> None:
    """Change the tables that hold answers and their scores."""
    with closing(sqlite3.connect(store)) as db, db:
        for statement in statements:
            for table in ("answers", "grades"):
                db.execute(f"UPDATE {table} {statement}")


def soup_rows(store: Path) -> tuple[int, int]:
    """Row numbers of the first two candidates of the bundled run."""
    query = "SELECT id FROM soups WHERE substr(fingerprint, 1, 12) = ?"
    ids = [recipe for recipe, _ in RUNS["bundled"]["numbers"]["trials"][1:3]]
    with closing(sqlite3.connect(store)) as db:
        rows = [db.execute(query, (recipe,)).fetchone() for recipe in ids]
    return rows[0][0], rows[1][0]


@pytest.mark.slow
def test_answers_under_another_fingerprint_are_evaluated_anew(souping: Cli, here: Path) -> None:
    store = here / "store.sqlite"
    soup, _ = soup_rows(store)
    change(store, f"SET evaluator = 1 WHERE soup = {soup}")
    before = recorded.table_sizes(store)
    again("bundled", souping, "stop_after=select")
    anew = recorded.table_sizes(store)["answers"] - before["answers"]
    assert anew == SELECT_ITEMS


def test_answers_of_another_model_give_other_numbers(souping: Cli, here: Path) -> None:
    store = here / "store.sqlite"
    first, second = soup_rows(store)
    # 1 is no row's number: rows are numbered by 64 bits of a digest.
    exchange = ((first, 1), (second, first), (1, second))
    change(store, *(f"SET soup = {new} WHERE soup = {old}" for old, new in exchange))
    before = recorded.table_sizes(store)
    again("bundled", souping, "stop_after=select")
    assert recorded.table_sizes(store) == before
    scores = recorded.selection_scores(here / "run")
    assert not same(scores, RUNS["bundled"]["numbers"]["selection"])
