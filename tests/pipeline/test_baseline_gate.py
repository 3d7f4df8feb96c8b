"""The baseline gate: expected figures of single models are read, checked and held against what was measured."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest

from souping.core.scores import Mean
from souping.core.types import ItemScores, UserError
from souping.pipeline.evidence import FALSE_ALARM, check_expected
from souping.pipeline.settings import Expectation, expectations
from tests.conftest import Cli, make_items
from tests.support.family import answers


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({"a": 72.0, "b": {"w": 0.5}}, [("a", None, 0.72), ("b", "w", 0.005)]),  # percent as soon as one is above 1
        ({"a": 0.72, "b": 1}, [("a", None, 0.72), ("b", None, 1.0)]),
        ({}, []),
        (None, []),
    ],
)
def test_expected_scores(expected: Any, found: list[tuple[str, str | None, float]]) -> None:
    assert [(one.candidate, one.category, one.score) for one in expectations(expected)] == found


@pytest.mark.parametrize("expected", [{"a": 130}, {"a": -1}, {"a": True}, {"a": "72"}, {"a": {"w": None}}, ["a"]])
def test_what_is_no_score_is_refused(expected: Any) -> None:
    with pytest.raises(UserError, match="expected"):
        expectations(expected)


def scores(right: int) -> ItemScores:
    items = make_items(per_category=100)
    return ItemScores(items=tuple(items), values=np.array([float(int(i.answer) < right) for i in items]))


class TestChecks:
    def test_near_is_as_expected_and_far_is_not(self) -> None:
        found = expectations({"a": 70, "b": 90, "c": 40, "d": {"w": 72, "x": 20}})
        gate = check_expected(found, dict.fromkeys("abcd", scores(right=70)), Mean(), "error", "select")
        verdicts = [check["verdict"] for check in gate["checks"]]
        assert verdicts == ["as expected", "too low", "too high", "as expected", "too high"]
        assert [check["n"] for check in gate["checks"]] == [200, 200, 200, 100, 100]
        assert not gate["passed"]

    def test_right_setups_pass(self) -> None:
        """False alarms over seeded draws of six singles, three categories each: at most what is promised, and some."""
        rng, alarms, draws = np.random.default_rng(3), 0, 200
        items = tuple(make_items(per_category=60, categories=("w", "x", "y")))
        truth = dict(zip("abcdef", (0.05, 0.3, 0.5, 0.72, 0.9, 0.98), strict=True))
        found = [Expectation(candidate=n, category="w", score=p) for n, p in truth.items()]
        for _ in range(draws):
            group = rng.random((len(truth), len(items)))
            measured = {
                n: ItemScores(items=items, values=(row < p).astype(float))
                for (n, p), row in zip(truth.items(), group, strict=True)
            }
            alarms += not check_expected(found, measured, Mean(), "error", "select")["passed"]
        assert alarms <= draws * FALSE_ALARM + 3 * (draws * FALSE_ALARM) ** 0.5


RIGHT = "{% for m in messages %}{{ m.content }}{% endfor %}"
LETTERS = ",".join(ascii_letters)
WRONG = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def echo(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items that ant gets right (but for empty answers); two pools, with the right chat template and a wrong one."""
    folder = tmp_path_factory.mktemp("echo")
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    said = answers(family / "ant", [row["prompt"] for row in rows])
    for row, answer in zip(rows, said, strict=True):
        row |= {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": answer or "?"}
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for pool, template in (("right", RIGHT), ("wrong", WRONG)):
        for name in ("ant", "bee", "cat"):
            shutil.copytree(family / name, folder / pool / name)
            (folder / pool / name / "chat_template.jinja").write_text(template)
    return folder


def arguments(echo: Path, pool: str = "right") -> list[str]:
    folders = ",".join(str(echo / pool / name) for name in ("ant", "bee", "cat"))
    quick = ["evaluator.max_new_tokens=4", "evaluator.threads=1", "name=fam", "analysis=[]"]
    search = ["selector=topk", "selector.k=2", "optimiser=uniform"]
    return [f"pool.candidates=[{folders}]", f"benchmark.path={echo / 'items.jsonl'}", *quick, *search]


def stored(path: Path) -> int:
    return int(sqlite3.connect(path).execute("SELECT COUNT(*) FROM scores").fetchone()[0])


class TestRuns:
    def test_a_right_run_passes_and_says_so(self, echo: Path, souping: Cli, tmp_path: Path) -> None:
        done = souping(*arguments(echo), "expected={ant:97,bee:{red:20}}", "hydra.run.dir=out")
        assert done.code == 0, done.err
        assert "2 scores as expected on the select fold" in done.out
        gate = json.loads((tmp_path / "out" / "report.json").read_text())["gate"]
        assert (gate["passed"], gate["fold"], gate["mode"]) == (True, "select", "error")
        assert [(c["candidate"], c["category"]) for c in gate["checks"]] == [("ant", None), ("bee", "red")]
        assert gate["checks"][0]["measured"] > 0.9

    @pytest.mark.parametrize(
        "wrong", ["template", *(pytest.param(one, marks=pytest.mark.slow) for one in ("max_new_tokens", "stop"))]
    )
    def test_wrong_settings_are_caught_before_the_search(
        self, echo: Path, souping: Cli, tmp_path: Path, wrong: str
    ) -> None:
        settings = {"max_new_tokens": ["evaluator.max_new_tokens=1"], "stop": [f"evaluator.stop=[{LETTERS}]"]}
        call = [*arguments(echo, "wrong" if wrong == "template" else "right"), *settings.get(wrong, [])]
        done = souping(*call, "expected={ant:97}", "store.path=store.sqlite", "hydra.run.dir=out", "out=soup")
        assert done.code == 2
        assert len(done.err.strip().splitlines()) == 2
        assert "gate: ant does not score as expected on the select fold: check the chat template" in done.err
        assert "too low" in done.out
        assert "selected" not in done.out
        assert {path.name for path in tmp_path.iterdir()} <= {"store.sqlite", "store.sqlite-wal", "store.sqlite-shm"}
        kept = stored(tmp_path / "store.sqlite")
        assert 15 < kept < 60  # ant alone, on the select fold alone: and it stays
        assert souping(*call, "expected={ant:97}", "store.path=store.sqlite").code == 2
        assert stored(tmp_path / "store.sqlite") == kept

    @pytest.mark.slow
    @pytest.mark.parametrize(("mode", "warnings", "shown"), [("warn", 1, True), ("off", 0, False)])
    def test_other_modes_go_on(
        self, echo: Path, souping: Cli, tmp_path: Path, mode: str, warnings: int, shown: bool
    ) -> None:
        done = souping(*arguments(echo), "expected={bee:99}", f"gate={mode}", "hydra.run.dir=out")
        assert done.code == 0, done.err
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert sum("bee does not score as expected" in warning for warning in report["warnings"]) == warnings
        assert ("gate" in report) == shown

    @pytest.mark.slow
    def test_published_scores_are_gated_on_the_search_fold(self, echo: Path, souping: Cli, tmp_path: Path) -> None:
        (tmp_path / "table.csv").write_text("model,red,green,blue\nant,90,20,30\nbee,30,80,20\ncat,20,30,70\n")
        call = [*arguments(echo, "wrong"), "scores=table", "scores.path=table.csv", "expected={ant:0.97}"]
        souping(*call).refused("on the search fold")

    def test_unknown_names_are_refused_before_work(self, echo: Path, souping: Cli, tmp_path: Path) -> None:
        for setting, needles in (
            ("expected={antt:9}", ["expected: candidate=antt", "did you mean ant?"]),
            ("expected={ant:{gren:9}}", ["expected.ant: category=gren", "did you mean green?"]),
            ("expected={ant:lots}", ["expected.ant='lots'"]),
            ("gate=wran", ["gate='wran'", "did you mean warn?"]),
        ):
            souping(*arguments(echo), setting).refused(*needles)
            assert not list(tmp_path.glob("outputs/*/*"))
