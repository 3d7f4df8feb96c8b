"""Which logs may be compared, and the arrays of what they have in common."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from souping.core.types import UserError
from souping.logs import match as module
from souping.logs.match import matched
from souping.logs.records import Group, Log, LoggedAnswer
from souping.logs.sources import read_logs
from tests.support.logs import DATA, ROWS, log, match, metric, task, write_csv


def renamed(own: Log) -> Log:
    return task(own, metrics={"em,strict": own.tasks["t"].metrics["acc"]})


REFUSED: dict[str, tuple[Callable[[Log], Log], str]] = {
    "another number of shots": (
        lambda b: task(b, settings={"number of shots": "5"}),
        "0 in m0 and 5 in m1",
    ),
    "a version that one side lacks": (lambda b: task(b, settings={"version": "2"}), "none in m1"),
    "another metric or filter": (renamed, "metric is acc in m0 and em,strict in m1"),
    "another direction": (lambda b: metric(b, higher_is_better=False), "lower is better in m1"),
    "another harness": (lambda b: replace(b, harness="bfcl"), "an lm_eval log, m1 a bfcl log"),
    "a table": (
        lambda b: replace(b, harness="table", path=Path("b.csv")),
        "m0 is an lm_eval log, m1 a CSV table",
    ),
    "percent beside fractions": (
        lambda b: log("b", {f"i{n}": 100.0 * (n % 2) for n in range(4)}),
        "scale of acc is 0 to 1 in m0 and beyond 0 to 1 in m1",
    ),
    "another task": (lambda b: replace(b, tasks={"u": b.tasks["t"]}), "no task in common"),
    "no item in common": (lambda b: log("b", {"x": 1.0}), "no item in common"),
    "no score": (lambda b: log("b", dict.fromkeys(("i0", "i1"), float("nan"))), "no score of acc"),
    "the same log twice": (lambda b: log("a"), "same log"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_logs_that_do_not_compare_are_refused_in_a_line(case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as refused:
        match(log("a"), change(log("b")))
    assert len(str(refused.value).splitlines()) == 1


def test_a_link_to_a_table_is_the_same_log(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "log.csv", ROWS)
    (tmp_path / "link.csv").symlink_to(file)
    with pytest.raises(UserError, match="same log"):
        matched({"a": read_logs(file), "b": read_logs(tmp_path / "link.csv")})


def test_items_are_those_that_every_model_was_asked() -> None:
    found = match(log("a"), log("b", {"i3": 1.0, "i1": 0.0, "new": 1.0}))
    (one,) = found.metrics["t"]
    assert one.items == ("i1", "i3")
    assert one.scores["m0"].tolist() == [[[1.0, 1.0]]]
    assert one.scores["m1"].tolist() == [[[0.0, 1.0]]]
    assert "3 of 5 items are left out" in found.notes[0]


def test_tasks_have_the_order_of_the_first_log() -> None:
    first, second = log("a"), log("b")
    own = first.tasks["t"]
    first = replace(first, tasks={"u": replace(own, name="u"), "t": own})
    second = replace(second, tasks={"t": own, "v": replace(own, name="v"), "u": first.tasks["u"]})
    assert list(match(first, second).metrics) == ["u", "t"]


def test_a_scale_is_known_by_scores_that_tell_it() -> None:
    def scaled(lower: bool, *scores: float) -> Log:
        whole = log(f"{scores}", {f"i{n}": score for n, score in enumerate(scores)})
        return metric(whole, higher_is_better=not lower, is_mean=False)

    match(scaled(False, 0, 0, 0), scaled(False, 0, 50, 100))  # a model that fails everything
    match(scaled(True, 0.8, 0.9), scaled(True, 1.1, 1.2))  # losses around 1
    with pytest.raises(UserError, match="scale"):
        match(scaled(True, 0, 1, 1), scaled(True, 0, 100, 100))


def test_many_answers_to_one_item_do_not_fill_the_memory() -> None:
    every = [LoggedAnswer(item=f"i{n}", score=1) for n in range(2000)]
    many = [LoggedAnswer(item="i0", score=1, repeat=n) for n in range(1, 2000)]
    other = metric(log("a"), answers=tuple(every))
    with pytest.raises(UserError, match=r"item i0 has 2,000 answers.*repeat"):
        match(metric(log("b"), answers=(*every, *many)), other)


def test_one_item_compares() -> None:
    (one,) = match(log("a", {"i": 1.0}), log("b", {"i": 0.0})).metrics["t"]
    assert one.scores["m1"].shape == (1, 1, 1)


def test_prompts_that_differ_are_counted_or_refused() -> None:
    other = metric(
        log("b"),
        answers=tuple(LoggedAnswer(item=f"i{n}", score=1, prompt_hash="x") for n in range(4)),
    )
    assert "100 %" in match(log("a"), other).notes[0]
    assert match(log("a"), log("b")).notes == ()
    with pytest.raises(UserError, match="--same-prompts"):
        match(log("a"), other, same_prompts=True)


def test_runs_repeats_and_missing_answers() -> None:
    answers = [
        LoggedAnswer(item=f"i{n}", score=n, repeat=r, missing=r == 1, tokens=5)
        for n, r in ((0, 0), (1, 0), (1, 1))
    ]
    sampled = metric(log("b"), answers=tuple(answers))
    found = matched({"a": [log("a1"), log("a2"), log("a3")], "b": [sampled]})
    (one,) = found.metrics["t"]
    assert one.scores["a"].shape == (3, 1, 2)
    np.testing.assert_array_equal(one.scores["b"], [[[0, 1], [np.nan, 1]]])
    np.testing.assert_array_equal(one.values["missing"]["b"], [[[0, 0], [np.nan, 1]]])
    assert np.nanmean(one.values["tokens"]["b"]) == 5
    assert np.isnan(one.values["tokens"]["a"]).all()


def test_groups_keep_the_members_in_common() -> None:
    own = log("a")
    tasks = {**own.tasks, "u": replace(own.tasks["t"], name="u")}
    groups = {"g": Group(name="g", members=("t", "u"), weight_by_size=True)}
    found = match(replace(own, tasks=tasks, groups=groups, requested=("g",)), log("b"))
    assert found.groups["g"].members == ("t",)
    assert found.requested == ("g",)
    assert "u" in found.notes[0]


def test_logs_of_lm_eval() -> None:
    logs = {name: read_logs(DATA / "lm_eval" / name) for name in ("tuned_python", "tuned_java")}
    found = matched(logs, same_prompts=True)
    assert found.notes == ()
    assert set(found.requested) == {"picks", "shots", "translate", "last"}
    for common in chain.from_iterable(found.metrics.values()):
        for name in logs:
            if common.is_mean:
                assert np.mean(common.scores[name]) == pytest.approx(common.reported[name][0])
    assert len(found.metrics["pick2"][0].items) == 6


def test_logs_of_bfcl_match_with_their_missing_answers() -> None:
    found = matched({name: read_logs(DATA / "bfcl" / name) for name in "ab"})
    assert {name: len(one.items) for name, (one,) in found.metrics.items()} == {
        "irrelevance": 5,
        "simple_python": 5,
    }
    assert found.metrics["simple_python"][0].values["missing"]["b"].sum() == 1


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom souping.logs.sources import read_logs as read\nfrom souping.logs.match import matched\n"
        f"matched({{n: read(r'{DATA}/lm_eval/' + n) for n in ('tuned_python', 'tuned_java')}})\n"
        "print([m for m in ('torch', 'hydra', 'transformers', 'pandas', 'lm_eval', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("known", "by_size"),
    [((None, None), False), ((None, True), True), ((False, True), False), ((True, False), True)],
)
def test_a_group_is_weighted_as_the_first_log_says_that_can_tell(
    known: tuple[bool | None, ...], by_size: bool
) -> None:
    logs = []
    for name, own in zip("ab", known, strict=True):
        groups = {"g": Group(name="g", members=("t",), weight_by_size=own)}
        logs.append(log(name, groups=groups))
    assert match(*logs).groups["g"].weight_by_size is by_size


def test_the_numbers_of_a_match_are_those_of_earlier_comparisons() -> None:
    assert (module.SPARSE, module.DENSE_PLACES) == (10, 10**6)
