"""Comparisons of runs of souping: scorers, prompts as they were sent, several answers to an item, and looks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import souping
from souping.answers.store import Store
from souping.comparison.counted_claims import stores_of
from souping.comparison.result import CompareResult
from souping.core.types import Item, UserError, UserScorer
from souping.evaluate.command import CommandEvaluator
from souping.evaluate.scoring.judge import Judge
from souping.logs.sources import read_logs
from souping.report.samples import SAMPLES_FILE
from tests.conftest import Cli, finished_words
from tests.support.runs import Change, answered, write_run


def written(scorer: str, prompt: str = "") -> Change:
    """A line as runs write it now."""

    def change(number: int, line: dict[str, Any]) -> None:
        line["scorer_hash"] = scorer
        line["models"]["soup"]["sent_hash"] = prompt and f"{prompt} {number}"

    return change


def compared(base: Path, cand: Path, **settings: Any) -> CompareResult:
    return souping.compare({"base": base, "cand": cand}, **settings)


def test_a_scorer_whose_digest_is_not_known_agrees_with_any(tmp_path: Path) -> None:
    known = write_run(tmp_path / "known", step=3, change=written("a"))
    old = write_run(tmp_path / "old", step=2, change=written(""))
    assert compared(old, known).average_row("cand").items == 60


def test_another_scorer_of_the_same_name_is_refused(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", step=2, change=written("a"))
    other = write_run(tmp_path / "other", step=3, change=written("b"))
    with pytest.raises(UserError, match=r"scorer's digest is .* in base and .* in cand"):
        compared(base, other)
    same = write_run(tmp_path / "same", step=3, change=written("a"))
    assert compared(base, same).average_row("cand").items == 60


def test_missing_and_cut_answers_are_marked(tmp_path: Path) -> None:
    def ended(number: int, line: dict[str, Any]) -> None:
        outcomes = {3: "unanswered", 4: "truncated", 7: "unanswered"}
        line["models"]["soup"]["outcome"] = outcomes.get(number, "finished")

    (log,) = read_logs(write_run(tmp_path / "a", step=2, change=ended))
    answers = log.tasks["c"].metrics["score"].answers
    missing = [answer.item.split()[0] for answer in answers if answer.missing]
    cut = [answer.item.split()[0] for answer in answers if answer.truncated]
    assert missing == ["i3", "i7"]
    assert cut == ["i4"]
    base = write_run(tmp_path / "base", step=3)
    cand = write_run(tmp_path / "cand", step=2, change=ended)
    headline = compared(base, cand).average_row("cand")
    assert headline.missing == 2


def test_old_runs_compare_with_each_other_and_with_new_ones(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", step=2)
    older = write_run(tmp_path / "older", step=3)
    new = write_run(tmp_path / "new", step=3, change=written("a", "sent"))
    for pair in ((old, older), (old, new), (new, old)):
        result = compared(*pair)
        assert result.average_row("cand").items == 60
        assert not any("prompts" in line for line in result.warnings)
    with pytest.raises(UserError, match="--same-prompts"):
        compared(old, new, same_prompts=True)


def test_prompts_are_those_that_were_sent(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", step=2, change=written("a", "template 1"))
    same = write_run(tmp_path / "same", step=3, change=written("a", "template 1"))
    other = write_run(tmp_path / "other", step=3, change=written("a", "template 2"))
    assert not any("prompts" in line for line in compared(base, same, same_prompts=True).warnings)
    assert any("prompts of base and cand" in line for line in compared(base, other).warnings)
    with pytest.raises(UserError, match="100 %"):
        compared(base, other, same_prompts=True)


def test_the_best_of_several_answers_counts_once_and_is_no_mean(tmp_path: Path) -> None:
    best = write_run(tmp_path / "best", step=1, change=answered(best=True))
    second = write_run(tmp_path / "second", step=2, change=answered(best=True))
    head = compared(best, second).average_row("cand")
    assert (head.baseline_mean, head.mean, head.items) == (1.0, 1.0, 60)
    mean = write_run(tmp_path / "mean", step=1, change=answered(best=False))
    assert compared(mean, write_run(tmp_path / "one", step=1)).average_row(
        "cand"
    ).baseline_mean == pytest.approx(0.875)
    with pytest.raises(UserError, match="several answers is the best of 4 in base and their mean"):
        compared(best, mean)


def test_an_item_with_another_reference_is_another_item(tmp_path: Path) -> None:
    def corrected(number: int, line: dict[str, Any]) -> None:
        line["target_hash"] = "corrected" if number < 10 else "t"

    result = compared(
        write_run(tmp_path / "base", step=2), write_run(tmp_path / "cand", step=3, change=corrected)
    )
    assert result.average_row("cand").items == 50
    assert any("left out" in line for line in result.warnings)


@pytest.mark.parametrize("score", [float("inf"), 1e308, "x", None, [1]], ids=str)
def test_a_score_that_is_none_is_a_line(tmp_path: Path, score: Any) -> None:
    base = write_run(tmp_path / "base", step=2)
    cand = write_run(tmp_path / "cand", step=3)
    lines = gzip.decompress((cand / "samples.jsonl.gz").read_bytes()).decode().splitlines()
    first = json.loads(lines[0])
    first["models"]["soup"]["score"] = score
    damaged = "\n".join([json.dumps(first), *lines[1:]])
    (cand / "samples.jsonl.gz").write_bytes(gzip.compress(damaged.encode()))
    with pytest.raises(UserError, match=r"cand: .*samples\.jsonl\.gz"):
        compared(base, cand)


def _digest(**changes: Any) -> str:
    settings: Mapping[str, Any] = {"model": "m", "url": "http://localhost/v1", "key": "", **changes}
    judge = Judge(**settings)
    scorer = UserScorer(name="helpful", function=judge, digest=judge.fingerprint)
    item = Item(id="i", category="c", prompt="p", answer="a", scorer="helpful", user_scorer=scorer)
    return CommandEvaluator(command="run {model} {out}").scoring.scorer_digest(item)


def test_a_scorers_digest_has_the_judge_and_the_command() -> None:
    assert _digest() == _digest(threads=2)
    assert len({_digest(), _digest(model="n"), _digest(prompt="$answer?")}) == 3
    item = Item(id="i", category="c", prompt="p", answer="a")
    commands = [CommandEvaluator(command=f"{name} {{model}} {{out}}") for name in ("one", "two")]
    assert len({command.scoring.scorer_digest(item) for command in commands}) == 2


def test_a_comparison_of_runs_is_a_look_in_their_store(souping: Cli, finished_copy: Path) -> None:
    def look(*words: str) -> dict[str, Any]:
        ended = souping("compare", "base=run:uniform_all", "soup=run", "--json", *words)
        assert ended.code in (0, 1), ended.err
        table: dict[str, Any] = json.loads(ended.out)
        return table

    first = look()
    assert first["look"] == 1  # the run's own report shows it
    assert look("--margin", "3")["look"] == 1
    assert look("--baseline", "soup")["look"] == 1  # the same two models
    assert look("--average", "item")["look"] == 2
    # A report shows the soup and each other model, not two of the others.
    third = ("compare", "base=run:uniform_all", "soup=run", "ant=run:ant", "--json")
    mixed = json.loads(souping(*third).out)
    assert mixed["look"] == 3
    assert next(row for row in mixed["verdicts"] if row["model"] == "soup") == first["verdicts"][0]
    others = ("compare", "base=run:uniform_all", "ant=run:ant", "--json")
    alone = json.loads(souping(*others).out)
    assert alone["look"] == 3
    # Of the soup it is said that its level is the report's.
    assert ["soup" in one["look_note"] for one in (first, mixed, alone)] == [False, True, False]
    assert mixed["look_note"].startswith(alone["look_note"])

    report = json.loads((finished_copy / "report.json").read_text())
    (row,) = [row for row in report["comparisons"] if row["b"] == "uniform_all"]
    shown = first["verdicts"][0]
    assert [shown["difference"], shown["low"], shown["high"]] == pytest.approx(
        [row["difference"], row["low"], row["high"]]
    )


def test_the_losses_of_a_report_are_what_compare_says_of_its_best_candidate(
    souping: Cli, family: Path, tmp_path: Path
) -> None:
    words = [word for word in finished_words(family) if not word.startswith("optimiser")]
    souping(*words, "optimiser=uniform", "hydra.run.dir=run").ok()
    losses = json.loads((tmp_path / "run" / "report.json").read_text())["losses"]
    ended = souping("compare", f"best=run:{losses['against']}", "soup=run", "--json")
    rows = {row["name"]: row for row in json.loads(ended.out)["verdicts"]}
    assert losses["categories"]
    for loss in losses["categories"]:
        row = rows[loss["category"]]
        for key in ("difference", "low", "high", "level", "p_value", "test"):
            assert row[key] == pytest.approx(loss[key]), (key, row)


def test_a_store_that_is_not_the_runs_is_refused_or_said(souping: Cli, finished_copy: Path) -> None:
    words = ("compare", "base=run:uniform_all", "soup=run", "--average", "item")
    souping(*words, "--store", "gone.sqlite").refused("--store")
    with Store(finished_copy.parent / "empty.sqlite"):
        pass
    souping(*words, "--store", "empty.sqlite").refused("--store")
    (finished_copy / "config.yaml").write_text("store: empty.sqlite")
    ended = souping(*words)
    assert ended.code in (0, 1)
    assert "Looks are not counted" in ended.out
    (finished_copy / "config.yaml").write_text("store: {")
    souping(*words).refused("config.yaml")


def test_another_measurement_of_a_run_is_another_comparison(
    souping: Cli, finished_copy: Path
) -> None:
    """Otherwise the best of several measurements could be picked."""
    words = ("compare", "base=run:uniform_all", "soup=run", "--json")
    assert json.loads(souping(*words).out)["look"] == 1
    path = finished_copy / SAMPLES_FILE
    samples = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    reported = [sample for sample in samples if sample["split"] == "test"]
    for one, two in pairwise(reported):
        if one["category"] == two["category"] and _score(one) != _score(two):
            one["models"], two["models"] = two["models"], one["models"]
            break
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, samples)).encode()))
    assert json.loads(souping(*words).out)["look"] == 2


def _score(sample: Mapping[str, Any]) -> float:
    return float(sample["models"]["soup"]["score"])


def test_each_pair_that_a_report_shows_is_at_its_look_whoever_else_is_named(
    souping: Cli, finished_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("compare", "base=run", "ant=run:ant", "bee=run:bee", "--json")
    found = json.loads(souping(*words).out)
    assert (found["look"], found["look_note"], caplog.text) == (1, "", "")
    report = json.loads((finished_copy / "report.json").read_text())
    shown = {
        row["b"]: row for row in report["comparisons"] if row["kind"] in ("ingredient", "candidate")
    }
    for name in ("ant", "bee"):
        (row,) = [
            row for row in found["verdicts"] if row["name"] == "average" and row["model"] == name
        ]
        limits = [-shown[name]["high"], -shown[name]["low"]]
        assert [row["low"], row["high"]] == pytest.approx(limits)
        assert row["p_value"] == pytest.approx(shown[name]["p_look"])


def test_other_pairs_are_corrected_for_every_known_model_but_the_baseline(
    souping: Cli, finished_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = json.loads((finished_copy / "report.json").read_text())
    models = {row["recipe_id"] for row in report["rows"] if row["kind"] != "router"}
    ended = souping("compare", "base=run:uniform_all", "ant=run:ant", "--json")
    head = json.loads(ended.out)["verdicts"][0]
    # Look 2 has the level 1 - 0.05 / 6.
    assert head["level"] == pytest.approx(1 - 0.05 / 6 / (len(models) - 1))
    # The price is announced first.
    assert "look 2" in caplog.text
    assert "multiplied by 6" in caplog.text


def test_a_first_look_at_several_models_corrects_them_for_each_other(
    souping: Cli, finished_copy: Path
) -> None:
    """Of a store that has answers but no look, they are tested jointly, as logs of other tools are."""
    words = ("compare", "base=run:uniform_all", "ant=run:ant", "bee=run:bee", "--json")
    (path,) = stores_of(finished_copy, named=None)
    with Store(path) as store, store.writing() as db:
        for table in ("counted_looks", "shown", "measured", "choices", "pairs", "written"):
            db.execute(f"DELETE FROM {table}")
    counted = json.loads(souping(*words).out)
    assert (counted["look"], counted["look_note"]) == (1, "")
    path.rename(path.with_suffix(".gone"))
    uncounted = json.loads(souping(*words).out)
    assert "not counted" in uncounted["look_note"]
    assert counted["verdicts"] == uncounted["verdicts"]
    alone = json.loads(souping("compare", "base=run:uniform_all", "ant=run:ant", "--json").out)
    wide = counted["verdicts"][0]
    narrow = alone["verdicts"][0]
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]


def test_a_dry_run_is_not_compared(souping: Cli, finished_copy: Path) -> None:
    path = finished_copy / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dry_run": 2}))
    souping("compare", "base=run:uniform_all", "soup=run").refused("dry_run=2")
