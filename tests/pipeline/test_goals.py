"""A run with several goals and an objective that is not linear: one search, one look, one point written."""

from __future__ import annotations

from pathlib import Path

import pytest

import souping
from souping.core.types import entries, part

pytestmark = pytest.mark.slow


def test_a_run_writes_the_point_that_pick_names(family: Path, tmp_path: Path) -> None:
    done = souping.run(
        pool={name: family / name for name in ("ant", "bee", "cat")},
        items=family / "items.jsonl",
        selector=souping.All(),
        objective=souping.Worst(),
        evaluator=souping.LocalEvaluator(max_new_tokens=4, threads=1),
        out=tmp_path / "run",
        store=tmp_path / "store.sqlite",
        pareto=["red", "tokens"],
        pick={"red": 1.0},
        analyses={"size": souping.Size()},
    )
    data = part(part(done.report, "analyses"), "front")
    assert done.front == entries(data, "points")
    assert data["chosen"]["confirmed"]
    weights = dict(zip(data["ingredients"], data["chosen"]["weights"], strict=True))
    assert {name: share for name, share in weights.items() if share} == pytest.approx(done.weights)
    assert done.report["objective"]["coefficients"] == {}
    assert done.report["verdict"]["opened"] == 1
    assert "power" not in done.report
    sizes = part(part(done.report, "analyses"), "size")
    assert "failed" not in sizes, sizes
    soup = done.report["rows"][-1]
    assert soup["objective"]["mean"] == min(score["mean"] for score in soup["scores"].values())
    for pair in done.report["comparisons"]:
        assert pair["p_value"] == 1 or pair["difference"] > 0
    page = (done.report_dir / "report.html").read_text()
    assert "Front of red and tokens" in page
    assert "worst of" in page
