"""A whole run that selects, searches and reports by loss: lower is better in each of its files and commands."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping import demo
from tests.conftest import Cli, command_line
from tests.support.texts import SOURCES, write

NAMES = ("tuned_python", "tuned_java", "tuned_parallel")


def words(texts: Path) -> list[str]:
    return [
        f"pool.candidates=[{','.join(str(demo.path(name)) for name in NAMES)}]",
        f"benchmark.path={texts}",
        "evaluator=loss",
        "evaluator.device=cpu",
        "evaluator.threads=1",
        "selector.threshold=0.99",
        "optimiser=grid",
        "optimiser.step=0.5",
        "name=texts",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loss")
    assert command_line(folder, *words(write(folder / "texts.jsonl")), "hydra.run.dir=run") == 0
    return folder


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "run" / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def samples(place: Path) -> list[dict[str, Any]]:
    with gzip.open(place / "run" / "samples.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


pytestmark = pytest.mark.slow


def losses(samples: list[dict[str, Any]], split: str) -> dict[str, dict[str, float]]:
    """{model: {source: mean bits per byte}} of the samples of a split."""
    table = dict[str, dict[str, list[float]]]()
    for line in samples:
        for name, model in line["models"].items() if line["split"] == split else ():
            table.setdefault(name, {}).setdefault(line["category"], []).append(model["score"])
    means = {}
    for name, by_source in table.items():
        means[name] = {source: float(np.mean(scores)) for source, scores in by_source.items()}
    return means


def lowest(found: Mapping[str, Any], key: str | None = None) -> str:
    return min(
        found, key=lambda name: found[name][key] if key else np.mean(list(found[name].values()))
    )


def test_reports_hold_bits_per_byte(report: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    assert (report["unit"]["name"], report["unit"]["higher_is_better"]) == ("bits per byte", False)
    measured = losses(samples, "test")
    for row in report["rows"]:
        means = {name: one["mean"] for name, one in row["scores"].items()}
        assert means == pytest.approx(measured[row["name"] if row["name"] in measured else "soup"])
        assert row["objective"]["mean"] == pytest.approx(np.mean(list(means.values())))
        assert row["objective"]["low"] < row["objective"]["mean"] < row["objective"]["high"]
    assert report["verdict"]["min_gain"] == pytest.approx(0.005)


def test_experts_and_the_best_candidate_have_the_lowest_loss(
    report: dict[str, Any], samples: list[dict[str, Any]]
) -> None:
    for source, expert in report["selection"]["experts"].items():
        assert expert == lowest(report["selection"]["scores"], source)
    single = next(row["name"] for row in report["rows"] if row["kind"] == "best_candidate")
    searched = losses(samples, "search")
    assert single == lowest({name: searched[name] for name in NAMES})


def test_the_search_takes_the_lowest_trial(place: Path, report: dict[str, Any]) -> None:
    rows = list(csv.DictReader((place / "run" / "trials.csv").open()))
    best = min(float(row["objective"]) for row in rows)
    assert 0 < best == report["objective"]["search"]
    page = (place / "run" / "report.md").read_text()
    listed = page.split("| best trials")[1].split("\n\n")[0].splitlines()[2:]
    shown = [float(line.split("|")[2].strip(" *")) for line in listed]
    assert len(shown) == len(rows)
    assert shown == sorted(shown)


def test_differences_are_signed_as_the_scores_are(report: dict[str, Any]) -> None:
    means = {row["name"]: row["objective"]["mean"] for row in report["rows"]}
    for pair in report["comparisons"]:
        assert pair["difference"] == pytest.approx(means[pair["a"]] - means[pair["b"]])
        assert pair["low"] <= pair["difference"] <= pair["high"]
    worst = max(NAMES, key=lambda name: means[name])
    soup_minus = next(pair for pair in report["comparisons"] if pair["b"] == worst)
    # Few items: what none of them showed may be as large as the difference.
    assert soup_minus["difference"] < 0
    best = (
        max(report["losses"]["categories"], key=lambda one: -one["difference"])
        if report["losses"]
        else None
    )
    assert best is None or best["verdict"] in ("higher", "no difference shown")


def test_a_second_run_evaluates_nothing_and_a_plan_knows_it(place: Path) -> None:
    texts = place / "texts.jsonl"
    assert command_line(place, *words(texts), "hydra.run.dir=again", "analysis=[]") == 0
    again = json.loads((place / "again" / "report.json").read_text())
    assert again["cost"]["evaluated_items"] == 0
    assert command_line(place, "plan", *words(texts)) == 0
    plan = json.loads(next(place.glob("outputs/*/plan_*.json")).read_text())
    assert plan["evaluations"]["todo"][0] == 0
    assert plan["power"]["min_gain"] == pytest.approx(0.005)


def test_goals_are_in_bits_per_byte_and_the_worst_category_has_the_highest_loss(
    place: Path,
) -> None:
    more = [
        "objective=worst_category",
        "guard={live: 0.3}",
        "guard_baseline=tuned_java",
        "pareto=[simple_python,live]",
    ]
    assert (
        command_line(
            place, *words(place / "texts.jsonl"), *more, "hydra.run.dir=goals", "optimiser=adaptive"
        )
        == 0
    )
    report = json.loads((place / "goals" / "report.json").read_text())
    for row in report["rows"]:
        worst = max(score["mean"] for score in row["scores"].values())
        assert row["objective"]["mean"] == pytest.approx(worst, rel=1e-12)
    guards = report["analyses"]["guards"]
    assert (guards["refused"], guards["checks"]) == (True, [])
    assert f"cost {guards['cost']:.4f} bits per byte on the search split" in guards["sentence"]
    front = report["analyses"]["front"]["points"]
    goals = [point["goals"] for point in front]
    means = np.array([[goal["simple_python"]["mean"], goal["live"]["mean"]] for goal in goals])
    assert (means > 0).all()
    order = np.argsort(means[:, 0])
    # a lower loss in one goal has its price in the other
    assert (np.diff(means[order, 1]) <= 0).all()


def test_show_tells_better_from_worse(
    place: Path, samples: list[dict[str, Any]], souping: Cli
) -> None:
    counts = {}
    for flag in ("--fixed", "--broke"):
        shown = souping(
            "show",
            str(place / "run"),
            flag,
            "--split",
            "search",
            "--models",
            "tuned_python,tuned_parallel",
        )
        assert shown.code == 0, shown.err
        counts[flag] = int(shown.out.strip().splitlines()[-1].split()[0])
    pairs = []
    for line in samples:
        if line["split"] == "search":
            models = line["models"]
            pairs.append((models["tuned_python"]["score"], models["tuned_parallel"]["score"]))
    assert counts == {
        "--fixed": sum(b < a for a, b in pairs),
        "--broke": sum(b > a for a, b in pairs),
    }


def test_published_scores_are_refused(place: Path, souping: Cli, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [f"{name},{n},{2 * n},{3 * n}" for n, name in enumerate(NAMES, start=10)]
    table.write_text("\n".join([f"model,{','.join(SOURCES)}", *rows]))
    souping(*words(place / "texts.jsonl"), "scores=table", f"scores.path={table}").refused(
        "bits per byte"
    )
