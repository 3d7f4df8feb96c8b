"""`python -m benchmarks.published_soups` on small made-up tables, whose figures are worked out by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.published_soups.__main__ import main
from benchmarks.published_soups.clip_soups import KINDS, SCALES, TESTS, read_clip, scaled_name
from benchmarks.published_soups.gains import (
    gains,
    neighbour_means,
    over_ladders,
    sparse_merges,
    transfers,
)
from benchmarks.published_soups.gains_page import interval, points
from benchmarks.published_soups.merge_to_learn import (
    COMPLIANCE,
    DOMAINS,
    GENERAL,
    LADDERS,
    LINEAR,
    METHODS,
    SCIENCE_TEST,
    SPARSE,
    SPARSE_PAIRS,
    TASK_ARITHMETIC,
    WEIGHTS,
    WISE_FT,
    Benchmark,
    Ladder,
    Method,
    Row,
    merge_path,
)
from benchmarks.published_soups.recorded_search import draw_answers, search_path
from souping.core.types import UserError
from tests.conftest import ROOT

SCIENCE, SAFETY, CODING, _ = LADDERS
PUBLISHED = ROOT / "benchmarks" / "results" / "published-soups-2026-12-02.md"
COLUMNS = (
    *GENERAL,
    *(benchmark for group in DOMAINS.values() for benchmark in group),
    *SCIENCE_TEST,
    COMPLIANCE,
)


def cell(benchmark: Benchmark, points: float) -> str:
    """The cell of a benchmark that stands for so many points."""
    return str((100 - points if benchmark.harm else points) / benchmark.factor)


def row(key: str, general: float, domain: float, test: float = 0) -> dict[str, str]:
    """A model with the same points on all benchmarks of an average; `test` on the TEST columns of science."""
    cells = {"model_key": key}
    for benchmark in COLUMNS:
        points = domain
        if benchmark in GENERAL:
            points = general
        if benchmark in SCIENCE_TEST:
            points = test
        cells[benchmark.column] = cell(benchmark, points)
    return cells


def pair(
    ladder: Ladder,
    amount: int,
    method: Method,
    soups: Sequence[tuple[float, float, float]],
    parents: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> dict[str, Row]:
    """Rows of one path: (general, domain, TEST) of its soups and of its two models."""
    rows = [
        row(f"llama_2_7b-{ladder.general}", *parents[0]),
        row(ladder.specialist(amount, method.continued), *parents[1]),
    ]
    for weight, soup in zip(WEIGHTS[1:], soups, strict=False):
        rows.append(row(method.row(ladder, amount, float(weight)), *soup))
    return {each["model_key"]: each for each in rows}


def everything() -> dict[str, Row]:
    """All pairs. On each path the general score falls from 60 to 40; the domain rises from 20 to 50 and bends up."""
    models: dict[str, Row] = {}
    inner = []
    for weight in WEIGHTS[1:]:
        domain = 20 + 30 * weight + 20 * weight * (1 - weight)
        inner.append((60 - 20 * weight, domain, domain - 1))
    parents = ((60.0, 20.0, 20.0), (40.0, 50.0, 50.0))
    for ladder in LADDERS:
        for amount in ladder.amounts:
            for method in METHODS:
                models |= pair(ladder, amount, method, inner, parents)
    for ladder, amount in SPARSE_PAIRS:
        for method, _ in SPARSE:
            models |= pair(ladder, amount, method, inner, parents)
    return models


def write_results(path: Path, models: Mapping[str, Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["model_key", *(one.column for one in COLUMNS)])
        writer.writeheader()
        writer.writerows(models.values())
    return path


def clip_folder(folder: Path, **changed: Sequence[float]) -> Path:
    """Three models, and soups whose accuracy is the same on every test; `changed` ones have others."""
    accuracies = {
        "model_0": [0.5] * 6,
        "model_1": [0.7, 0.3, 0.3, 0.3, 0.3, 0.3],
        "model_2": [0.4, 0.6, 0.6, 0.6, 0.6, 0.6],
        "greedy_soup": [0.6] * 6,
        "uniform_soup": [0.62] * 6,
    }
    kinds = list(KINDS.values())
    merges = [*kinds, *(scaled_name(scale, kind) for kind in kinds for scale in SCALES)]
    accuracies |= {name: [0.55] * 6 for name in merges}
    accuracies |= {name: list(values) for name, values in changed.items()}
    chosen_on = {"model_1": 0.8, "model_0": 0.7}

    def line(name: str) -> str:
        scores = dict(zip(TESTS, accuracies[name], strict=True))
        return json.dumps({"model_name": name, "ImageNet2p": chosen_on.get(name, 0.5), **scores})

    files = {
        "individual_model_results": ["model_0", "model_1", "model_2"],
        "greedy_soup_results": ["greedy_soup"],
        "uniform_soup_results": ["uniform_soup"],
        "random_merge": merges,
    }
    folder.mkdir()
    for file, names in files.items():
        (folder / f"{file}.jsonl").write_text("\n".join(map(line, names)) + "\n")
    top = {"num_models": [2], "uniform_accuracy": [0.71], "random_accuracy": [0.65]}
    (folder / "mean_vs_random.json").write_text(json.dumps(top))
    return folder


# ---------------------------------------------------------------- Merge to Learn


def test_scales_of_the_columns_become_points_where_more_is_better() -> None:
    cells = {"model_key": "m", "share": "0.4", "percent": "40"}
    assert Benchmark(column="share").points(cells) == pytest.approx(40)
    assert Benchmark(column="percent", factor=1).points(cells) == 40
    assert Benchmark(column="share", harm=True).points(cells) == pytest.approx(60)
    assert Benchmark(column="percent", factor=1, harm=True).points(cells) == 60


@pytest.mark.parametrize("text", ["", "0.0"])
def test_a_coding_score_that_was_not_measured_is_refused(text: str) -> None:
    models = pair(CODING, 20, LINEAR, [(50, 50, 0)] * 9, ((50, 50, 0), (50, 50, 0)))
    key = LINEAR.row(CODING, 20, 0.4)
    models[key] = {**models[key], "mbpp_temp_0.8": text}
    with pytest.raises(UserError, match=r"mbpp_temp_0\.8"):
        merge_path(models, CODING, 20, LINEAR)


def test_gains_of_a_path_are_those_worked_out_by_hand() -> None:
    """General model 60 and 20: 40. Specialist 40 and 50: 45, the better one. Router 60 and 50: 55, so +10."""
    objectives = [42, 41, 44, 46, 43, 47, 40, 50, 41]
    soups = [(score, score, 0.0) for score in objectives]
    models = pair(SAFETY, 40, LINEAR, soups, ((60, 20, 0), (40, 50, 0)))
    found = gains(merge_path(models, SAFETY, 40, LINEAR))
    assert found.best == pytest.approx(50 - 45)
    assert found.best_weight == pytest.approx(0.8)
    assert found.half == pytest.approx(43 - 45)
    assert found.router == pytest.approx(10)
    # The neighbours of .5 are 46 and 47, and no soup has better ones (.3: 41 and 46, .7: 47 and 50).
    assert neighbour_means(np.array([1.0, 2.0, 4.0])).tolist() == [2.0, 2.5, 2.0]
    assert found.by_neighbours == pytest.approx(40 - 45)


def test_a_path_of_task_arithmetic_ends_at_a_soup() -> None:
    soups = [(50.0, 40.0 + number, 0.0) for number in range(10)]
    models = pair(SCIENCE, 100, TASK_ARITHMETIC, soups, ((60, 20, 0), (40, 70, 0)))
    path = merge_path(models, SCIENCE, 100, TASK_ARITHMETIC)
    assert path.points[-1].mean() == pytest.approx((5 * 50 + 11 * 49) / 16)
    found = gains(path)
    assert found.best_weight == 1
    assert found.best == pytest.approx((50 + 49) / 2 - 55)


def test_models_are_read_from_their_own_rows() -> None:
    models = pair(CODING, 60, WISE_FT, [(50, 50, 0)] * 9, ((60, 20, 0), (40, 50, 0)))
    wrong = WISE_FT.row(CODING, 60, 1.0)
    path = merge_path({**models, wrong: row(wrong, 99, 99)}, CODING, 60, WISE_FT)
    assert path.points[-1] == pytest.approx(path.parents[1])
    assert path.parents[1] == pytest.approx([40] * 5 + [50] * 2)


def test_a_missing_row_is_named() -> None:
    models = pair(CODING, 60, WISE_FT, [(50, 50, 0)] * 8, ((60, 20, 0), (40, 50, 0)))
    with pytest.raises(UserError, match="tulu_none-coding_60_0"):
        merge_path(models, CODING, 60, WISE_FT)


def test_an_interval_takes_a_ladder_as_one_observation() -> None:
    """Means 1, 2, 3 and 6: mean 3, s.d. 2.1602, error 1.0801, and t is 3.1824 with three degrees of freedom."""
    values = {"a": [0.0, 2.0], "b": [2.0], "c": [3.0] * 15, "d": [5.0, 7.0]}
    found = over_ladders(values)
    assert found.value == pytest.approx(3)
    assert found.high - found.value == pytest.approx(3.1824 * 1.0801, rel=1e-3)
    assert found.value - found.low == pytest.approx(3.1824 * 1.0801, rel=1e-3)


def test_the_weight_and_the_model_are_chosen_on_dev_and_read_on_test() -> None:
    """On dev the specialist (45) and the third soup (52) are best; on TEST the general model and the fourth."""
    models: dict[str, Row] = {}
    soups = [(50.0, 30.0, 30.0)] * 10
    soups[2] = (50.0, 54.0, 40.0)
    soups[3] = (50.0, 50.0, 48.0)
    for amount in SCIENCE.amounts:
        for method in METHODS:
            models |= pair(SCIENCE, amount, method, soups, ((60, 20, 40), (40, 50, 36)))
    for found in transfers(models):
        assert found.dev == pytest.approx(52 - 45)
        assert found.test == pytest.approx((50 + 40) / 2 - (40 + 36) / 2)
        assert found.best_on_test == pytest.approx((50 + 48) / 2 - (40 + 36) / 2)


def test_sparse_merges_are_compared_with_the_plain_ones_of_the_same_pair() -> None:
    models = everything()
    for ladder, amount in SPARSE_PAIRS:
        for weight in WEIGHTS[1:]:
            key = SPARSE[0][0].row(ladder, amount, float(weight))
            models[key] = row(key, 50, 50 + 10 * (weight == 0.2))
    ties, dare = sparse_merges(models)[:2]
    plain = [(80 + 10 * w + 20 * w * (1 - w)) / 2 for w in WEIGHTS[1:-1]]
    assert ties.best == pytest.approx(55 - max(plain))
    assert ties.equal_weights == pytest.approx(50 + 5 / 9 - np.mean(plain))
    assert (dare.best, dare.equal_weights) == pytest.approx((0, 0))


# ---------------------------------------------------------------- the search


def test_drawn_answers_have_the_published_rates_and_neighbours_answer_alike() -> None:
    points = np.full((11, 2), 30.0)
    points[:, 1] = 80
    answers = draw_answers(points, 20_000, np.random.default_rng(0))
    assert answers.mean(axis=2) == pytest.approx(points / 100, abs=0.015)
    apart = [np.corrcoef(answers[0, 0], answers[place, 0])[0, 1] for place in (1, 5, 10)]
    assert apart[0] > apart[1] > apart[2] > 0.2


def test_a_search_finds_a_soup_that_is_far_ahead() -> None:
    points = np.full((11, 7), 30.0)
    points[4] = 90
    found = search_path(points, 50, 0)
    assert (found.grid, found.search) == (0, 0)
    assert found.given_away == 0
    assert 0 < found.cost < 1


# ---------------------------------------------------------------- CLIP


def test_accuracies_of_models_router_and_soups(tmp_path: Path) -> None:
    """Best by ImageNet2p is model_1 (mean 36.7), on the tests model_2 (56.7); the router has 70 and five times 60."""
    clip = read_clip(clip_folder(tmp_path / "clip"))
    assert clip.best.mean() == pytest.approx(220 / 6)
    assert clip.best_on_tests.mean() == pytest.approx(340 / 6)
    assert clip.router.mean() == pytest.approx(370 / 6)
    assert clip.minus_best(clip.soups["uniform"]) == pytest.approx(62 - 220 / 6)
    assert clip.top_k[0].uniform == pytest.approx(71)
    assert clip.scaled(1.2, "random").mean() == pytest.approx(55)


def test_a_soup_that_the_files_lack_is_named(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    lines = (folder / "random_merge.jsonl").read_text().splitlines()
    kept = [line for line in lines if "random_use_base_alpha_0.8" not in line]
    (folder / "random_merge.jsonl").write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"random_use_base_alpha_0\.8"):
        read_clip(folder)


# ---------------------------------------------------------------- the page


def test_the_page_has_the_figures_of_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All paths are alike: at .5 the score is (50 + 40) / 2 = 45, as the better model's; the best is .7, 45.1."""
    results = write_results(tmp_path / "results.csv", everything())
    folder = clip_folder(tmp_path / "clip")
    out = tmp_path / "page.md"
    main([str(results), str(folder), "--items", "--out", str(out), "--data", str(tmp_path)])
    page = out.read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    best = max((80 + 10 * w + 20 * w * (1 - w)) / 2 for w in WEIGHTS[1:-1]) - 45
    (cells,) = [line.split(" | ") for line in page.splitlines() if "| safety | linear" in line]
    assert cells[2] == f"{best:+.1f}"
    assert "| uniform soup of all 3 | 62.0 |" in page
    with (tmp_path / "published-soups-gains.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60
    assert float(rows[0]["router"]) == pytest.approx(55 - 45)


@pytest.mark.parametrize("lacking", ["results", "clip"])
def test_a_path_without_the_data_ends_with_status_2(
    lacking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(tmp_path / "results.csv", everything())
    folder = clip_folder(tmp_path / "clip")
    if lacking == "results":
        results.write_text("model_key,gsm_cot\nm,0.1\n")
    else:
        (folder / "greedy_soup_results.jsonl").unlink()
    with pytest.raises(SystemExit) as ended:
        main([str(results), str(folder), "--items"])
    assert ended.value.code == 2
    assert ("mmlu_0shot" if lacking == "results" else "greedy_soup") in capsys.readouterr().err


def test_the_published_page_agrees_with_the_data_beside_it() -> None:
    page = " ".join(PUBLISHED.read_text(encoding="utf-8").split())
    values: dict[str, list[float]] = {ladder.name: [] for ladder in LADDERS}
    router_wins = 0
    with PUBLISHED.with_name("published-soups-gains.csv").open(encoding="utf-8") as stream:
        for each in csv.DictReader(stream):
            values[each["ladder"]].append(float(each["best"]))
            router_wins += float(each["router"]) > float(each["best"])
    assert f"better of its two models is {interval(over_ladders(values))} points" in page
    assert f"beats the soup in {router_wins} of 60 pairs" in page
    with PUBLISHED.with_name("published-soups-clip.csv").open(encoding="utf-8") as stream:
        means = {each["name"]: float(each["mean"]) for each in csv.DictReader(stream)}
    assert f"minus a router {points(means['uniform'] - means['router'])}" in page
