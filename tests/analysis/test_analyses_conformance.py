"""What every analysis of a run promises: add a row, and it is held to all of it. With the section that shows it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from souping.analysis import Analysis, NotEstimableError
from souping.analysis.consistency import Consistency
from souping.analysis.shapley import Shapley
from souping.analysis.surface import ResponseSurface
from souping.analysis.wins import Parents, Wins
from souping.report.files import as_json
from souping.report.render import markdown, page
from souping.report.sections import DISPLAYS, drawings
from tests.conftest import ROOT
from tests.support.analyses import run_of
from tests.support.choices import differing, each
from tests.support.report import sample

ROWS: dict[str, list[Analysis]] = {
    "consistency": [Consistency(draws=20, mixtures=20)],
    "parents": [Parents(draws=20)],
    "wins": [Wins(), Wins(examples=5)],
    "surface": [ResponseSurface()],
    "shapley": [Shapley(), Shapley(players="candidates", exact=3, permutations=3)],
}
FREE = {"consistency", "parents", "wins", "surface"}


def name_of(analysis: Analysis) -> str:
    return next(name for name, rows in ROWS.items() if any(row is analysis for row in rows))


def test_every_choice_has_a_row_and_a_section() -> None:
    assert set(differing("analysis", ROWS)) == {"paper"}  # of published figures, not of a run: tests/paper
    assert set(ROWS) <= set(DISPLAYS)


def test_those_that_cost_nothing_are_made_by_default() -> None:
    (line,) = [text for text in (ROOT / "conf" / "config.yaml").read_text().splitlines() if "- analysis:" in text]
    assert set(line.split("[")[1].rstrip("]").split(", ")) == FREE
    soups = run_of().soups
    assert {name for name, rows in ROWS.items() if not any(row.asks(soups) for row in rows)} == FREE


@pytest.mark.parametrize("analysis", each(ROWS))
class TestAnalysis:
    def test_it_gives_plain_data_that_json_keeps_and_twice_the_same(self, analysis: Analysis) -> None:
        run = run_of(asked=analysis.asks)
        data = analysis.analyse(run)
        assert json.loads(as_json(data)) == json.loads(as_json(json.loads(as_json(data))))
        assert data["fold"] in ("search", "report")
        assert "NaN" not in as_json(data)
        assert as_json(analysis.analyse(run)) == as_json(data)

    def test_its_asks_follow_from_the_soups_alone_each_once(self, analysis: Analysis) -> None:
        soups = run_of().soups
        asked = [recipe.id for recipe in analysis.asks(soups)]
        assert len(asked) == len(set(asked))
        assert asked == [recipe.id for recipe in analysis.asks(soups)]

    def test_a_single_model_is_no_soup_and_that_is_said(self, analysis: Analysis) -> None:
        run = run_of(1, pool=("ant",), asked=analysis.asks)
        with pytest.raises(NotEstimableError, match=r"one|single"):
            analysis.analyse(run)

    def test_with_too_few_answers_it_says_what_it_would_take(self, analysis: Analysis) -> None:
        run = run_of(asked=analysis.asks)
        single = {r.id: run.search[r.id] for r in run.soups.candidates.values()}
        with pytest.raises(NotEstimableError, match=r"takes|again"):
            analysis.analyse(replace(run, search=single, report={}, trials=()))

    @pytest.mark.parametrize("size", [2, 4])
    def test_the_page_shows_it(self, analysis: Analysis, size: int) -> None:
        name = name_of(analysis)
        data = json.loads(as_json(analysis.analyse(run_of(size, asked=analysis.asks))))
        report, trials = sample()
        report["analyses"] = {name: data}
        section = DISPLAYS[name].section(data)
        for text in (page(report, trials, drawings(report)), markdown(report, trials)):
            assert section.title in text
            assert not section.picture or section.picture in text
        assert "nan" not in " ".join(section.lines)

    @pytest.mark.parametrize("categories", [("w",), ("w", "x")])
    def test_few_categories_are_no_fault(self, analysis: Analysis, categories: tuple[str, ...]) -> None:
        run = run_of(2, categories=categories, asked=analysis.asks)
        if len(categories) < 2 and name_of(analysis) == "consistency":
            with pytest.raises(NotEstimableError, match="it takes 2"):
                analysis.analyse(run)
        else:
            assert analysis.analyse(run)


def test_what_could_not_be_made_is_shown_as_that() -> None:
    report, trials = sample()
    report["analyses"] = {
        "wins": {"not_estimable": "too few answers"},
        "mine": {"failed": "ZeroDivisionError: <b>"},
        "yours": {"sentences": ["Twelve apples."], "tables": [{"header": ["a", "b"], "rows": [["c", 1.5]]}]},
    }
    text = page(report, trials, drawings(report))
    folded = "".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))
    for title, why in (("Wins", "not estimable: too few answers"), ("Mine", "it failed: ZeroDivisionError: &lt;b&gt;")):
        assert title in folded
        assert why in folded
    assert "Twelve apples." in text
    assert "| c | 1.5 |" in markdown(report, trials)
