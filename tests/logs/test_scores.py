"""Selection from logs: item by item, so that its stability is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.analysis.stability import stability
from souping.core.types import ScoreMatrix, UserError
from souping.logs.scores import LogScores
from souping.selection import All
from tests.conftest import Cli, pool_of
from tests.logs.test_readers import DATA, write_csv

LM_EVAL = {name: str(DATA / "lm_eval" / name) for name in ("python_cook", "java_cook")}


def unmeasured() -> ScoreMatrix:
    raise AssertionError("logs are not measured")


def source(folder: Path, scores: dict[str, list[Any]]) -> LogScores:
    paths = {}
    for name, values in scores.items():
        rows = [
            {"item": n, "category": "c", "score": value, "group": n // 2}
            for n, value in enumerate(values)
        ]
        paths[name] = str(write_csv(folder / f"{name}.csv", rows))
    return LogScores(path=paths)


def test_tasks_are_categories_with_the_harness_own_scores() -> None:
    found = LogScores(path=LM_EVAL).matrix(["java_cook"], unmeasured)
    assert set(found.categories) == {"pick", "pick2", "shots", "last"}  # no corpus metric
    assert found.candidates == ("java_cook",)
    assert found.models == ("python_cook", "java_cook")
    assert found.values[0, found.categories.index("pick")] == 0.25
    steady = stability(found, All(), draws=20)
    assert steady.method == "bootstrap over items"


def test_items_without_a_score_are_left_out_for_all(tmp_path: Path) -> None:
    found = source(tmp_path, {"a": [1, 1, 0, ""], "b": [0, 1, "", 1]}).matrix(
        ["a", "b"], unmeasured
    )
    np.testing.assert_array_equal(found.values, [[1.0], [0.5]])
    assert found.items is not None
    assert [item.group for item in found.items["a"].items] == ["0", "0"]


@pytest.mark.parametrize(
    ("scores", "candidates", "words"),
    [
        ({"a": [1, 0], "b": [0, 1]}, ["a", "c"], "scores.path"),
        ({"a": [1, ""], "b": ["", 1]}, ["a", "b"], "scored for every model"),
        ({"a": [50, 40], "b": [40, 50]}, ["a", "b"], "higher_is_better"),
    ],
)
def test_what_cannot_select(
    tmp_path: Path, scores: dict[str, list[Any]], candidates: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        source(tmp_path, scores).matrix(candidates, unmeasured)


@pytest.mark.slow
def test_a_run_selects_from_logs(souping: Cli, family: Path, tmp_path: Path) -> None:
    """A whole run: no candidate is evaluated on a select fold, and the report has the selection's stability."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        rows = [
            {"item": n, "category": "xyz"[n % 3], "score": int(rng.random() < 0.5)}
            for n in range(60)
        ]
        write_csv(tmp_path / f"{name}.csv", rows)
    logs = ",".join(f"{name}:{name}.csv" for name in ("ant", "bee", "cat"))
    words = [
        *pool_of(family, "ant", "bee", "cat"),
        "scores=logs",
        f"scores.path={{{logs}}}",
        "selector.threshold=0.9",
    ]
    done = souping(*words, "optimiser=uniform", "hydra.run.dir=run")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["folds"]["select"] == 0
    assert report["stability"]["method"] == "bootstrap over items"
    assert report["selection"]["published"]
    souping(*words[:-2], "scores.path={ant:ant.csv,bee:bee.csv}", "stop_after=select").refused(
        "scores.path", "cat"
    )
