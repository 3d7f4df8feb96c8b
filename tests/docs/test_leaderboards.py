"""`benchmarks/leaderboards.py` is right in worlds that are known, and its results file has its output."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.leaderboard_data import Board, bfcl_v1, board_of, family, mmlu_pro
from benchmarks.leaderboard_measures import (
    Estimate,
    Experts,
    Subsets,
    disattenuated,
    item_noise,
    over_families,
    resampled_means,
    share_below,
    student,
    weak_pairs,
)
from benchmarks.leaderboard_null import fit
from benchmarks.leaderboard_page import beside_chance, percent
from benchmarks.leaderboard_sensitivity import finer_family, second_ability
from benchmarks.leaderboards import NEIGHBOURS, Boards, experts, main, pairs
from souping.analysis import correlation
from souping.core.types import Item, ItemScores, ScoreMatrix
from tests.conftest import ROOT

WORDS = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
MODELS = tuple(f"{word}-{number}b" for word in WORDS for number in (1, 2))


def board(specialists: bool, items: int = 150, models: tuple[str, ...] = MODELS) -> Board:
    """Six categories. With specialists, half of them need another ability, which has nothing to do with the first."""
    rng = np.random.default_rng(0)
    abilities = rng.standard_normal((2, len(models)))
    scored = {}
    for number, name in enumerate("abcdef"):
        ability = abilities[number % 2 if specialists else 0]
        logits = ability[:, None] - rng.standard_normal(items)
        scored[name] = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    return board_of("world", models, tuple(scored), scored)


@pytest.mark.slow
def test_models_of_one_ability_are_not_shown_to_differ_from_chance() -> None:
    numbers = pairs(board(specialists=False), NEIGHBOURS)
    assert numbers["excess"].low < 0 < numbers["excess"].high
    assert numbers["signed excess"].low < 0 < numbers["signed excess"].high
    assert numbers["chance"].value > 0.05  # the range is small, so chance has weak correlations


@pytest.mark.slow
def test_specialists_are_more_than_chance_over_all_models() -> None:
    numbers = pairs(board(specialists=True), Subsets(size=0))
    assert numbers["chance"].value == 0
    assert numbers["signed"].value > 0.3
    assert pairs(board(specialists=False), Subsets(size=0))["signed"].value == 0


def test_the_null_has_the_scores_of_the_models_and_of_the_categories() -> None:
    world = board(specialists=False)
    null = fit(world)
    assert null is not None
    means = null.draws(200, np.random.default_rng(0)).mean(axis=0)
    np.testing.assert_allclose(means.mean(axis=0), world.means.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(means.mean(axis=1), world.means.mean(axis=1), atol=0.01)


def test_the_null_of_a_table_has_one_difficulty_per_category() -> None:
    means = np.array([[0.5, 0.7], [0.7, 0.8], [0.2, 0.6]])
    table = Board(
        name="table", models=("a", "b", "c"), categories=("x", "y"), means=means, items=np.array([100, 400])
    )  # fmt: skip
    null = fit(table)
    assert null is not None
    drawn = null.draws(500, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), means.mean(axis=0), atol=0.01)
    assert drawn[:, 0, 0].std() > 1.5 * drawn[:, 0, 1].std()


def test_disattenuated_correlations_are_those_of_souping() -> None:
    world = board(specialists=True, items=12)
    assert world.answers is not None
    assert world.category is not None
    items = []
    for place, number in enumerate(world.category):
        category = world.categories[number]
        items.append(
            Item(id=str(place), category=category, prompt="", answer=None, group=str(place))
        )
    scores = {}
    for name, values in zip(world.models, world.answers, strict=True):
        scores[name] = ItemScores(items=tuple(items), values=values)
    expected = correlation.disattenuated(correlation.GroupSums.of(ScoreMatrix.from_items(scores)))
    found = disattenuated(world.means, item_noise(world))
    np.testing.assert_allclose(found, expected[np.triu_indices(6, 1)])


def test_no_interval_below_eight_families() -> None:
    few = pairs(board(specialists=False, models=MODELS[:14]), NEIGHBOURS)
    assert np.isnan(few["excess"].low)
    assert "not estimable" in beside_chance(few["excess"])
    many = pairs(board(specialists=False, models=MODELS[:16]), NEIGHBOURS)
    assert np.isfinite(many["excess"].low)


def test_the_interval_of_a_mean_over_families_is_students() -> None:
    """Of families of one model each, the jackknife of a mean is the usual standard error."""
    world = board(specialists=False, models=tuple(f"{word}-1b" for word in WORDS))
    estimate = over_families(world, lambda part: {"mean": float(part.means[:, 0].mean())})["mean"]
    error = world.means[:, 0].std(ddof=1) / np.sqrt(len(WORDS))
    assert estimate.high - estimate.value == pytest.approx(student(9) * error)
    assert student(9) == pytest.approx(2.262, abs=1e-3)
    assert student(7) == pytest.approx(2.365, abs=2e-3)


def test_a_second_ability_is_found_and_explains_the_specialists() -> None:
    world = board(specialists=True)
    null = fit(world)
    assert null is not None
    wider, loadings = second_ability(world, null)
    assert len({*np.sign(loadings[0::2])}) == len({*np.sign(loadings[1::2])}) == 1
    assert loadings[0] * loadings[1] < 0
    one = weak_pairs(world, NEIGHBOURS, null.draws(200, np.random.default_rng(0)))
    two = weak_pairs(world, NEIGHBOURS, wider.draws(200, np.random.default_rng(0)))
    assert abs(two["signed excess"]) < 0.3 * one["signed excess"]


def test_generations_of_one_maker_are_finer_families() -> None:
    names = ["Meta-Llama-3_1-8B", "Meta-Llama-3-8B", "Llama-2-7b-hf", "Mixtral-8x7B-v0.1"]
    assert len({*map(finer_family, names)}) == 4
    assert len({*map(family, names)}) == 2


def test_a_pair_without_a_correlation_is_not_counted() -> None:
    assert share_below(np.array([0.1, -0.5, np.nan, 0.9])) == (1 / 3, 2 / 3)


def test_subsets_are_neighbours_by_score() -> None:
    scores = np.array([0.3, 0.1, 0.5, 0.2, 0.4])
    np.testing.assert_array_equal(Subsets(size=4).of(scores), [[1, 3, 0, 4], [3, 0, 4, 2]])
    np.testing.assert_array_equal(Subsets(size=3, stride=2).of(scores), [[1, 0, 2]])
    assert not Subsets(size=3, stride=3).fits(5)


def test_experts_of_clear_specialists_last_and_clusters_find_them() -> None:
    columns = {"x": [0.9, 0.5, 0.6, 0.5, 0.6], "y": [0.6, 0.9, 0.5, 0.2, 0.6]}
    steadiness = []
    for items in (20, 20_000):
        scored = {}
        for name, shares in columns.items():
            right = np.arange(items) < items * np.array(shares)[:, None]
            scored[name] = right.astype(float)
        world = board_of("world", tuple("abcde"), ("x", "y"), scored)
        numbers = experts(world)
        steadiness.append(numbers["same with other items"].value)
    assert steadiness[0] < steadiness[1]
    assert steadiness[1] == 1
    assert numbers["experts"].value == 2
    assert numbers["same by clusters"].value == numbers["same as the best overall"].value == 1
    # without one of the three others, the correlation of x and y is above the threshold
    assert numbers["same without another model"].value == pytest.approx(2 / 3)


@pytest.mark.slow
def test_resampled_items_keep_the_categories_sizes() -> None:
    world = board(specialists=False, items=50)
    draws = resampled_means(world, 400, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(axis=0), world.means, atol=0.03)
    assert np.allclose(draws * 50, np.round(draws * 50))
    assert Experts(board=world, draws=draws).numbers(world, NEIGHBOURS)["selects"] <= 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Meta-Llama-3_1-70B-Instruct", "llama"),
        ("NousResearch_Hermes-2-Pro-Llama-3-8B", "hermes"),
        ("open-mixtral-8x22b-FC-Any", "mistral"),
        ("mathstral-7B", "mistral"),
        ("gpt-4o-2024-05-13-FC", "gpt"),
        ("snowflake_arctic", "snowflake"),
        ("gemma-7b", "gemma"),
    ],
)
def test_the_family_is_in_the_models_name(model: str, name: str) -> None:
    assert family(model) == name


def test_shares_are_cut_off_where_none_can_be() -> None:
    assert percent(Estimate(value=0.02, low=-0.1, high=0.14)) == "2.0 [0.0, 14.0]"
    assert percent(Estimate(value=-0.0001, low=-0.1, high=0.14), -1, sign=True).startswith("+0.0")


def answer_files(folder: Path, models: int = 9) -> Path:
    """Answer files as MMLU-Pro publishes them; the first model did not answer a tenth, and one file is another kind."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for model in range(models):
        rows = []
        for question in range(120):
            predicted: str | None = "AB"[int(rng.random() < 0.3 + 0.05 * model)]
            if model == 0 and question % 10 == 0:
                predicted = None
            rows.append(
                {
                    "question_id": question,
                    "category": "xyz"[question % 3],
                    "pred": predicted,
                    "answer": "B",
                }
            )
        with zipfile.ZipFile(folder / f"model_outputs_{WORDS[model]}-1b_5shots.zip", "w") as file:
            file.writestr("answers.json", json.dumps(rows[model == 1 :]))
    with zipfile.ZipFile(folder / "model_outputs_other_5shots.zip", "w") as file:
        file.writestr("answers.json", json.dumps(["text"]))
    (folder / "model_outputs_damaged_5shots.zip").write_text("no archive")
    return folder


