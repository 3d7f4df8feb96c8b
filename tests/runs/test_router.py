"""The router: a tested row of the report, of stored answers, on which no verdict depends."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from souping.analysis.alternatives import RoutedAnswers, best_by_category, routed
from souping.checkpoints.fingerprints import fingerprint
from souping.core.protocols import Objective
from souping.core.reading import read, to_json
from souping.core.scores import Mean, WorstCategory
from souping.core.types import ItemScores, ScoreMatrix
from souping.core.unit import POINTS
from souping.report.analysis_results import read_content
from souping.report.content import Report, RouterFile
from souping.report.format import escape_markdown
from souping.report.plots import forest
from souping.report.report_page import markdown, report_table
from souping.report.run_files import as_json
from souping.report.sections import losses, report_findings, summary
from souping.report.tables import compared, shown_models, summary_table
from souping.runs.evidence import ContenderScores, VerdictTerms, gather_evidence
from souping.runs.run_report import with_scores
from souping.runs.state import Contender
from souping.statistics.corrections import holm
from tests.conftest import Cli, make_items, pool_of, recipe, report_of

ITEMS = tuple(make_items(150, ("w", "x")))
SINGLES = {"a": recipe(1.0, 0.0), "b": recipe(0.0, 1.0)}
SOUP = recipe(0.5, 0.5)
UNIFORM = recipe(0.4, 0.6)
ROUTED = recipe(0.1, 0.9)


def right(**rates: float) -> ItemScores:
    """Right-or-wrong answers: the same items of a category are the hardest for all models."""
    values = np.zeros(len(ITEMS))
    for category, rate in rates.items():
        places = np.flatnonzero([item.category == category for item in ITEMS])
        values[places[: round(rate * len(places))]] = 1.0
    return ItemScores(items=ITEMS, values=values)


def table(values: Sequence[Sequence[float]], names: Sequence[str] = ("a", "b")) -> ScoreMatrix:
    return ScoreMatrix(models=tuple(names), categories=("w", "x"), values=np.array(values))


def route(experts: Mapping[str, ItemScores], chosen_by: ScoreMatrix) -> RoutedAnswers | None:
    """Each category by the expert that is best in it by a table."""
    routes = best_by_category(list(experts), chosen_by, [item.category for item in ITEMS])
    return routed(experts, routes, chosen_by.models)


EXPERTS = {"a": right(w=0.9, x=0.3), "b": right(w=0.3, x=0.9)}
ROUTES = table([[0.9, 0.3], [0.3, 0.9]])


def report(
    soup: ItemScores,
    experts: dict[str, ItemScores] = EXPERTS,
    routes: ScoreMatrix = ROUTES,
    look: int = 1,
    objective: Objective | None = None,
) -> dict[str, Any]:
    """A report of two experts, a uniform soup, the router and the soup."""
    router = route(experts, routes)
    assert router is not None
    rows = [Contender(name=n, kind="ingredient", recipe=own) for n, own in SINGLES.items()]
    rows += [
        Contender(name="a", kind="best_candidate", recipe=SINGLES["a"]),
        Contender(name="uniform_all", kind="uniform_all", recipe=UNIFORM),
        Contender(name=router.name, kind="router", recipe=SINGLES.get(router.name, ROUTED)),
        Contender(name="soup", kind="soup", recipe=SOUP),
    ]
    measured = {SINGLES[name].id: own for name, own in experts.items()}
    measured |= {UNIFORM.id: right(w=0.55, x=0.55), SOUP.id: soup}
    measured.setdefault(rows[-2].recipe.id, router.scores)
    models = ContenderScores(
        unit=POINTS,
        soup=rows[-1],
        others=rows[:-1],
        scores=measured,
        objective=objective or Mean(),
        look=look,
    )
    terms = VerdictTerms(selected=("a", "b"))
    evidence = to_json(gather_evidence(Report(name="run"), models, terms))
    assert isinstance(evidence, dict)
    routed_to = len(set(router.routes.values()))
    score = float(router.scores.values.mean())
    return {
        **evidence,
        "router": {
            "score": score,
            "routes": dict(router.routes),
            "models": routed_to,
            "answers": 1,
        },
    }


def pair_of(found: dict[str, Any], kind: str = "router") -> dict[str, Any]:
    (pair,) = [one for one in found["comparisons"] if one["kind"] == kind]
    return dict(pair)


def told(found: dict[str, Any]) -> list[str]:
    content = read_content(found)
    return [line for line in report_findings(content) if line not in losses(content)]


def on_terminal(found: dict[str, Any]) -> str:
    terminal = io.StringIO()
    Console(file=terminal, width=120).print(report_table(read_content(found)))
    return terminal.getvalue()


def test_an_item_is_answered_by_the_ingredient_of_its_category_with_how_its_answer_ended() -> None:
    lost = np.array([item.category == "w" for item in ITEMS]) * 0.5
    experts = {
        "a": replace(EXPERTS["a"], unanswered=lost, truncated=1 - lost),
        "b": EXPERTS["b"],
    }
    router = route(experts, ROUTES)
    assert router is not None
    assert (router.name, router.routes) == ("router", {"w": "a", "x": "b"})
    for place, item in enumerate(ITEMS):
        model = experts[router.routes[item.category]]
        for column in ("values", "unanswered", "truncated"):
            answered = vars(router.scores)[column][place]
            assert answered == vars(model)[column][place]


def test_a_category_that_the_table_lacks_is_routed_by_the_others() -> None:
    scores = ScoreMatrix(models=("a", "b"), categories=("x",), values=np.array([[0.2], [0.8]]))
    router = route(EXPERTS, scores)
    assert router is not None
    assert router.routes == {"w": "b", "x": "b"}


def test_the_name_of_a_router_is_that_of_no_other_model() -> None:
    named = {"a": EXPERTS["a"], "router": EXPERTS["b"]}
    router = route(named, table(ROUTES.values.tolist(), ("a", "router")))
    assert router is not None
    assert router.name not in named
    alone = route(EXPERTS, table([[0.9, 0.9], [0.3, 0.3]]))
    assert alone is not None
    assert alone.name == "a"


def test_losses_have_no_router() -> None:
    assert route({"a": replace(EXPERTS["a"], values=-EXPERTS["a"].values)}, ROUTES) is None


@pytest.mark.parametrize(("level", "word"), [(0.6, "better"), (1.0, "worse")])
def test_a_router_that_differs_beyond_chance_is_said_with_its_price(
    level: float, word: str
) -> None:
    found = report(right(w=level, x=level))
    pair = pair_of(found)
    assert pair["low"] > 0 or pair["high"] < 0
    assert pair["p_holm"] < 0.05
    (line,) = told(found)
    assert f"is {word} than the soup" in line
    assert "2 models in memory" in line
    assert escape_markdown(line) in markdown(read_content(found), [])
    assert line in " ".join(on_terminal(found).split())
    (cells,) = [row for row in summary_table(read_content(found)).rows if row[0].text == "router"]
    row = [cell.text for cell in cells]
    assert row[1] == "2 models in memory, needs the category"
    assert row[2].startswith("90.0 [")
    assert row[3].startswith(f"{100 * pair['difference']:+.1f} [".replace("-", "\N{MINUS SIGN}"))
    assert row[4] == "< 0.001"
    assert forest(read_content(found)) is not None


def test_a_uniform_soup_that_is_better_is_named_and_so_is_what_to_do_next() -> None:
    """As a router is; a worse one is no news."""
    for level, difference in ((0.6, -0.2), (0.98, 0.2)):
        found = report(right(w=level, x=level))
        pair = pair_of(found, "uniform_all")
        pair |= {"difference": difference, "low": difference - 0.1, "high": difference + 0.1}
        found["comparisons"] = [
            pair | {"p_holm": 0.008} if one["kind"] == "uniform_all" else one | {"p_holm": 1.0}
            for one in found["comparisons"]
        ]
        content = read_content(found)
        (next_step,) = [line for line in summary(content) if line.startswith("Next (")]
        assert any("uniform over all" in line for line in told(found)) == (difference < 0)
        assert ("uniform over all" in next_step) == (difference < 0)


def test_a_router_that_is_better_is_what_to_deploy_instead() -> None:
    (next_step,) = [
        line
        for line in summary(read_content(report(right(w=0.6, x=0.6))))
        if line.startswith("Next (")
    ]
    assert next_step.endswith("or deploy the router, which scored higher.")


def test_a_router_as_good_as_the_soup_is_a_row_without_a_sentence() -> None:
    found = report(right(w=0.9, x=0.9))
    pair = pair_of(found)
    assert (pair["difference"], pair["p_holm"]) == (0.0, 1.0)
    assert told(found) == []
    assert "2 models in memory" in on_terminal(found)


def test_a_router_that_is_one_model_is_a_role_of_it() -> None:
    found = report(right(w=0.7, x=0.7), routes=table([[0.9, 0.9], [0.3, 0.3]]))
    content = read_content(found)
    (model,) = [model for model in shown_models(content) if "router" in model.roles]
    assert set(model.roles) == {"router", "best_candidate", "ingredient"}
    assert model.cell.text == "a"
    assert "memory" not in model.cell.sub
    assert [shown.row.name for shown, _ in compared(content)].count("a") == 1
    assert told(found) == []


def test_holm_corrects_the_router_with_the_uniform_soups_and_no_verdict_depends_on_it() -> None:
    found = report(right(w=0.6, x=0.6))
    secondary = [pair for pair in found["comparisons"] if pair["p_holm"] is not None]
    assert [pair["kind"] for pair in secondary] == ["uniform_all", "router"]
    assert [pair["p_holm"] for pair in secondary] == holm([pair["p_look"] for pair in secondary])
    swapped = report(right(w=0.6, x=0.6), routes=table([[0.3, 0.9], [0.9, 0.3]]))
    assert pair_of(swapped)["difference"] > 0 > pair_of(found)["difference"]
    assert swapped["verdict"] == found["verdict"]
    assert swapped["losses"] == found["losses"]


def test_a_later_look_widens_the_interval_of_the_router() -> None:
    first = report(right(w=0.6, x=0.6), look=1)
    second = report(right(w=0.6, x=0.6), look=2)
    before = pair_of(first)
    after = pair_of(second)
    assert after["low"] < before["low"]
    assert after["level"] > before["level"]
    assert after["p_look"] == pytest.approx(min(1.0, 6 * after["p_value"]))


def test_missing_answers_of_a_router_are_bounded_by_opposing_corners() -> None:
    """The soup is better only because the answers of an ingredient were never received."""
    lost = (np.arange(len(ITEMS)) % 8 == 0) * 1.0
    lacking = {
        name: replace(own, values=own.values * (1 - lost), unanswered=lost)
        for name, own in EXPERTS.items()
    }
    found = report(right(w=0.9, x=0.9), experts=lacking)
    pair = pair_of(found)
    assert pair["difference"] > 0.05
    assert pair["low"] <= 0 < pair["high"]
    assert pair["p_value"] == 1
    assert found["outcomes"]["router"]["unanswered"] == pytest.approx(lost.mean())
    assert told(found) == []


def test_nothing_is_said_of_a_router_where_nothing_is_claimed() -> None:
    lost = (np.arange(len(ITEMS)) % 3 == 0) * 1.0
    found = report(replace(right(w=0.2, x=0.2), truncated=lost))
    assert found["verdict"]["claim"] == "not_measured"
    assert pair_of(found)["p_holm"] < 0.05
    assert told(found) == []
    assert told({**report(right(w=0.6, x=0.6)), "dry_run": 5}) == []


def test_the_router_is_better_in_the_worst_category_if_it_is_better_in_all() -> None:
    better = report(right(w=0.6, x=0.6), objective=WorstCategory())
    assert pair_of(better)["difference"] == pytest.approx(-0.3)
    assert len(told(better)) == 1
    mixed = report(right(w=1.0, x=0.6), objective=WorstCategory())
    assert pair_of(mixed)["p_value"] == 1
    assert told(mixed) == []


# ------------------------------------------------------------ router.json

FINGERPRINTS = {"a": "f-a", "b": "f-b"}


def file_of(
    scores: ScoreMatrix, categories: Sequence[str], fingerprints: Mapping[str, str] = FINGERPRINTS
) -> dict[str, Any]:
    """The `routes` of router.json as a reader of the file gets them."""
    routes = best_by_category([*fingerprints], scores, categories)
    made = RouterFile(routes=with_scores(routes, scores, fingerprints, POINTS))
    text = as_json(made)
    assert text.isascii()
    assert read(RouterFile, json.loads(text)) == made
    found: dict[str, Any] = json.loads(text)["routes"]
    return found


def measured(**scores: ItemScores) -> ScoreMatrix:
    return ScoreMatrix.from_items(scores)


def test_a_route_has_its_model_with_fingerprint_score_and_number_of_items() -> None:
    assert file_of(measured(**EXPERTS), ["w", "x"]) == {
        "w": {"model": "a", "fingerprint": "f-a", "score": 0.9, "n": 150},
        "x": {"model": "b", "fingerprint": "f-b", "score": 0.9, "n": 150},
    }


@pytest.mark.parametrize(
    "name", ["", "two words", 'a "quoted" one', "../x", "line\nend", "\u00fc \U0001f372", "{w}: #"]
)
def test_names_of_models_and_categories_may_be_odd(name: str) -> None:
    items = tuple(replace(item, category=name) for item in ITEMS)
    scores = {"plain": replace(EXPERTS["b"], items=items), f"{name} ": right(w=1, x=1)}
    scores[f"{name} "] = replace(scores[f"{name} "], items=items)
    found = file_of(measured(**scores), [name], {"plain": "f", f"{name} ": "g"})
    assert found == {name: {"model": f"{name} ", "fingerprint": "g", "score": 1.0, "n": 300}}


def test_one_category_has_one_route() -> None:
    items = make_items(30, ("all",))
    values = np.arange(30) % 3 == 0
    scores = ItemScores(items=tuple(items), values=values * 1.0)
    found = file_of(measured(a=scores, b=scores), ["all", "all"])
    assert found["all"].keys() == {"model", "fingerprint", "score", "n"}
    assert (found["all"]["score"], found["all"]["n"]) == (pytest.approx(10 / 30), 30)


def test_of_equal_models_the_first_answers_whatever_order_its_points_were_added_in() -> None:
    items = tuple(make_items(3, ("w",)))
    points = np.array([0.1, 0.2, 0.3])
    backwards = np.array([0.3, 0.2, 0.1])
    # In this order, the sum is larger by its last digit.
    assert points.mean() > backwards.mean()
    first = ItemScores(items=items, values=backwards)
    second = ItemScores(items=items, values=points)
    assert file_of(measured(a=first, b=second), ["w"])["w"]["model"] == "a"


def test_a_missing_answer_is_a_wrong_one_of_the_items_that_count() -> None:
    lost = np.array([item.category == "w" for item in ITEMS]) * 1.0
    silent = replace(right(x=0.2), unanswered=lost)
    found = file_of(measured(a=silent, b=right(x=0.1)), ["w", "x"])
    assert found["w"] == {"model": "a", "fingerprint": "f-a", "score": 0.0, "n": 150}


def test_a_category_without_items_on_the_select_split_has_a_route_and_no_score() -> None:
    route_of_y = file_of(measured(**EXPERTS), ["w", "y"])["y"]
    assert route_of_y == {"model": "a", "fingerprint": "f-a", "score": None, "n": None}


# ------------------------------------------------------------ whole runs


def test_a_run_has_the_router_in_its_report_samples_and_on_the_terminal(
    finished_copy: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    found = report_of(finished_copy)
    (row,) = [row for row in found["rows"] if row["kind"] == "router"]
    assert found["router"].keys() == {"score", "routes", "models", "answers"}
    assert row["objective"]["mean"] == pytest.approx(found["router"]["score"])
    assert pair_of(found)["b"] == row["name"]
    ids = {one["recipe_id"] for one in found["rows"] if one["kind"] != "router"}
    assert (row["recipe_id"] in ids) == (found["router"]["models"] == 1)
    assert row["name"] in (tmp_path / "terminal.txt").read_text()
    lines = gzip.decompress((finished_copy / "samples.jsonl.gz").read_bytes()).splitlines()
    for line in map(json.loads, lines):
        route = found["router"]["routes"][line["category"]]
        assert line["models"][row["name"]] == line["models"][route]
    said = souping("show", "run", "--models", f"{row['name']},soup", "-n", "1").ok().out
    assert row["name"] in said
    routes = json.loads((finished_copy / "router.json").read_text())["routes"]
    assert {name: route["model"] for name, route in routes.items()} == found["router"]["routes"]
    for category, route in routes.items():
        points = [
            line["models"][route["model"]]["score"]
            for line in map(json.loads, lines)
            if (line["category"], line["split"]) == (category, "select")
        ]
        assert (route["score"], route["n"]) == (pytest.approx(np.mean(points)), len(points))
        assert route["fingerprint"] == fingerprint(family / route["model"])


@pytest.mark.slow
def test_compare_leaves_the_router_to_the_report(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = ["selector=topk", "selector.k=3", "optimiser=uniform", "hydra.run.dir=run"]
    souping(*pool_of(family), *words, *published(tmp_path)).ok()
    found = report_of(tmp_path / "run")
    assert found["router"]["routes"] == {"red": "ant", "green": "bee", "blue": "cat"}
    (row,) = [row for row in found["rows"] if row["kind"] == "router"]
    assert row["name"] == "router"
    souping("compare", "base=run:router", "soup=run").refused("router", "ant", "uniform_all")
    assert souping("compare", "base=run:ant", "soup=run").code in (0, 1)


def published(folder: Path) -> list[str]:
    """Published scores in which each of three candidates is best in one category."""
    rows = ["model,red,green,blue", "ant,90,50,40", "bee,50,90,40", "cat,40,40,90", "dog,1,2,3"]
    (folder / "board.csv").write_text("\n".join(rows))
    return ["scores=table", "scores.path=board.csv"]


def test_a_dry_run_shows_the_router_and_says_nothing_of_it(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = ["selector=topk", "selector.k=3", "optimiser=uniform", "dry_run=2", "hydra.run.dir=run"]
    souping(*pool_of(family), *words, *published(tmp_path)).ok()
    found = report_of(tmp_path / "run")
    assert pair_of(found)["b"] == "router"
    assert told(found) == []
    file = json.loads((tmp_path / "run/router.json").read_text())
    assert file["dry_run"] == 2
    # The benchmark's own scores chose, on items that nobody knows.
    assert {route["score"] for route in file["routes"].values()} == {None}
    assert {route["n"] for route in file["routes"].values()} == {None}


@pytest.mark.slow
def test_one_ingredient_has_no_router_to_compare(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = ["selector=topk", "selector.k=1", "hydra.run.dir=run"]
    souping(*pool_of(family), *words, *published(tmp_path)).ok()
    found = report_of(tmp_path / "run")
    assert found["router"]["models"] == 1
    assert "router" not in {one["kind"] for one in [*found["rows"], *found["comparisons"]]}
