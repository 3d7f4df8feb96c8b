"""The paper again from published figures: selections, weights, gains, and the page that shows them."""

from __future__ import annotations

import csv
import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.paper.findings import Finding, FindingVerdict, findings, gains
from souping.paper.published import PAPER_TABLES, PaperTable
from souping.paper.readings import CLUSTERS, STATED, Sign, Ties, reading, spans
from souping.paper.reproduction import PaperFigures, PaperResult
from souping.report.analysis_results import drawings, read_content
from souping.report.report_page import markdown
from souping.selection import SoCECluster
from tests.conftest import PAPER, Cli
from tests.support.analyses import result_json, run_of

BIG, SMALL, MGSM, FLORES = PAPER_TABLES


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """What the analysis makes of the published figures."""
    figures: dict[str, Any] = result_json(PaperFigures(), run_of())
    return figures


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Finding]:
    return {(one.of, one.what): one for one in findings()}


def roles(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((PAPER / "results.csv").open())
    return {
        row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)
    }


@pytest.mark.parametrize("table", PAPER_TABLES[:3], ids=lambda table: table.file)
class TestSelections:
    def test_the_papers_choice_is_read_from_its_table(self, table: PaperTable) -> None:
        rows = roles(table.benchmark, table.scale)
        assert set(table.chosen) == {
            name for name, row in rows.items() if row["role"] == "ingredient"
        }

    def test_the_command_line_selects_the_same(
        self, table: PaperTable, souping: Cli, tmp_path: Path
    ) -> None:
        words = shlex.split(table.command)
        assert words[:3] == ["python", "-m", "souping"]
        done = souping(*words[3:], "hydra.run.dir=run")
        assert done.code == 0, done.err
        written = json.loads((tmp_path / "run/selection.json").read_text())
        selection = STATED.select(table.scores)
        assert written["ingredients"] == list(selection.ingredients)
        assert written["low_correlation"] == list(selection.low_correlation)


def test_the_rule_and_the_paper_disagree_in_these_tables(data: dict[str, Any]) -> None:
    told = {one["title"]: one for one in data["selections"]}
    assert told[BIG.title]["beside"] == "adds functionary-medium-v3.1"
    assert "No threshold of any reading" in told[BIG.title]["notes"][-1]
    assert told[SMALL.title]["beside"] == "the paper's"
    second = told[SMALL.title]["thresholds"][1]
    assert (round(second["above"], 3), round(second["to"], 3)) == (0.037, 0.25)
    assert told[MGSM.title]["stated"] == ["MetaMathOctopus-MAPO-DPO-7B"]
    assert "(ES, FR, RU, TH): nothing to soup" in told[MGSM.title]["notes"][0]
    assert "absolute, ties=all: 0.287 < threshold" in told[MGSM.title]["notes"][-1]
    assert told[FLORES.title]["paper"] == []
    for selection in told.values():
        assert sum(len(row["rules"]) for row in selection["readings"]) == 9
    readings = told[SMALL.title]["readings"]
    (clusters,) = [row["ingredients"] for row in readings if CLUSTERS in row["rules"]]
    assert clusters == list(
        SoCECluster(correlation=pearson, objective=Mean()).select(SMALL.scores).ingredients
    )
    assert len(told[FLORES.title]["stated"]) > 1


@pytest.mark.parametrize(
    ("sign", "ties"), [("absolute", "overall"), ("absolute", "all"), ("signed", "first")]
)
def test_the_spans_cover_every_threshold(sign: Sign, ties: Ties) -> None:
    scores = SMALL.scores
    pieces = spans(scores, sign, ties)
    assert pieces[-1][1] == 1.0
    for (_, high, names), (low, _, others) in pairwise(pieces):
        assert high == low
        assert names != others
    for low, high, names in pieces:
        for threshold in (low + 1e-6, high - 1e-9):
            assert reading(threshold, sign, ties).select(scores).ingredients == names


def test_gains_follow_from_the_totals(found: dict[tuple[str, str], Finding]) -> None:
    for benchmark, scale in (
        ("bfcl_v3", "70b"),
        ("bfcl_v3", "8b"),
        ("mgsm", "7b"),
        ("infinitebench", "70b"),
    ):
        rows = {name: float(row["score"]) for name, row in roles(benchmark, scale).items()}
        told = gains(benchmark, scale)
        assert told["soce over uniform_selected, points"] == pytest.approx(
            rows["soce"] - rows["uniform_selected"]
        )
        relative = 100 * (rows["soce"] - rows["uniform_all"]) / rows["uniform_all"]
        assert told["soce over uniform_all, relative"] == pytest.approx(relative)
    uniform = "SoCE over the uniform soup of the selected"
    assert found["Table 1a", uniform].ours == "2.91 %, +2.28 points"
    assert (found["Table 1b", uniform].ours, found["Table 1b", uniform].verdict) == (
        "3.36 %, +2.49 points",
        "differs",
    )
    best = "SoCE over the best candidate"
    assert {found[table, best].verdict for table in ("Table 1a", "Table 1b", "Table 2a")} == {
        "agrees"
    }


def test_disagreements_inside_the_paper_are_said(found: dict[tuple[str, str], Finding]) -> None:
    mgsm = found["Table 2a", "total of SoCE; mean of the ten languages of Figure 3b"]
    assert (mgsm.paper, mgsm.ours, mgsm.verdict) == ("51.7", "52.24", "differs")
    flores = found["Table 5", "means of the 36 directions: candidates 1 to 5"]
    assert flores.note.startswith("the means imply 32.0, 32.0, 31.8, 32.0, 32.0 for eng_spa")
    assert (
        found["Table 5", "mean of the 36 directions: SoCE"].note
        == "0.20 below the mean of its own columns"
    )
    table3 = found["Table 3", "BFCL scores of 8b-m1, 8b-m2, 8b-m3; the same of Table 1b"]
    assert "8b-m1 and 8b-m3" in table3.note
    assert {one.verdict for one in found.values()} <= set(get_args(FindingVerdict))


def test_the_page_has_every_finding_and_picture(data: dict[str, Any]) -> None:
    report = read_content({"analyses": {"paper": data}}, {"paper": PaperResult})
    text = markdown(report, []).replace("\\", "")
    for row in data["findings"]:
        assert row["what"][1:] in text
    assert (
        text.index("The paper: what disagrees")
        < text.index("What agrees")
        < text.index("What cannot be redone")
    )
    pictures = drawings(report)
    assert [drawing.name for drawing in pictures] == ["figure1"]
    for drawing in pictures:
        assert f"plots/{drawing.name}.png" in text
