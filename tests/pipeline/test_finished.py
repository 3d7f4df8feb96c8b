"""`python -m souping run=RUN_DIR analysis=[...]`: analyses of a finished run, added to its report."""

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
OWN = """
from collections.abc import Mapping
from dataclasses import dataclass

from souping.analysis import Analysis, RunScores
from souping.core.types import Json


@dataclass(frozen=True, kw_only=True)
class Count(Analysis):
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
"""


@pytest.fixture
def run(finished_copy: Path) -> Path:
    """A finished run with the analyses that cost nothing."""
    return finished_copy


def analyses_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())["analyses"]
    return found


def counts(tmp_path: Path) -> tuple[int, int]:
    """(answers, looks) in the store."""
    with closing(sqlite3.connect(tmp_path / "outputs" / "store.sqlite")) as db:
        return tuple(int(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in ("answers", "looks"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_same_analyses_are_made_again_and_nothing_else_changes(run: Path, souping: Cli, tmp_path: Path) -> None:
    first, before, soup = analyses_of(run), counts(tmp_path), contents(run / "soup")
    assert set(first) == FREE
    report, others = json.loads((run / "report.json").read_text()), contents(run)
    done = souping("run=run")
    assert done.code == 0, done.err
    assert "report.json" in done.out
    assert analyses_of(run) == first
    assert "not_estimable" not in first["surface"]  # answers to parts of the fold are found again
    assert counts(tmp_path) == before
    assert json.loads((run / "report.json").read_text()) == report
    assert contents(run / "soup") == soup
    after = contents(run)
    assert {name for name in others if after[name] != others[name]} <= {"report.html", "report.md"}  # order of tables


def test_shapley_is_planned_then_evaluated_then_kept(run: Path, souping: Cli, tmp_path: Path) -> None:
    before, report = counts(tmp_path), json.loads((run / "report.json").read_text())
    ingredients, items = report["selection"]["ingredients"], report["folds"]["search"]
    files = contents(run)
    planned = souping("run=run", "analysis=shapley", "plan=true")
    assert planned.code == 0, planned.err
    assert (counts(tmp_path), contents(run)) == (before, files)
    soups = 2 ** len(ingredients) - 1
    (cost,) = re.findall(rf"{soups} models on the {items} items .*: ([\d,]+) answers", planned.out + planned.err)
    done = souping("run=run", "analysis=shapley", "shapley.exact=4")
    assert done.code == 0, done.err
    made = analyses_of(run)
    assert set(made) == {*FREE, "shapley"}  # what was there stays
    new = counts(tmp_path)[0] - before[0]
    assert new == int(cost.replace(",", ""))
    assert counts(tmp_path)[1] == before[1]
    assert 0 < new <= 4 * items
    assert (run / "plots" / "shapley.png").is_file()
    again = souping("run=run", "analysis=shapley")
    assert "0 of them new: 0 answers" in again.out + again.err
    assert analyses_of(run) == made


@pytest.mark.slow
def test_the_price_of_the_plan_is_that_of_the_run(family: Path, souping: Cli, tmp_path: Path) -> None:
    arguments = [*pool_of(family), "selector=all", "optimiser=uniform", "analysis=[shapley]"]
    planned = souping(*arguments, "plan=true", "hydra.run.dir=plan")
    assert planned.code == 0, planned.err
    (stage,) = [s for s in json.loads((tmp_path / "plan/plan.json").read_text())["stages"] if "shapley" in s["name"]]
    done = souping(*arguments, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert stage["models"] == [15, 15]
    made = analyses_of(tmp_path / "run")["shapley"]
    assert sum(row["value"] for row in made["levels"][0]["players"]) == pytest.approx(made["whole"])


def test_an_analysis_of_the_users_is_shown_and_never_ends_a_run(
    run: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_count.py").write_text(OWN)
    (tmp_path / "parts" / "analysis").mkdir(parents=True)
    odd = ("none", "text", "wide", "number", "row")
    settings = {"count": "gives: null", "broken": "fails: true", **{word: f"gives: {word}" for word in odd}}
    for name, setting in settings.items():
        node = f"# @package analysis.{name}\n_target_: my_count.Count\n{setting}\n"
        (tmp_path / "parts" / "analysis" / f"{name}.yaml").write_text(node)
    done = souping("run=run", "--config-dir", "parts", f"analysis=[{','.join(settings)},wins]")
    assert done.code == 0, done.err
    assert "models were reported." in (run / "report.html").read_text()
    made = analyses_of(run)
    assert made["broken"]["failed"].startswith("ZeroDivisionError")
    assert "my_count.py" in (run / "report.md").read_text()
    for word in odd:
        assert re.search(r"my_count.Count \(.*my_count.py:\d+\) must give", made[word]["failed"])


def test_what_cannot_be_done_is_refused_and_the_report_stays(
    run: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    report = (run / "report.json").read_bytes()
    lines = (family / "items.jsonl").read_text().splitlines(keepends=True)
    other = json.dumps({**json.loads(lines[0]), "answer": "another"}) + "\n"
    (tmp_path / "fewer.jsonl").write_text("".join(lines[: len(lines) * 3 // 4]))
    (tmp_path / "other.jsonl").write_text("".join([other, *lines[1:]]))
    for words, needles in (
        (("run=nowhere",), ("run=nowhere", "finished run")),
        (("run=run", "analysis=[winz]"), ("analysis=winz", "did you mean wins")),
        (("run=run", "analysis=wins", "analysis.wins.solvd=1"), ("solvd",)),
        (("run=run", "analysis=wins", "analysis.wins.solved=yes"), ("analysis.wins.solved", "a number")),
        (("run=run", "wins"), ("wins", "run=")),
        (("check", "run=run", "analysis=wins"), ("check=true", "run=")),
        (("run=run", "analysis=wins", "upload=me/soup"), ("upload=me/soup", "run=")),
        (("run=run", "-m", "seed=1,2"), ("-m", "run=")),
        (("run=run", "store.path=none.sqlite"), ("store.path=none.sqlite",)),
        (("run=run", "analysis=shapley", "shapley.exact=13"), ("shapley.exact",)),
        (("run=run", "colour=red"), ("colour is not a key",)),
        (("run=run", "merge.dtype=float16"), ("merge settings",)),
        (("run=run", "benchmark.path=fewer.jsonl"), ("the items are not those of the run",)),
        (("run=run", "benchmark.path=other.jsonl"), ("the items are not those of the run",)),
    ):
        souping(*words).refused(*needles)
        assert (run / "report.json").read_bytes() == report, words


def test_a_run_that_ended_early_has_no_report(family: Path, souping: Cli, tmp_path: Path) -> None:
    assert souping(*pool_of(family), "stop_after=select", "selector=all", "hydra.run.dir=early").code == 0
    souping("run=early").refused("run=early has no report.json")


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
    assert souping("run=run", "analysis=[wins]").code == 0
    assert {"elsewhere", "wins"} <= set(analyses_of(run))
