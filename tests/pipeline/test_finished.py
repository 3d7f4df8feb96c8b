"""`python -m souping analyse RUN_DIR`: analyses of a finished run, added to its report."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from souping.analysis import RunScores
from souping.analysis.wins import Wins
from tests.conftest import Cli, pool_of

FREE = {"consistency", "parents", "surface", "wins"}
OWN = '''
from collections.abc import Mapping
from dataclasses import dataclass

from souping.analysis import Analysis, RunScores
from souping.core.types import Json


@dataclass(frozen=True, kw_only=True)
class Count(Analysis):
    """Items of the report fold."""

    fails: bool = False
    gives: str | None = None

    def analyse(self, run: RunScores) -> Mapping[str, Json]:
        if self.gives:
            tables = [{"header": ["a"], "rows": [[1, 2]]}]
            odd = {"number": {"sentences": 5}, "row": {"tables": [{"header": ["a", "b"], "rows": ["xy"]}]}}
            return {**odd, "none": None, "text": {"sentences": "one"}, "wide": {"tables": tables}}[self.gives]
        if self.fails:
            return {"share": 1 / 0}
        return {"sentences": [f"{len(run.report)} models were reported."]}
'''


@pytest.fixture
def run(finished_copy: Path) -> Path:
    """A finished run with the analyses that cost nothing."""
    return finished_copy


def analyses_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())["analyses"]
    return found


def answers(tmp_path: Path) -> int:
    with closing(sqlite3.connect(tmp_path / "outputs" / "store.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])


def test_a_run_makes_what_costs_nothing_and_analyse_makes_the_same(run: Path, souping: Cli, tmp_path: Path) -> None:
    first = analyses_of(run)
    assert set(first) == FREE
    before = answers(tmp_path)
    report = json.loads((run / "report.json").read_text())
    done = souping("analyse", "run")
    assert done.code == 0, done.err
    again = analyses_of(run)
    assert again == first
    assert "not_estimable" not in again["surface"]  # parts of the fold are found again
    assert answers(tmp_path) == before
    assert {**json.loads((run / "report.json").read_text()), "analyses": first} == report
    assert "More analyses" in (run / "report.html").read_text()
    assert "report.json" in done.out


def test_shapley_is_priced_then_asked_then_kept(run: Path, souping: Cli, tmp_path: Path) -> None:
    before, report = answers(tmp_path), json.loads((run / "report.json").read_text())
    ingredients, items = report["selection"]["ingredients"], report["folds"]["search"]
    priced = souping("analyse", "run", "analysis=shapley", "plan=true")
    assert priced.code == 0, priced.err
    assert f"{2 ** len(ingredients) - 1} models on the {items} items" in priced.out + priced.err
    assert answers(tmp_path) == before
    assert "shapley" not in analyses_of(run)
    done = souping("analyse", "run", "analysis=shapley", "shapley.exact=4")
    assert done.code == 0, done.err
    told = analyses_of(run)
    assert set(told) == {*FREE, "shapley"}  # what was there stays
    asked = answers(tmp_path) - before
    assert f"{asked:,} answers to ask" in priced.out + priced.err
    assert 0 < asked <= 4 * items
    assert (run / "plots" / "shapley.png").is_file()
    again = souping("analyse", "run", "analysis=shapley")
    assert "0 of them new: 0 answers" in again.out + again.err
    assert analyses_of(run) == told


def test_the_price_of_the_plan_is_that_of_the_run(family: Path, souping: Cli, tmp_path: Path) -> None:
    arguments = [
        *pool_of(family),
        "selector=all",
        "optimiser=uniform",
        "analysis=[shapley]",
        f"merge.base={family}/ant",
    ]
    planned = souping(*arguments, "plan=true", "hydra.run.dir=plan")
    assert planned.code == 0, planned.err
    (stage,) = [s for s in json.loads((tmp_path / "plan/plan.json").read_text())["stages"] if "shapley" in s["name"]]
    done = souping(*arguments, "shapley.value=winner", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert stage["models"] == [15, 15]
    told = analyses_of(tmp_path / "run")["shapley"]
    assert told["empty"]["of"] == "ant"
    null = next(row for row in told["levels"][0]["players"] if row["members"] == ["ant"])
    assert null["value"] == pytest.approx(0)  # the base adds nothing to soups that hold it anyway
    assert sum(row["value"] for row in told["levels"][0]["players"]) == pytest.approx(
        told["whole"] - told["empty"]["value"]
    )


@pytest.mark.slow
def test_a_plan_counts_the_answers_that_a_search_had(family: Path, souping: Cli, tmp_path: Path) -> None:
    arguments = [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=grid"]
    arguments += ["analysis=[consistency]", "analysis.consistency.soups=6"]
    done = souping(*arguments, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "0 of them new: 0 answers" in done.out + done.err
    planned = souping(*arguments, "plan=true", "hydra.run.dir=plan")
    assert planned.code == 0, planned.err
    stages = json.loads((tmp_path / "plan/plan.json").read_text())["stages"]
    assert [stage["todo"] for stage in stages if "consistency" in stage["name"]] == [[0, 0]]


def test_an_analysis_of_ones_own_is_made_shown_and_never_ends_a_run(
    run: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_count.py").write_text(OWN)
    (tmp_path / "parts" / "analysis").mkdir(parents=True)
    odd = {"none": "a NoneType, not a mapping", "text": "sentences that are no list", "wide": "a table of 1 columns"}
    odd |= {"number": "sentences that are no list", "row": "a table of 2 columns"}
    settings = {"count": "gives: null", "broken": "fails: true", **{word: f"gives: {word}" for word in odd}}
    for name, setting in settings.items():
        node = f"# @package analysis.{name}\n_target_: my_count.Count\n{setting}\n"
        (tmp_path / "parts" / "analysis" / f"{name}.yaml").write_text(node)
    done = souping("analyse", "run", "--config-dir", "parts", f"analysis=[{','.join(settings)},wins]")
    assert done.code == 0, done.err
    assert "models were reported." in (run / "report.html").read_text()
    made = analyses_of(run)
    assert made["broken"]["failed"].startswith("ZeroDivisionError")
    assert "my_count.py" in (run / "report.md").read_text()
    for word, said in odd.items():
        assert re.search(rf"my_count.Count \(.*my_count.py:\d+\) gave {said}", made[word]["failed"])


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (("nowhere",), ("nowhere: no config.yaml", "finished run")),
        ((), ("RUN_DIR",)),
        (("run", "analysis=[winz]"), ("analysis=winz", "did you mean wins")),
        (("run", "analysis=wins", "analysis.wins.solvd=1"), ("solvd",)),
        (("run", "analysis=wins", "analysis.wins.solved=yes"), ("analysis.wins.solved", "a number")),
        (("run", "wins"), ("wins is no override",)),
        (("run", "store.path=none.sqlite"), ("store.path=none.sqlite is not here",)),
        (("run", "analysis=shapley", "shapley.value=winner"), ("needs the base model: set merge.base=FOLDER",)),
        (("run", "analysis=shapley", "shapley.exact=13"), ("shapley.exact",)),
        (("run", "colour=red"), ("colour is not a key",)),
        (("run", "merge.dtype=float16"), ("merge settings",)),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    run: Path, souping: Cli, words: tuple[str, ...], needles: tuple[str, ...]
) -> None:
    report = (run / "report.json").read_bytes()
    refused = souping("analyse", *words)
    refused.refused(*needles)
    assert (run / "report.json").read_bytes() == report


def test_items_that_changed_are_told(run: Path, family: Path, souping: Cli, tmp_path: Path) -> None:
    lines = (family / "items.jsonl").read_text().splitlines(keepends=True)
    report = (run / "report.json").read_bytes()
    (tmp_path / "mine.jsonl").write_text("".join(lines[: len(lines) * 3 // 4]))
    again = ("analyse", "run", "benchmark.path=mine.jsonl")
    souping(*again).refused("the items are not those of the run: fold", "put the run's items back")
    other = json.dumps({**json.loads(lines[0]), "answer": "another"}) + "\n"
    (tmp_path / "mine.jsonl").write_text("".join([other, *lines[1:]]))
    souping(*again).refused("the items are not those of the run: there are as many, but some are others")
    assert (run / "report.json").read_bytes() == report


def test_a_run_that_ended_early_is_none(family: Path, souping: Cli, tmp_path: Path) -> None:
    assert souping(*pool_of(family), "stop_after=select", "selector=all", "hydra.run.dir=early").code == 0
    souping("analyse", "early").refused("early: no report.json")


def test_what_another_process_adds_meanwhile_stays(
    run: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Shapley takes hours and wins a second: whichever ends last writes both."""
    made = Wins.analyse

    def slowly(self: Wins, scores: RunScores) -> Any:
        report = json.loads((run / "report.json").read_text())
        report["analyses"]["elsewhere"] = {"sentences": ["Made by another process."]}
        (run / "report.json").write_text(json.dumps(report))
        return made(self, scores)

    monkeypatch.setattr(Wins, "analyse", slowly)
    assert souping("analyse", "run", "analysis=[wins]").code == 0
    assert {"elsewhere", "wins"} <= set(analyses_of(run))
