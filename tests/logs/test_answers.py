"""What readers make of each answer, and the arrays and marks of a comparison: small logs and their numbers by hand."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from souping.core.types import UserError
from souping.logs.answer_tables import is_scores
from souping.logs.bfcl import FAILED, bfcl_lines, counts
from souping.logs.bfcl_average import coefficients_of, overall
from souping.logs.bfcl_items import FILE_ITEMS, LIVE_ITEMS, NON_LIVE, shared_content
from souping.logs.inspect import values_of
from souping.logs.lm_eval import read_lm_eval, samples_of, texts_of
from souping.logs.log_scores import LogScores
from souping.logs.match import matched, moments
from souping.logs.records import LoggedAnswer, json_lines, metrics_of, pick_model
from souping.logs.runs import read_run
from souping.logs.sources import read_logs
from tests.support.bfcl_logs import calls, write_project
from tests.support.logs import PYTHON, Frame, log, match, metric, write_csv
from tests.support.runs import answered, write_run

HERE = Path("log")


# Metrics


def answers_of(*scores: float) -> list[tuple[str, LoggedAnswer]]:
    return [("m", LoggedAnswer(item=f"i{n}", score=score)) for n, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "reported", "is_mean", "kept"),
    [
        ([0.0, 1.0], None, True, True), ([0.0, 1.0], 0.5, True, True), ([0.0, 1.0], 0.5000005, True, True),
        ([0.0, 1.0], 0.501, False, False), ([0.0, 1.1], None, False, True), ([-0.1, 1.0], None, False, True),
        ([1.0, 1.0], 1.0, True, True), ([0.0, 0.0], 0.0, True, True), ([200.0, 400.0], 300.0002, False, True),
        ([200.0, 400.0], 300.001, False, False), ([math.nan, 1.0], 1.0, True, True), ([math.nan], None, False, False),
        ([1e51], None, False, False), ([0.0, 1.0], "N/A", False, False),
    ],
)  # fmt: skip
def test_a_metric_is_a_mean_if_its_scores_are_fractions_and_average_to_the_figure(
    scores: Sequence[float], reported: Any, is_mean: bool, kept: bool
) -> None:
    """`reported` is the figure of the log. Scores that lead neither to it nor to fractions are not `kept`."""
    reports = {} if reported is None else {"m": reported}
    found = metrics_of(HERE, answers_of(*scores), reports)["m"]
    assert found.is_mean == is_mean
    assert [answer.score for answer in found.answers] == pytest.approx(
        list(scores) if kept else [math.nan] * len(scores), nan_ok=True
    )


def test_means_come_first_and_lower_is_better_where_it_is_said() -> None:
    loss = [("loss", LoggedAnswer(item="i", score=2.0))]
    found = metrics_of(HERE, [*loss, *answers_of(1.0)], lower=["loss"])
    assert {name: one.higher_is_better for name, one in found.items()} == {"m": True, "loss": False}
    assert list(found) == ["m", "loss"]


@pytest.mark.parametrize("tokens", [-1, 1e51, math.nan])
def test_tokens_are_counts(tokens: float) -> None:
    with pytest.raises(UserError, match="not a count"):
        metrics_of(HERE, [("m", LoggedAnswer(item="i", score=1, tokens=tokens))])
    metrics_of(HERE, [("m", LoggedAnswer(item="i", score=1, tokens=0))])


def test_an_item_has_one_score_for_each_repeat() -> None:
    twice = [LoggedAnswer(item="i", score=1, repeat=n) for n in (0, 1)]
    metrics_of(HERE, [("m", answer) for answer in twice])
    with pytest.raises(UserError, match="two scores of m"):
        metrics_of(HERE, [("m", twice[0]), ("m", twice[0])])


def test_the_only_model_need_not_be_named() -> None:
    assert pick_model(HERE, ["a"], "") == "a"
    assert pick_model(HERE, ["a", "b"], "b") == "b"
    with pytest.raises(UserError, match=r"several models.*\(a, b\)"):
        pick_model(HERE, ["b", "a"], "")
    with pytest.raises(UserError, match="no answers of c"):
        pick_model(HERE, ["a"], "c")


def test_lines_are_numbered_from_one_and_empty_ones_are_skipped() -> None:
    assert list(json_lines(HERE, ['{"a": 1}', " ", '{"a": 2}'])) == [{"a": 1}, {"a": 2}]
    with pytest.raises(UserError, match="log:3: not JSON"):
        list(json_lines(HERE, ["{}", "", "{"]))
    with pytest.raises(UserError, match="log:1: not a JSON object"):
        list(json_lines(HERE, ["[]"]))


# Arrays of a comparison


def test_the_moments_of_an_items_answers_are_numpys() -> None:
    """The variance is that of the mean: of the answers with n - 1, over n."""
    gone = np.nan
    raw = np.array([[[0.0, 0.7, 0.5, gone], [1.0, gone, 0.5, gone], [1.0, gone, 0.0, gone]]])
    count, mean, variance = moments(raw)
    assert count.tolist() == [[3, 1, 3, 0]]
    assert mean == pytest.approx(np.array([[2 / 3, 0.7, 1 / 3, gone]]), nan_ok=True)
    thirds = np.var([0, 1, 1], ddof=1) / 3
    expected = np.array([thirds, gone, thirds / 4, gone])
    assert variance[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("first", "second", "compares"),
    [
        ([0.0, 1.0], [0.5, 1.5], False), ([0.0, 1.0], [-0.5, 0.5], False), ([0.5, 1.0], [1.0, 0.2], True),
        ([0.0, 0.0], [0.0, 2.0], True), ([-1.0, 2.0], [0.5, 1.5], True),
    ],
)  # fmt: skip
def test_scores_of_two_scales_do_not_compare(
    first: Sequence[float], second: Sequence[float], compares: bool
) -> None:
    logs = []
    for name, scores in (("a", first), ("b", second)):
        own = log(name, {f"i{n}": score for n, score in enumerate(scores)})
        logs.append(metric(own, is_mean=False))
    if compares:
        match(*logs)
        return
    with pytest.raises(UserError, match="scale"):
        match(*logs)


def test_prompts_that_differ_are_a_share_of_the_items_that_have_both() -> None:
    hashes = {"a": ["x", "y", "z", ""], "b": ["x", "q", "r", "s"]}
    logs = []
    for name, prompts in hashes.items():
        answers = [
            LoggedAnswer(item=f"i{n}", score=1, prompt_hash=p) for n, p in enumerate(prompts)
        ]
        logs.append(metric(log(name), answers=tuple(answers)))
    (note,) = match(*logs).notes
    assert "differ in 66.7 % of the items" in note
    bare = tuple(LoggedAnswer(item=f"i{n}", score=1) for n in range(4))
    with pytest.raises(UserError, match="do not have the prompts"):
        match(logs[0], metric(log("b"), answers=bare), same_prompts=True)


def test_items_and_groups_are_those_of_the_first_log_that_says_so() -> None:
    first = [
        LoggedAnswer(item=name, score=1, group=group)
        for name, group in (("b", ""), ("a", "g"), ("z", ""))
    ]
    second = [LoggedAnswer(item=name, score=0, group="h") for name in ("a", "b", "y")]
    logs = [metric(log(name), answers=tuple(a)) for name, a in (("a", first), ("b", second))]
    (found,) = match(*logs).metrics["t"]
    assert found.items == ("b", "a")
    assert found.groups == ("h", "g")
    assert "2 of 4 items are left out" in match(*logs).notes[0]


def test_losses_are_turned_round_and_groups_named_by_the_item(tmp_path: Path) -> None:
    paths = {}
    for name, scores in {"a": [0.2, 0.4], "b": [0.9, 0.5]}.items():
        rows = [
            {"item": n, "category": "c", "score": s, "higher_is_better": "false"}
            for n, s in enumerate(scores)
        ]
        paths[name] = str(write_csv(tmp_path / f"{name}.csv", rows))
    found = LogScores(path=paths).matrix(["a", "b"], pytest.fail)
    assert found.values.tolist() == pytest.approx(np.array([[0.7], [0.3]]))
    assert found.items is not None
    assert [item.group for item in found.items["a"].items] == ["c/0", "c/1"]


# Runs


def test_several_answers_count_one_by_one_if_the_score_is_their_mean(tmp_path: Path) -> None:
    """Of four answers one is wrong in every second item: the mean is (3 + n % 2) / 4, the best 1."""
    folder = write_run(tmp_path / "mean", step=1, change=answered(best=False))
    task = read_run(folder, "", "").tasks["c"]
    answers = task.metrics["score"].answers
    assert len(answers) == 4 * 60
    own = [answer for answer in answers if answer.item.startswith("i2 ")]
    assert [(answer.repeat, answer.score) for answer in own] == [
        (0, 1.0),
        (1, 0.0),
        (2, 1.0),
        (3, 1.0),
    ]
    assert task.settings["score of several answers"] == "their mean"

    best = read_run(write_run(tmp_path / "best", step=1, change=answered(best=True)), "", "").tasks[
        "c"
    ]
    assert len(best.metrics["score"].answers) == 60
    assert {answer.score for answer in best.metrics["score"].answers} == {1.0}
    assert best.settings["score of several answers"] == "the best of 4"


def test_a_score_that_is_no_mean_of_its_answers_counts_alone(tmp_path: Path) -> None:
    def changed(number: int, line: dict[str, Any]) -> None:
        answers = {"scores": [1.0, 0.0], "outcomes": ["finished"] * 2, "resps": [["x", "y"]]}
        line["models"]["soup"].update(answers, score=0.25)

    folder = write_run(tmp_path / "a", step=1, change=changed)
    answers = read_run(folder, "", "").tasks["c"].metrics["score"].answers
    assert [answer.score for answer in answers] == [0.25] * 60


def test_an_answer_of_a_run_has_its_texts_and_hashes(tmp_path: Path) -> None:
    def written(number: int, line: dict[str, Any]) -> None:
        line["models"]["soup"] |= {"resps": [["four"]], "sent_hash": f"s{number}"}
        line["doc"] |= {"group": f"g{number // 2}", "topic": "t"}

    folder = write_run(tmp_path / "a", step=2, change=written)
    first = read_run(folder, "soup", "").tasks["c"].metrics["score"].answers[0]
    assert (first.characters, first.output, first.prompt) == (4, "four", "p")
    assert (first.group, first.prompt_hash, first.identity) == ("g0", "s0", "p0")
    assert first.item.split()[0] == "i0"
    assert len(first.item.split()[1]) == 16
    assert read_run(folder, "", "topic").tasks["c"].metrics["score"].answers[0].group == "t"


# Tables


# Scores may be inspect_ai's grades: correct, incorrect, partial, no answer.
@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"score": "C"}, (1.0, False, None)), ({"score": "I"}, (0.0, False, None)),
        ({"score": "P"}, (0.5, False, None)),
        ({"score": "N"}, (0.0, False, None)), ({"score": "False"}, (0.0, False, None)),
        ({"score": ""}, (None, True, None)),
        ({"score": 1, "stop_reason": "length"}, (1.0, False, True)),
        ({"score": 1, "stop_reason": "max_tokens"}, (1.0, False, True)),
        ({"score": 0, "stop_reason": "error"}, (0.0, True, False)),
        ({"score": 0, "stop_reason": "unanswered"}, (0.0, True, False)),
        ({"score": 0, "stop_reason": "content_filter"}, (0.0, True, False)),
        ({"score": 1, "stop_reason": "stop"}, (1.0, False, False)),
    ],
)  # fmt: skip
def test_a_row_says_its_score_and_whether_it_is_missing_or_truncated(
    cells: dict[str, Any], expected: tuple[float | None, bool, bool | None]
) -> None:
    (found,) = read_logs(Frame([{"item": "i", "category": "c", **cells}]))
    (answer,) = found.tasks["c"].metrics["score"].answers
    score = None if math.isnan(answer.score) else answer.score
    assert (score, answer.missing, answer.truncated) == expected


def test_texts_of_a_table_are_measured_and_hashed() -> None:
    row = {
        "item": 1,
        "category": "c",
        "score": 1,
        "prompt": "2 + 2?",
        "output": "four!",
        "repeat": 2,
    }
    (found,) = read_logs(Frame([row]))
    (answer,) = found.tasks["c"].metrics["score"].answers
    assert (answer.characters, answer.output, answer.repeat) == (5, "four!", 2)
    assert answer.prompt_hash == sha256(b"2 + 2?").hexdigest()
    (bare,) = (
        read_logs(Frame([{"item": 1, "category": "c", "score": 1}]))[0]
        .tasks["c"]
        .metrics["score"]
        .answers
    )
    assert (bare.characters, bare.prompt_hash, bare.repeat, bare.tokens) == (None, "", 0, None)


@pytest.mark.parametrize(
    "cells",
    [{"repeat": 0.5}, {"score": "1_0"}, {"score": "nan"}, {"tokens": "x"}, {"score": 1e51}],
)
def test_cells_that_are_no_numbers(cells: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="row 1"):
        read_logs(Frame([{"item": "i", "category": "c", "score": 1, **cells}]))


def test_categories_of_a_task_are_a_group_weighted_by_size() -> None:
    rows = [
        {"item": n, "category": category, "score": 1, "task": task}
        for n, (task, category) in enumerate([("t", "a"), ("t", "b"), ("u", "u"), ("", "v")])
    ]
    (found,) = read_logs(Frame(rows))
    assert list(found.tasks) == ["t/a", "t/b", "u", "v"]
    assert found.groups["t"].members == ("t/a", "t/b")
    assert found.groups["t"].weight_by_size is True
    assert list(found.groups) == ["t"]
    assert found.requested == ("t", "u", "v")


def test_a_metric_beyond_fractions_has_a_unit_and_one_within_has_none() -> None:
    rows = [{"item": n, "category": "c", "score": n, "higher_is_better": False} for n in (1, 3)]
    (found,) = read_logs(Frame(rows))
    own = found.tasks["c"].metrics["score"]
    assert (own.unit, own.is_mean) == ("score False", False)
    (plain,) = read_logs(Frame([row | {"score": 1} for row in rows]))
    assert plain.tasks["c"].metrics["score"].unit == ""


def test_a_frame_of_inspect_samples() -> None:
    usage = json.dumps({"m": {"output_tokens": 5}, "n": {"output_tokens": 2}})
    row = {
        "sample_id": "s", "id": "q1", "epoch": 2, "input": "2 + 2?", "task_name": "sums", "log": "x",
        "model_usage": usage, "score_match": "C", "score_parts": '{"a": 1, "b": 0}', "metadata_topic": "even",
        "limit": "", "error": "",
    }  # fmt: skip
    other = row | {"id": "q2", "epoch": 1, "limit": "token", "score_match": "I"}
    # An empty cell of pandas is not a number.
    other["model_usage"] = math.nan
    failed = row | {"id": "q3", "error": "boom", "score_match": "", "score_parts": ""}
    (found,) = read_logs(Frame([row, other, failed]), group="topic")
    metrics = found.tasks["sums"].metrics
    assert list(metrics) == ["match", "parts/a", "parts/b"]
    first, second, third = metrics["match"].answers
    assert first.item == f"q1 {sha256(b'2 + 2?').hexdigest()[:16]}"
    assert (first.score, first.repeat, first.tokens, first.group) == (1.0, 1, 7.0, "even")
    assert (first.truncated, second.truncated, second.repeat, second.score) == (False, True, 0, 0.0)
    assert second.tokens is None
    assert (third.missing, first.missing) == (True, False)
    assert metrics["parts/b"].answers[0].score == 0.0


@pytest.mark.parametrize(
    ("log_name", "category"), [("2024_sums_x1.eval", "sums"), ("alone.eval", "samples")]
)
def test_a_sample_without_a_task_is_named_by_its_log(log_name: str, category: str) -> None:
    row = {"sample_id": "s", "id": 1, "epoch": 1, "input": "x", "log": log_name, "score_m": 1.0}
    (found,) = read_logs(Frame([row]))
    assert list(found.tasks) == [category]
    answer = found.tasks[category].metrics["m"].answers[0]
    assert (answer.tokens, answer.repeat, answer.truncated) == (None, 0, None)


# BFCL


def test_items_of_bfcls_files_are_those_of_its_leaderboard() -> None:
    """1,390 that are not live, 2,251 that are, 800 of several turns."""
    assert sum(NON_LIVE.values()) == 1390
    assert sum(LIVE_ITEMS.values()) == 2251
    assert sum(FILE_ITEMS.values()) == 4441
    assert sum(FILE_ITEMS[name] for name in FILE_ITEMS if "multi_turn" in name) == 800


def test_version_2_is_that_of_3_and_sizes_of_live_files_may_be_others() -> None:
    assert overall("v2") == overall("v3")
    shares = coefficients_of(overall("v3", {"live_simple": 10}), {"live_simple", "live_parallel"})
    assert shares == pytest.approx({"live_simple": 10 / 26, "live_parallel": 16 / 26})
    assert coefficients_of(overall("v4"), []) == {}


def test_items_share_a_story_a_state_a_question_or_a_function() -> None:
    entry = {"question": [[{"b": 1, "a": 2}], "later"], "initial_config": {"y": 1, "x": 2}}
    assert list(shared_content("multi_turn_base_7", entry)) == [
        "story multi_turn 7", 'state {"x": 2, "y": 1}', 'question [{"a": 2, "b": 1}]',
    ]  # fmt: skip
    assert list(shared_content("memory_kv_12-finance-3", {})) == ["story memory 12-finance-3"]
    docs = {"function": [{"name": "f", "a": 1}, {"name": "g"}]}
    assert list(shared_content("simple_python_1", docs)) == [
        'function {"a": 1, "name": "f"}', 'function {"name": "g"}',
    ]  # fmt: skip
    assert list(shared_content("simple_python_1", {"function": {"name": "f"}})) == [
        'function {"name": "f"}'
    ]


def test_counts_of_tokens_are_those_of_all_steps() -> None:
    assert counts([[3, 4], [5], "x"]) == [3, 4, 5]
    assert counts(2.5) == [2.5]
    assert counts(None) == []


def test_a_project_of_bfcl(tmp_path: Path) -> None:
    for kind in ("result", "score"):
        (tmp_path / kind / "m").mkdir(parents=True)
    results = [
        {"id": "parallel_0", "result": "f()", "output_token_count": [2, 3]},
        {"id": "parallel_1", "result": ["g()"], "output_token_count": 4},
        {"id": "parallel_2", "result": f"{FAILED}timeout"},
        {"id": "parallel_prereq_3", "result": "x"},
    ]
    totals = {"accuracy": 2 / 3, "correct_count": 2, "total_count": 3}
    for kind, lines in (
        ("result", results),
        ("score", [totals, {"id": "parallel_2", "prompt": {}}]),
    ):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / kind / "m" / f"BFCL_v4_parallel_{kind}.json").write_text(text)
    (found,) = read_logs(tmp_path)
    answers = found.tasks["parallel"].metrics["accuracy"].answers
    assert [answer.score for answer in answers] == [1.0, 1.0, 0.0]
    assert [answer.tokens for answer in answers] == [5, 4, None]
    assert [answer.missing for answer in answers] == [False, False, True]
    assert [answer.characters for answer in answers] == [3, 7, len(f"{FAILED}timeout")]
    assert found.tasks["parallel"].settings == {"BFCL version": "v4"}


# lm_eval


def lm_eval_log(folder: Path, samples: Sequence[dict[str, Any]], **figures: Any) -> Path:
    """A log of the task t, with its `figures` in the results."""
    table = {
        "configs": {"t": {}}, "results": {"t": figures}, "model_name": "m", "n-shot": {"t": 5}, "versions": {"t": 2},
        "higher_is_better": {"t": {"acc": True, "ppl": False}}, "n-samples": {"t": {"effective": len(samples)}},
    }  # fmt: skip
    folder.mkdir()
    (folder / "results_2024-01-01.json").write_text(json.dumps(table))
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "samples_t_2024-01-01.jsonl").write_text(lines)
    return folder


def lm_eval_sample(doc_id: int, responses: Any, **changes: Any) -> dict[str, Any]:
    """A sample with one context for each response, or for each option of a choice."""
    arguments = {}
    for number, _ in enumerate(responses):
        context = f"other {number}" if number else "2 + 2?"
        arguments[f"gen_args_{number}"] = {"arg_0": context, "arg_1": f" option {number}"}
    return {
        "doc_id": doc_id, "doc": {"topic": "sums"}, "doc_hash": "0123456789abcdefXYZ", "arguments": arguments,
        "resps": responses, "metrics": ["acc"], "filter": "none", "acc": 1.0, **changes,
    }  # fmt: skip


def test_answers_of_lm_eval(tmp_path: Path) -> None:
    choice = [[["-3.5", "False"]], [["-1.25", "True"]], [["-2.0", "False"]]]
    samples = [
        lm_eval_sample(0, [["four"]], prompt_hash="h"), lm_eval_sample(1, choice, acc=0.0),
        lm_eval_sample(2, [[None]], acc=0.0), lm_eval_sample(3, [["x"]], filter="strict", ppl=7.5, metrics=["ppl"]),
    ]  # fmt: skip
    folder = lm_eval_log(tmp_path / "log", samples, **{"acc,none": 1 / 3, "ppl,strict": 7.5})
    found = read_lm_eval(folder, "", "")
    metrics = found.tasks["t"].metrics
    assert list(metrics) == ["acc", "ppl,strict"]
    assert (metrics["acc"].higher_is_better, metrics["ppl,strict"].higher_is_better) == (
        True,
        False,
    )
    assert (metrics["acc"].is_mean, metrics["ppl,strict"].is_mean) == (True, False)
    text, choices, none = metrics["acc"].answers
    assert (text.item, text.group, text.prompt_hash) == (
        "0 0123456789abcdef",
        "0123456789abcdef",
        "h",
    )
    assert (text.prompt, text.output, text.characters, text.missing) == ("2 + 2?", "four", 4, False)
    assert (choices.output, choices.characters, choices.prompt) == (" option 1", None, "2 + 2?")
    assert (none.missing, none.output, none.score) == (True, "", 0.0)
    assert read_lm_eval(folder, "", "topic").tasks["t"].metrics["acc"].answers[0].group == "sums"
    assert found.tasks["t"].settings == {"task version": "2", "number of shots": "5"}
    assert [task for task, _ in samples_of(folder)] == ["t"] * 4


@pytest.mark.parametrize(("effective", "whole"), [(2, True), (3, False)])
def test_fewer_samples_than_the_harness_counted_are_a_file_that_is_cut_off(
    tmp_path: Path, effective: int, whole: bool
) -> None:
    folder = lm_eval_log(
        tmp_path / "log", [lm_eval_sample(n, [["x"]], acc=n) for n in (0, 1)], **{"acc,none": 0.9}
    )
    path = folder / "results_2024-01-01.json"
    table = json.loads(path.read_text())
    table["n-samples"]["t"]["effective"] = effective
    path.write_text(json.dumps(table))
    if whole:
        assert not read_lm_eval(folder, "", "").tasks["t"].metrics["acc"].is_mean
        return
    with pytest.raises(UserError, match="2 of 3 samples"):
        read_lm_eval(folder, "", "")


@pytest.mark.parametrize(
    ("figures", "sizes", "by_size"),
    [
        # Tasks have 0.4 and 0.8: by sizes of 1 and 3 the mean is 0.7, over tasks 0.6.
        ({"acc,none": 0.7}, {"t": 1, "u": 3}, True), ({"acc,none": 0.6}, {"t": 1, "u": 3}, False),
        ({"acc,none": 0.66}, {"t": 1, "u": 3}, True), ({"acc,none": 0.64}, {"t": 1, "u": 3}, False),
        # A size that is not told counts as 1; equal sizes tell nothing.
        ({"acc,none": 0.7}, {"u": 3}, True), ({"acc,none": 0.6}, {"t": 1, "u": 1}, None), ({"acc,none": 0.6}, {}, None),
        # Standard errors, texts and what is no metric say nothing; a later metric may.
        ({"acc_stderr,none": 0.7}, {"t": 1, "u": 3}, None), ({"alias": 0.7, "acc,none": "N/A"}, {"t": 1, "u": 3}, None),
        ({"f1,none": 0.3, "acc,none": 0.7}, {"t": 1, "u": 3}, True), ({"acc,none": math.nan}, {"t": 1, "u": 3}, False),
    ],
)  # fmt: skip
def test_a_group_of_lm_eval_is_weighted_as_its_figure_says(
    tmp_path: Path, figures: dict[str, Any], sizes: dict[str, int], by_size: bool | None
) -> None:
    """A log of the group g, whose tasks t and u are in an inner group; its figures tell how it weighs them."""
    folder = lm_eval_log(tmp_path / "log", [lm_eval_sample(n, [["x"]]) for n in range(3)])
    path = folder / "results_2024-01-01.json"
    table = json.loads(path.read_text())
    table["configs"]["u"] = {}
    table["group_subtasks"] = {"g": ["inner"], "inner": ["t", "u"], "t": []}
    table["results"] = {
        "t": {"acc,none": 0.4, "f1,none": 0.3},
        "u": {"acc,none": 0.8, "f1,none": 0.3},
        "g": figures,
    }
    table["n-samples"] = {task: {"effective": size} for task, size in sizes.items()}
    path.write_text(json.dumps(table))
    (folder / "samples_t_2024-01-01.jsonl").rename(folder / "samples_u_2024-01-01.jsonl")
    (folder / "samples_t_2024-01-01.jsonl").write_text(json.dumps(lm_eval_sample(0, [["x"]])))
    found = read_lm_eval(folder, "", "")
    assert (found.groups["g"].members, found.groups["g"].weight_by_size) == (("t", "u"), by_size)
    assert set(found.groups) == {"g", "inner"}
    assert found.requested == ("g",)


def test_two_tasks_are_not_split_by_a_field(tmp_path: Path) -> None:
    folder = lm_eval_log(tmp_path / "log", [lm_eval_sample(0, [["x"]])], **{"acc,none": 1.0})
    (alone,) = read_logs(folder, category="topic")
    assert list(alone.tasks) == ["sums"]
    path = folder / "results_2024-01-01.json"
    table = json.loads(path.read_text())
    for key in ("configs", "results"):
        table[key]["u"] = table[key]["t"]
    path.write_text(json.dumps(table))
    (folder / "samples_u_2024-01-01.jsonl").write_text(json.dumps(lm_eval_sample(0, [["x"]])))
    with pytest.raises(UserError, match="splits one task"):
        read_logs(folder, category="topic")


@pytest.mark.parametrize("size", [-1, "many", math.inf, 1e300])
def test_a_size_that_is_no_number_of_samples_is_refused(tmp_path: Path, size: Any) -> None:
    folder = lm_eval_log(tmp_path / "log", [lm_eval_sample(0, [["x"]])], **{"acc,none": 1.0})
    path = folder / "results_2024-01-01.json"
    table = json.loads(path.read_text())
    table["n-samples"]["t"]["effective"] = size
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="n-samples"):
        read_lm_eval(folder, "", "")


def test_one_task_alone_is_split_by_a_field() -> None:
    with pytest.raises(UserError, match="--category splits one task"):
        read_logs(PYTHON, category="topic")
    rows = [{"item": n, "category": c, "score": 1, "kind": "k"} for n, c in enumerate("ab")]
    (found,) = read_logs(Frame(rows), category="kind")
    assert list(found.tasks) == ["k"]
    assert matched({"a": [found]}).requested == ("k",)


def test_each_value_of_an_inspect_score_is_a_metric() -> None:
    scores: Any = {
        "one": SimpleNamespace(value=0.5, answer="a"),
        "several": SimpleNamespace(value={"x": 1, "": 0}, answer=None),
    }
    assert [*values_of(scores)] == [
        ("one", 0.5, "a"),
        ("several/x", 1, ""),
        ("several", 0, ""),
    ]


@pytest.mark.parametrize(
    ("responses", "answer"),
    [
        ([["four"]], "four"),
        ([[[-3.0, False]], [[-1.0, True]], [[-2.0, False]]], "b"),
        ([[[-3.5]]], ""), ([[[]]], ""), ([[-3.5]], ""), ([[None]], ""),
    ],
)  # fmt: skip
def test_the_answer_to_a_choice_is_the_likeliest_continuation(
    responses: list[Any], answer: str
) -> None:
    """Other responses, as the likelihood of a whole text, are no answer."""
    requests = {f"gen_args_{n}": {"arg_0": "2 + 2?", "arg_1": text} for n, text in enumerate("abc")}
    assert texts_of({"arguments": requests, "resps": responses}) == ("2 + 2?", answer)


@pytest.mark.parametrize(
    ("source", "is_one_log"),
    [
        ([1.0], True), ([1, 0], True), ((0.5,), True), (np.zeros(1), True), ([], False), (["a.csv"], False),
        ([np.zeros(2)], False), ([[1.0]], False), ("a.csv", False), (Path("a.csv"), False), (np.zeros((2, 2)), False),
    ],
)  # fmt: skip
def test_a_list_of_numbers_is_one_log(source: Any, is_one_log: bool) -> None:
    assert is_scores(source) is is_one_log


def test_a_model_is_named_after_the_longest_path_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"item": f"i{n}", "category": "c", "score": n % 2, "model": "xy"[n % 2]} for n in range(4)
    ]
    for name in ("a", "a:x"):
        write_csv(tmp_path / f"{name}.csv", rows)
    (tmp_path / "d").mkdir()
    write_run(tmp_path / "r", step=2)
    (log,) = read_logs("r:soup")
    assert (log.model, log.path.name) == ("soup", "r")
    (log,) = read_logs("a:x.csv:y")
    assert (log.model, log.path.name) == ("y", "a:x.csv")
    with pytest.raises(UserError, match="no such file"):
        read_logs("b:x")
    with pytest.raises(UserError, match="r: --group topic: no item has a field 'topic'"):
        read_logs("r", group="topic")


@pytest.mark.parametrize("failed", [0, 1, 2, 3])
def test_items_that_a_score_file_lists_failed(failed: int, tmp_path: Path) -> None:
    names = [f"multiple_{n}" for n in range(3)]
    project = write_project(tmp_path, {"multiple": calls("multiple", "fgh")}, names[:failed])
    (log,) = read_logs(project)
    (one,) = log.tasks["multiple"].metrics.values()
    scores = {answer.item: answer.score for answer in one.answers}
    assert scores == {name: float(n >= failed) for n, name in enumerate(names)}


@pytest.mark.parametrize(
    ("largest", "is_scored"), [(1e50, True), (1.1e50, False), (-1.1e50, False)]
)
def test_scores_that_are_too_large_for_a_mean_are_left_out(largest: float, is_scored: bool) -> None:
    answers = [LoggedAnswer(item=f"i{n}", score=score) for n, score in enumerate((largest, 0.0))]
    metric = metrics_of(Path("log"), [("m", answer) for answer in answers], {})["m"]
    assert [answer.score for answer in metric.answers] == pytest.approx(
        [largest, 0.0] if is_scored else [math.nan] * 2, nan_ok=True
    )


@pytest.mark.parametrize("lines", [[], [{"result": "[f()]"}], [{"id": "a"}, {"result": "x"}]])
def test_a_file_of_bfcl_has_an_id_in_every_line(lines: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "BFCL_v4_multiple_result.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="not a file of bfcl-eval"):
        bfcl_lines(path)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_runs_after_reading_if_it_did_before(
    enabled: bool, tmp_path: Path
) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        read_logs(write_run(tmp_path / "r", step=2))
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
