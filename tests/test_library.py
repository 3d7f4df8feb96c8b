"""The library's own names: each is there, lazily, and nothing else is promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import souping
from souping.core.protocols import Selector
from souping.core.types import ScoreMatrix
from tests.conftest import ROOT


@pytest.mark.parametrize("name", souping.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(souping, name)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'soup_of_the_day'"):
        _ = souping.soup_of_the_day


def test_importing_the_package_loads_no_room() -> None:
    code = "import souping, sys; print([name for name in sys.modules if name.startswith('souping.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


NAMES = """
__version__ Adaptive All Consistency Fixed Greedy GreedySoup Grid Item LocalEvaluator LocalMerge Mean Nevergrad Parents
Recipe ResponseSurface RunResult ScoreMatrix Selection Shapley SoCE TopK Tree Uniform UserError Weighted Wins
kendall pearson read_table run select soup spearman
"""


def test_the_surface_is_what_is_written_here() -> None:
    """A name that comes or goes is a promise made or broken: it is changed here too, and in the changelog."""
    assert sorted(souping.__all__) == sorted(NAMES.split())


@pytest.mark.parametrize("name", souping.__all__)
def test_every_name_is_documented(name: str) -> None:
    assert re.search(rf"`(souping\.)?{name}[`(]", (ROOT / "docs/python.md").read_text())


def test_a_run_a_merge_and_a_selection(family: Path, tmp_path: Path) -> None:
    pool = {name: family / name for name in ("ant", "bee", "cat")}
    evaluator = souping.LocalEvaluator(max_new_tokens=4, threads=1)
    store = tmp_path / "store.sqlite"
    done = souping.run(
        pool=pool, items=family / "items.jsonl", evaluator=evaluator, out=tmp_path / "run", store=store,
        optimiser=souping.Uniform(), selector=souping.All(),
    )  # fmt: skip
    assert done.soup == tmp_path / "run/soup"
    assert (done.report_dir / "report.html").is_file()
    assert done.weights == pytest.approx(dict.fromkeys(pool, 1 / 3))
    assert len(done.trials) == 1
    assert {"soup", "best_single"} <= {row.kind for row in done.rows}
    assert done.comparisons
    assert sorted(done.report["analyses"]) == ["consistency", "parents", "surface", "wins"]
    assert done.selection["ingredients"] == list(pool)
    assert done.verdict.sentence in repr(done)
    assert done.verdict.claim == done.report["verdict"]["claim"]
    (soup,) = [row for row in done.rows if row.kind == "soup"]
    assert soup.objective.low < soup.objective.mean < soup.objective.high
    assert set(soup.scores) == {"red", "green", "blue"}
    assert done.trials[0].weights == pytest.approx(done.weights)
    assert 0 <= done.trials[0].objective <= 1
    assert done._repr_html_().count("<tr>") == len(done.rows) + 1
    log = (done.report_dir / "run.log").read_text()
    for needle in (
        "command    souping.run(pool={'ant': ",
        "items=",
        "LocalEvaluator(",
        "versions   souping ",
        "writing the soup",
    ):
        assert needle in log, needle
    assert "perform" not in log
    assert "souping.run(" in (done.report_dir / "report.html").read_text()
    made = souping.soup(pool, out=tmp_path / "merged", store=store)
    assert (made / "model.safetensors").read_bytes() == (done.soup / "model.safetensors").read_bytes()
    with pytest.raises(souping.UserError, match="not an empty folder"):
        souping.soup(pool, out=made)


def test_a_merge_takes_weights_by_name(family: Path, tmp_path: Path) -> None:
    pool, store = [family / name for name in ("ant", "bee", "cat")], tmp_path / "store.sqlite"
    named = souping.soup(pool, {"cat": 0.75, "ant": 0.25}, out=tmp_path / "named", store=store)
    listed = souping.soup(pool, [0.25, 0, 0.75], out=tmp_path / "listed", store=store)
    assert (named / "model.safetensors").read_bytes() == (listed / "model.safetensors").read_bytes()
    with pytest.raises(souping.UserError, match=r"weights.*cap.*did you mean cat"):
        souping.soup(pool, {"cap": 1.0}, out=tmp_path / "none", store=store)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stop_after": "serch"}, "^stop_after=.*did you mean search"),
        ({"limit": 0}, "^limit=0 "),
        ({"selector": "all"}, "^selector='all' must be a Selector"),
        ({"selector": souping.All}, r"^selector=.*All\(\.\.\.\)"),
        ({"optimiser": souping.All()}, r"^optimiser=All\(.*a Strategy"),
    ],
)
def test_what_a_run_cannot_take_is_told_at_once(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(souping.UserError, match=words):
        souping.run(pool=["a", "b"], items="items.jsonl", out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_items_that_are_at_hand(family: Path, tmp_path: Path) -> None:
    from souping.evaluate.benchmark import Benchmark

    items = Benchmark(path=str(family / "items.jsonl")).items()
    done = souping.run(
        pool=[family / name for name in ("ant", "bee", "cat")], items=items, out=tmp_path / "run", stop_after="select",
        selector=souping.All(),
        evaluator=souping.LocalEvaluator(max_new_tokens=4, threads=1), store=tmp_path / "store.sqlite",
    )  # fmt: skip
    assert done.selection["ingredients"]
    assert (done.soup, done.trials, done.verdict.claim) == (None, (), "")


def test_items_may_be_dicts_and_are_checked(family: Path, tmp_path: Path) -> None:
    rows: list[Any] = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    settings: dict[str, Any] = {
        "pool": [family / "ant", family / "bee"],
        "stop_after": "select",
        "out": tmp_path / "run",
    }
    settings |= {"evaluator": souping.LocalEvaluator(max_new_tokens=4, threads=1)}
    settings["store"] = tmp_path / "store.sqlite"
    assert souping.run(items=rows, selector=souping.All(), **settings).selection["ingredients"] == ["ant", "bee"]
    assert f"items='{len(rows)} items'" in (tmp_path / "run/run.log").read_text()
    wrong: list[tuple[Any, str]] = [
        ([*rows, rows[0]], rf"items\[{len(rows)}\]: id .* appears twice"),
        ([{"id": "1"}], r"items\[0\]: `category` is missing"),
        ([3], r"items\[0\]: an item is a souping.Item or a dict"),
        ([souping.Item(id="1", category="c", prompt="p", answer="a", scorer="exakt")], "did you mean exact"),
        ([], "holds no items"),
    ]
    for items, words in wrong:
        with pytest.raises(souping.UserError, match=words):
            souping.run(items=items, selector=souping.All(), **settings)
    with pytest.raises(souping.UserError, match=r"^pool='runs/a'"):
        souping.run(items=rows, **(settings | {"pool": "runs/a"}))


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_run_leaves_no_folder_that_it_made(family: Path, tmp_path: Path, there: bool) -> None:
    out = tmp_path / "mine" / "run"
    if there:
        out.mkdir(parents=True)
    with pytest.raises(souping.UserError, match="nowhere"):
        souping.run(
            pool=[family / "ant", family / "nowhere"], items=family / "items.jsonl", out=out, selector=souping.All(),
            store=tmp_path / "store.sqlite",
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("mine*/**/*")) == (["run", "run.log"] if there else [])
    assert (tmp_path / "mine").exists() == there


def test_a_table_selects() -> None:
    chosen = souping.select(ROOT / "souping/paper/bfcl_8b.csv")
    assert set(chosen.ingredients) <= set(souping.read_table(ROOT / "souping/paper/bfcl_8b.csv").candidates)


class Picks(Selector):
    """Selector of what is no candidate."""

    def select(self, scores: ScoreMatrix) -> souping.Selection:
        return souping.Selection(ingredients=("nobody",), selector="picks")


def test_what_a_selector_gives_is_looked_at() -> None:
    table = ROOT / "souping/paper/bfcl_8b.csv"
    with pytest.raises(
        souping.UserError,
        match=r"selector tests.test_library.Picks \(.*test_library.py:\d+\) chose 'nobody', which is no candidate",
    ):
        souping.select(table, Picks())
    with pytest.raises(souping.UserError, match=r"^selector=.*Picks.*call it"):
        souping.select(table, Picks)  # type: ignore[arg-type]


def test_the_library_needs_no_hydra() -> None:
    use = "import souping, sys; souping.run, souping.soup, souping.select"
    code = f"{use}; print({{'hydra', 'omegaconf'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