def test_answer_files_tell_what_is_missing_and_the_table_does_not(tmp_path: Path) -> None:
    world, missing = mmlu_pro(answer_files(tmp_path / "eval_results"))
    assert world.items is not None
    assert world.items.tolist() == [39, 40, 40]  # one file lacks a question
    assert missing is not None
    assert missing["ant-1b"] == 0.1
    assert missing["bee-1b"] == 0
    score = np.array([[1, 0, 2], [0, 0, 1]])
    np.savez(
        tmp_path / "table.npz",
        models=["a", "b"],
        categories=["x"],
        category=[0, 0, 0],
        score=score,
    )
    table, unknown = mmlu_pro(tmp_path / "table.npz")
    assert unknown is None
    np.testing.assert_array_equal(table.means, [[0.5], [0.0]])


def test_score_files_of_bfcl_list_failures_only(tmp_path: Path) -> None:
    for model, failures in (("a", [2]), ("b", [1, 2])):
        lines: list[dict[str, object]] = [
            {"accuracy": 0, "correct_count": 4 - len(failures), "total_count": 4}
        ]
        lines += [{"id": number, "model_result_raw": "Error: none"} for number in failures]
        (tmp_path / model).mkdir()
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / model / "simple_score.json").write_text(text)
    world, missing = bfcl_v1(tmp_path)
    np.testing.assert_array_equal(world.answers, [[1, 0, 1, 1], [0, 0, 1, 1]])
    assert missing == {"a": 0.25, "b": 0.5}


@pytest.mark.slow
def test_models_with_many_missing_answers_are_left_out_in_a_second_pass(tmp_path: Path) -> None:
    boards = Boards()
    boards.add(*mmlu_pro(answer_files(tmp_path / "eval_results")))
    first, second = boards.real
    assert set(first.board.models) - set(second.board.models) == {"ant-1b"}


def test_a_page_is_written_of_what_was_measured(tmp_path: Path) -> None:
    answers = answer_files(tmp_path / "eval_results")
    page = tmp_path / "page.md"
    main(["--mmlu-pro", str(answers), "--out", str(page)])
    text = page.read_text()
    assert "nothing on whether a soup helps" in text
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1
    assert not re.search(r"\bnan\b", text)


def test_the_results_have_what_the_script_writes_of_the_papers_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--out", str(tmp_path / "page.md")])
    capsys.readouterr()
    published = (ROOT / "benchmarks" / "results" / "leaderboards-2026-11-29.md").read_text()
    rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if "(paper)" in line]
    assert len(rows) == 5
    assert [row for row in rows if row not in published] == []
