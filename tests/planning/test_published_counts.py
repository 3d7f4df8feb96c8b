"""Evaluations that docs and headers of experiments state: those that `plan=true` counts, where nothing is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.test_experiments import CHOSEN
from tests.conftest import ROOT, Cli

FIVE = "pool.candidates=[o/m1-8B,o/m2-8B,o/m3-8B,o/m4-8B,o/m5-8B]"
EXPERIMENTS = {"bfcl_8b": (), "bfcl_70b": (), "mgsm": (), "infinitebench": (FIVE,), "flores": (FIVE,)}
DOCS = ROOT / "docs" / "paper.md"


def stated(name: str) -> list[int]:
    """The evaluations in the row of an experiment."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}`")]
    row = next(line for line in rows if re.search(r"items?/s", line))
    cell = next(cell for cell in row.split("|") if re.fullmatch(r"\s*\d[\d,]*,\d{3}( to [\d,]+)?\s*", cell))
    return [int(number.replace(",", "")) for number in cell.split(" to ")]


@pytest.mark.parametrize(
    "name", [name if name == "bfcl_8b" else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
)
def test_docs_headers_and_plans_count_the_same(
    name: str, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SOUPING_BFCL", str(tmp_path / "nowhere"))
    monkeypatch.setattr("souping.evaluate.lm_eval.evaluator.find_spec", lambda package: None)
    done = souping(f"+experiment={name}", *EXPERIMENTS[name], "plan=true", "hydra.run.dir=planned")
    assert "this run cannot go on here" in done.out, done.err
    assert "Traceback" not in done.err
    sheet = (tmp_path / "planned" / "plan.md").read_text()
    assert ("its own group" in sheet) == (name == "infinitebench")  # several questions on a book, known by its text
    assert "Missing on this machine" in sheet
    assert [ingredient for ingredient in CHOSEN.get(name, []) if ingredient not in sheet] == []
    todo = json.loads((tmp_path / "planned" / "plan.json").read_text())["evaluations"]["todo"]
    assert sorted(set(todo)) == stated(name)
    header = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    for number in re.findall(r"\(([\d,]+) evaluations\)", header):
        assert int(number.replace(",", "")) == todo[0]
