"""sweeps/paper: the paper's selections, weights and gains again, held against the published figures."""

from __future__ import annotations

import csv
import importlib
import json
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from souping.core import simplex
from tests.conftest import PAPER, ROOT, Cli

SCRIPTS = ROOT / "sweeps" / "paper"


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts of sweeps/paper, which import one another by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return {name: importlib.import_module(name) for name in ("tables", "selection", "weights")}


def roles(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((PAPER / "results.csv").open())
    return {row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)}


CASES = [("bfcl_v3", "70b", 0), ("bfcl_v3", "8b", 1), ("mgsm", "7b", 2)]


@pytest.mark.parametrize(("benchmark", "scale", "index"), CASES)
def test_selection_is_shown_beside_the_papers(
    benchmark: str, scale: str, index: int, paper: dict[str, ModuleType]
) -> None:
    table = paper["selection"].TABLES[index]
    chosen = {name for name, row in roles(benchmark, scale).items() if row["role"] == "ingredient"}
    assert set(table.chosen) == chosen
    rows = {row[0]: row for row in paper["selection"].rows(table)}
    for row in rows.values():
        names = set(row[2].split(", "))
        added, lacking = names - chosen, chosen - names
        words = set() if row[3] == "the paper's" else set(row[3].split(", "))
        assert words == {f"adds {n}" for n in added} | {f"lacks {n}" for n in lacking}


def test_where_the_rule_and_the_paper_disagree(paper: dict[str, ModuleType]) -> None:
    big, small_, mgsm = paper["selection"].TABLES
    says = {t.title: " ".join(paper["selection"].sentences(t)) for t in (big, small_, mgsm)}
    stated = {t.title: paper["selection"].rows(t)[0] for t in (big, small_, mgsm)}
    assert stated[big.title][3] == "adds functionary-medium-v3.1"
    assert stated[small_.title][3] == "the paper's"
    assert stated[mgsm.title][2] == "MetaMathOctopus-MAPO-DPO-7B"
    assert "No threshold of any reading" in says[big.title]
    assert "above 0.037 up to 0.250" in says[small_.title]
    assert "(ES, FR, RU, TH): nothing to soup" in says[mgsm.title]
    assert "absolute, ties=all: 0.287 < threshold" in says[mgsm.title]
    assert "ties=overall:" not in says[mgsm.title]


@pytest.mark.parametrize(("sign", "ties"), [("absolute", "overall"), ("absolute", "all"), ("signed", "first")])
def test_the_pieces_cover_every_threshold(sign: str, ties: str, paper: dict[str, ModuleType]) -> None:
    module = paper["selection"]
    scores = module.TABLES[1].scores
    pieces = module.pieces(scores, sign, ties)
    assert pieces[-1][1] == 1.0
    for (_, high, names), (low, _, others) in pairwise(pieces):
        assert high == low
        assert names != others
    for low, high, names in pieces:
        for threshold in (low + 1e-6, high):
            assert module.Reading(threshold=threshold, sign=sign, ties=ties).select(scores).ingredients == names


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_command_line_selects_the_same(
    index: int, paper: dict[str, ModuleType], souping: Cli, tmp_path: Path
) -> None:
    table = paper["selection"].TABLES[index]
    words = shlex.split(table.command.replace("souping/examples/paper", str(PAPER)))
    assert words[:3] == ["python", "-m", "souping"]
    done = souping(*words[3:], "hydra.run.dir=run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/selection.json").read_text())
    selection = paper["selection"].STATED.select(table.scores)
    assert found["ingredients"] == list(selection.ingredients)
    assert found["low_correlation"] == list(selection.low_correlation)


def test_the_published_weights_are_points_of_the_grid(paper: dict[str, ModuleType]) -> None:
    module = paper["weights"]
    assert module.on_grid([0.05, 0.05, 0.9]) == 0
    rows = list(csv.DictReader((PAPER / "recipes.csv").open()))
    for line in module.weights_found().rows:
        weights = [float(row["weight"]) for row in rows if row["experiment"] == line[0]]
        place, count = map(int, line[2].split(" of "))
        assert simplex.grid(len(weights))[place - 1] == pytest.approx(weights)
        assert count == len(simplex.grid(len(weights))) == 36


def test_gains_follow_from_the_totals(paper: dict[str, ModuleType]) -> None:
    found = {row[0]: row for row in paper["weights"].gains_found().rows}
    for benchmark, scale in (("bfcl_v3", "70b"), ("bfcl_v3", "8b"), ("mgsm", "7b"), ("infinitebench", "70b")):
        rows = roles(benchmark, scale)
        best = max(float(r["score"]) for r in rows.values() if r["role"] in ("ingredient", "candidate"))
        soup, uniform = float(rows["soce"]["score"]), float(rows["uniform_selected"]["score"])
        shown = found[f"{benchmark} {scale}"]
        assert shown[2] == f"{soup - best:+.2f} / {100 * (soup - best) / best:+.2f} %"
        assert shown[4] == f"{soup - uniform:+.2f} / {100 * (soup - uniform) / uniform:+.2f} %"
    assert found["bfcl_v3 70b"][4] == "+2.28 / +2.91 %"
    assert found["bfcl_v3 8b"][4] == "+2.49 / +3.36 %"


def test_printed_gains_are_matched_or_said_not_to_match(paper: dict[str, ModuleType]) -> None:
    shown = {(row[0], row[1]): row[3] for row in paper["weights"].printed_found().rows}
    assert shown["bfcl_v3 70b", "2.28 %"] == "SoCE over uniform_selected, points"
    assert shown["bfcl_v3 8b", "3.44 %"].startswith("none; the nearest is 3.36")
    assert shown["infinitebench 70b", "1.15 %"].startswith("none; the nearest is 1.49")
    assert shown["infinitebench 70b", "0.66 %"].startswith("none")
    assert "SoCE over best candidate, relative" in shown["infinitebench 70b", "2.05 %"]
    says = " ".join(paper["weights"].remarks())
    assert "average 52.24, Table 2a prints 51.7" in says
    assert "eng_spa repeats spa_eng" in says


def test_results_in_the_repository_are_current(
    paper: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (SCRIPTS / "results.md").read_text()
    for name in ("selection", "weights"):
        assert paper[name].main(["--markdown"]) == 0
        assert capsys.readouterr().out in page
        assert paper[name].main([]) == 0
        assert "┃" in capsys.readouterr().out
