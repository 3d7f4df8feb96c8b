"""Logs that lm_eval 0.4.13, bfcl-eval and inspect_ai wrote for the demo's models and for a mock model, read back.

`tests/data/logs` was made by their own commands; the figures that they are held against are in the same files.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from souping.core.types import UserError
from souping.logs.match import matched
from souping.logs.records import Group, Log, LoggedAnswer
from souping.logs.sources import read_logs
from tests.support.logs import DATA, PYTHON, ROWS, Frame, write_csv

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample


def mean(log: Log, task: str, metric: str) -> float:
    return float(np.nanmean([answer.score for answer in log.tasks[task].metrics[metric].answers]))


class TestLmEval:
    @pytest.fixture
    def log(self) -> Log:
        (log,) = read_logs(PYTHON)
        return log

    def test_means_are_the_harness_own(self, log: Log) -> None:
        figures = []
        means = []
        for task in log.tasks.values():
            for metric in task.metrics.values():
                if metric.is_mean:
                    figures.append(metric.reported)
                    means.append(mean(log, task.name, metric.name))
        assert means == pytest.approx(figures)
        assert len(means) == 7

    def test_the_requested_tasks_and_the_averages_of_groups_are_read(self, log: Log) -> None:
        assert set(log.requested) == {"picks", "shots", "translate", "last"}
        assert log.groups == {
            "picks": Group(name="picks", members=("pick", "pick2"), weight_by_size=False)
        }
        assert (log.harness, log.model) == ("lm_eval", "models/tuned_python")

    @pytest.mark.parametrize(
        ("task", "metric", "higher"),
        [("translate", "bleu", True), ("translate", "ter", False), ("last", "perplexity", False)],
    )
    def test_corpus_metrics_have_a_figure_and_no_items(
        self, log: Log, task: str, metric: str, higher: bool
    ) -> None:
        found = log.tasks[task].metrics[metric]
        assert (found.is_mean, found.higher_is_better) == (False, higher)
        assert found.reported is not None
        assert all(math.isnan(answer.score) for answer in found.answers)

    def test_the_first_metric_is_a_mean_where_there_is_one(self, log: Log) -> None:
        assert list(log.tasks["last"].metrics) == ["acc", "perplexity"]

    def test_settings_prompts_and_outputs_are_read(self, log: Log) -> None:
        assert log.tasks["shots"].settings == {"task version": "1.0", "number of shots": "2"}
        answer = log.tasks["translate"].metrics["bleu"].answers[0]
        assert answer.characters == len(answer.output) > 0
        choice = log.tasks["pick"].metrics["acc"].answers[0]
        assert choice.prompt.endswith("?")
        assert choice.output.startswith(" ")
        assert choice.characters is None

    def test_repeated_documents_are_items_of_one_group(self, log: Log) -> None:
        answers = log.tasks["pick2"].metrics["acc"].answers
        assert len({answer.item for answer in answers}) == 6
        assert len({answer.group for answer in answers}) == 5
        (grouped,) = read_logs(PYTHON, group="topic")
        assert {answer.group for answer in grouped.tasks["pick2"].metrics["acc"].answers} == {
            "soup",
            "stew",
        }

    def test_the_folder_above_and_the_newest_of_several(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="several models"):
            read_logs(_merged(tmp_path / "all"))
        assert read_logs(f"{tmp_path}/all:models__tuned_java")[0].model == "models/tuned_java"
        (old,) = (PYTHON / "models__tuned_python").glob("results_*")
        folder = shutil.copytree(old.parent, tmp_path / "twice")
        shutil.copy(old, folder / "results_2020-01-01T00-00-00.json")
        (log,) = read_logs(folder)
        assert log.path.name == old.name
        assert "newest of 2" in log.notes[0]
        # As text: a score that is nan equals no other.
        assert repr(read_logs(old)[0].tasks) == repr(log.tasks)

    @pytest.mark.parametrize(
        ("figure", "by_size"),
        [(0.35, True), (0.5, False), (0.42, True), (0.43, False), (-2.0, True), (2.0, False)],
    )
    def test_the_mean_that_is_closer_to_a_groups_figure_is_how_it_was_averaged(
        self, tmp_path: Path, figure: float, by_size: bool
    ) -> None:
        """0.2 of 30 items and 0.8 of 10: the mean is 0.35 over items and 0.5 over tasks."""
        figures = {"pick": {"acc,none": 0.2}, "pick2": {"acc,none": 0.8}}
        figures["picks"] = {"acc,none": figure}
        counts = {"pick": {"effective": 30}, "pick2": {"effective": 10}}
        (log,) = read_logs(results(results=figures, **{"n-samples": counts})(tmp_path))
        assert log.groups["picks"].weight_by_size is by_size

    def test_a_log_without_groups_requests_its_tasks(self, tmp_path: Path) -> None:
        (log,) = read_logs(results(group_subtasks=None)(tmp_path))
        assert (log.groups, set(log.requested)) == ({}, set(log.tasks))

    @pytest.mark.parametrize("value", [1e308, math.inf, "N/A"], ids=str)
    def test_a_figure_that_no_mean_can_be_is_left_out(self, tmp_path: Path, value: Any) -> None:
        figures = {"pick": {"acc,none": value}}
        (log,) = read_logs(results(results=figures)(tmp_path))
        metric = log.tasks["pick"].metrics["acc"]
        assert not metric.is_mean
        assert all(math.isnan(answer.score) for answer in metric.answers)

    def test_a_metric_with_a_sample_that_is_not_a_number_has_no_scores(
        self, tmp_path: Path
    ) -> None:
        def without_a_number(text: str) -> str:
            first, *others = text.splitlines()
            return "\n".join([json.dumps({**json.loads(first), "acc": math.nan}), *others])

        log = changed("lm_eval/tuned_python", {"samples_pick_*": without_a_number})(tmp_path)
        metrics = read_logs(log)[0].tasks["pick"].metrics
        assert all(math.isnan(answer.score) for answer in metrics["acc"].answers)
        assert metrics["acc_norm"].is_mean

    def test_groups_that_name_a_group_twice_are_read_in_linear_time(self, tmp_path: Path) -> None:
        doubled = {f"g{n}": [f"g{n + 1}"] * 2 for n in range(60)}
        (log,) = read_logs(results(group_subtasks=doubled | {"g60": ["pick", "pick2"]})(tmp_path))
        assert log.groups["g0"].members == ("pick", "pick2")

    @pytest.mark.slow
    def test_files_of_the_installed_harness_have_the_scores_that_it_returns(
        self, tmp_path: Path
    ) -> None:
        """What `simple_evaluate` returns and what is read of its files are one."""
        lm_eval = pytest.importorskip("lm_eval")
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.tasks import TaskManager

        from souping import demo
        from tests.support.lm_eval_tasks import make

        manager = TaskManager(include_path=str(make(tmp_path / "tasks", 6)), include_defaults=False)
        tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={demo.path('tuned_mixed')},dtype=float32",
            tasks=["picks", "write"],
            task_manager=manager,
            device="cpu",
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        (log,) = read_logs(tmp_path / "out")
        assert set(log.requested) == {"picks", "write"}
        for task, metric in (("pick", "acc"), ("pick2", "acc_norm"), ("write", "exact_match")):
            assert mean(log, task, metric) == pytest.approx(
                results["results"][task][f"{metric},none"]
            )
            scores = [answer.score for answer in log.tasks[task].metrics[metric].answers]
            assert scores == [sample[metric] for sample in samples[task]]


def _merged(folder: Path) -> Path:
    for name in ("tuned_python", "tuned_java"):
        shutil.copytree(DATA / "lm_eval" / name, folder, dirs_exist_ok=True)
    return folder


class TestBfcl:
    def test_an_item_is_right_unless_its_failure_is_listed(self) -> None:
        (log,) = read_logs(DATA / "bfcl" / "b")
        assert {name: task.metrics["accuracy"].reported for name, task in log.tasks.items()} == {
            "irrelevance": 0.8,
            "simple_python": 0.2,
        }
        assert mean(log, "simple_python", "accuracy") == 0.2
        missing = [
            a.item for a in log.tasks["simple_python"].metrics["accuracy"].answers if a.missing
        ]
        assert missing == ["simple_python_4"]

    @pytest.mark.slow
    def test_files_of_the_installed_bfcl_eval_have_the_scores_that_it_returns(
        self, bfcl: Any, tmp_path: Path
    ) -> None:
        from souping.evaluate.benchmark import first_items
        from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark
        from tests.support.bfcl import right_answer, score

        categories = ("simple_python", "irrelevance")
        items = first_items(BfclBenchmark(data=bfcl.data, categories=categories).items(), 3)
        answers = {
            item.id: right_answer(item) if n % 2 else "nothing" for n, item in enumerate(items)
        }
        records = score(bfcl, tmp_path, items, answers)
        (log,) = read_logs(tmp_path)
        logged = {}
        for task in log.tasks.values():
            for answer in task.metrics["accuracy"].answers:
                logged[answer.item] = answer.score
        assert logged == {record.item: record.score for record in records}

    @pytest.mark.parametrize(("gone", "word"), [("result", "result/"), ("score", "score/")])
    def test_one_folder_alone_is_refused(self, tmp_path: Path, gone: str, word: str) -> None:
        folder = shutil.copytree(DATA / "bfcl" / "a", tmp_path / "a")
        shutil.rmtree(folder / gone)
        with pytest.raises(UserError, match=word):
            read_logs(folder)

    def test_scores_of_other_results_are_refused(self, tmp_path: Path) -> None:
        folder = shutil.copytree(DATA / "bfcl" / "a", tmp_path / "a")
        (file,) = folder.rglob("*irrelevance_result.json")
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
        with pytest.raises(UserError, match="scores of 5 items"):
            read_logs(folder)


class TestInspect:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("inspect_ai")

    @pytest.mark.parametrize(("name", "right"), [("a", 0.5), ("b", 0.5)])
    def test_both_formats_with_epochs_and_several_scorers(self, name: str, right: float) -> None:
        (log,) = read_logs(DATA / "inspect" / name, group="topic")
        assert log.requested == ("sums", "words")
        sums = log.tasks["sums"].metrics
        assert list(sums) == ["match", "includes"]
        assert mean(log, "sums", "match") == right
        answers = sums["match"].answers
        assert {answer.repeat for answer in answers} == {0, 1}
        assert {answer.group for answer in answers} == {"even", "odd"}
        assert all(answer.tokens == 7 and answer.output for answer in answers)

    def test_a_log_of_an_evaluation_that_did_not_finish_is_refused(self, tmp_path: Path) -> None:
        from inspect_ai.log import read_eval_log, write_eval_log

        log = read_eval_log(str(next((DATA / "inspect" / "a").glob("*.eval"))))
        log.status = "cancelled"
        write_eval_log(log, str(tmp_path / "cancelled.json"))
        with pytest.raises(UserError, match=r"cancelled\.json: status is cancelled"):
            read_logs(tmp_path)

    def test_settings_are_those_that_change_scores(self, tmp_path: Path) -> None:
        from inspect_ai.log import read_eval_log, write_eval_log
        from inspect_ai.model import ModelConfig

        log = read_eval_log(str(next((DATA / "inspect" / "a").glob("*_sums_*.eval"))))
        first, second = log.eval.scorers or []
        first.options = {"ignore_case": False, "b": [1]}
        log.eval.task_version = 5
        log.eval.task_args = {"shots": 3}
        log.eval.config.epochs_reducer = ["mode", "at_least_2"]
        log.eval.model_roles = {"grader": ModelConfig(model="mockllm/judge")}
        write_eval_log(log, str(tmp_path / "sums.json"))
        (read,) = read_logs(tmp_path)
        assert read.tasks["sums"].settings == {
            "task version": "5",
            "epochs reducer": "mode, at_least_2",
            "judge": '{"grader": "mockllm/judge"}',
            "task arguments": '{"shots": 3}',
            f"scorer {first.name}": '{"b": [1], "ignore_case": false}',
            f"scorer {second.name}": "{}",
        }
        (plain,) = read_logs(DATA / "inspect" / "a")
        settings = plain.tasks["sums"].settings
        assert (settings["epochs reducer"], settings["judge"]) == ("mean", "{}")

    def test_a_sample_may_have_failed_or_met_a_limit_or_have_messages(self, tmp_path: Path) -> None:
        from inspect_ai.log import EvalError, EvalSampleLimit, read_eval_log, write_eval_log
        from inspect_ai.model import ChatMessageUser
        from inspect_ai.scorer import Score

        log = read_eval_log(str(next((DATA / "inspect" / "a").glob("*_sums_*.eval"))))
        failed, cut, parts, number, *rest = log.samples or []
        failed.scores = None
        failed.error = EvalError(message="time is up", traceback="", traceback_ansi="")
        cut.limit = EvalSampleLimit(type="token", limit=7)
        cut.input = [ChatMessageUser(content="one"), ChatMessageUser(content="two")]
        parts.scores = {"match": Score(value={"a": 0.5, "": 1.0}, answer="half")}
        number.scores = {"match": Score(value=float("nan")), "includes": Score(value=True)}
        write_eval_log(log, str(tmp_path / "sums.json"))
        (read,) = read_logs(tmp_path)
        metrics = read.tasks["sums"].metrics
        assert set(metrics) == {"match", "includes", "match/a"}
        answers = {}
        for name, logged in metrics.items():
            for answer in logged.answers:
                answers[name, answer.item.partition(" ")[0], answer.repeat] = answer

        def of(sample: EvalSample, metric: str) -> LoggedAnswer:
            return answers[metric, str(sample.id), sample.epoch - 1]

        for metric in ("match", "includes"):
            answer = of(failed, metric)
            assert (math.isnan(answer.score), answer.missing, answer.truncated) == (
                True,
                True,
                False,
            )
        assert of(cut, "match").prompt == '["one", "two"]'
        assert (of(cut, "match").truncated, of(cut, "match").missing) == (True, False)
        assert (of(parts, "match/a").score, of(parts, "match/a").output) == (0.5, "half")
        assert of(parts, "match").score == 1.0
        assert (of(number, "match").missing, of(number, "includes").score) == (True, 1.0)
        others = [of(sample, "match") for sample in rest]
        assert not any(answer.missing or answer.truncated for answer in others)

    def test_half_a_file_is_refused(self, tmp_path: Path) -> None:
        whole = next((DATA / "inspect" / "a").glob("*.eval")).read_bytes()
        (tmp_path / "half.eval").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"half\.eval: inspect_ai cannot read it"):
            read_logs(tmp_path)

    def test_a_data_frame_of_samples(self) -> None:
        analysis = pytest.importorskip("inspect_ai.analysis")
        (log,) = read_logs(analysis.samples_df(str(DATA / "inspect" / "a")))
        assert mean(log, "sums", "match") == 0.5
        assert len(log.tasks["words"].metrics["exact"].answers) == 2

    def test_a_frame_keeps_samples_that_failed_and_scores_with_several_values(self) -> None:
        sample = {"sample_id": "s", "epoch": 1, "input": "?", "log": "x_sums_y.eval", "error": None}
        rows = [
            sample | {"id": n, "score_match": "C", "score_parts": '{"a": 0.5, "b": 1}'}
            for n in range(2)
        ]
        rows.append(
            sample | {"id": 2, "score_match": math.nan, "score_parts": None, "error": "time is up"}
        )
        (log,) = read_logs(Frame(rows))
        metrics = log.tasks["sums"].metrics
        assert list(metrics) == ["match", "parts/a", "parts/b"]
        for metric in metrics.values():
            assert [(answer.missing, answer.truncated) for answer in metric.answers] == [
                (False, None)
            ] * 2 + [(True, False)]

    def test_a_frame_that_lacks_columns_of_samples_is_refused(self) -> None:
        sample = {"sample_id": "s", "epoch": 1, "input": "?", "id": 1, "score_match": "C"}
        for name in ("id", "input"):
            row = {key: value for key, value in sample.items() if key != name}
            with pytest.raises(UserError, match=f"no column {name}"):
                read_logs(Frame([row]))
        for damage in ({"epoch": "one"}, {"score_match": "{"}, {"model_usage": "[1]"}):
            with pytest.raises(UserError, match="row 1"):
                read_logs(Frame([sample | damage]))

    def test_a_frame_with_the_columns_of_a_table_is_one(self) -> None:
        row = {"sample_id": "s", "epoch": 1, "item": "i", "category": "c", "score": 1}
        (log,) = read_logs(Frame([row]))
        assert mean(log, "c", "score") == 1

    def test_a_model_is_named_with_its_slash(self) -> None:
        (log,) = read_logs(f"{DATA / 'inspect' / 'a'}:mockllm/model")
        assert log.model == "mockllm/model"


def test_an_inspect_log_that_unpacks_to_more_than_any_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zip may unpack to a hundred times its size, or to 256 MB if that is more: here to 1 MB."""
    pytest.importorskip("inspect_ai")
    monkeypatch.setattr("souping.core.files.UNPACKED_BYTES", 1 << 20)
    log = tmp_path / "log.eval"
    for size, refused in ((1 << 20, False), ((1 << 20) + 1, True)):
        with ZipFile(log, "w", ZIP_DEFLATED) as archive:
            archive.writestr("samples/1.json", bytes(size))
        with pytest.raises(UserError, match=r"log\.eval: ") as error:
            read_logs(log)
        assert ("unpack" in str(error.value)) == refused


def test_inspect_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai.log", None)
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai", None)
    with pytest.raises(UserError, match="pip install"):
        read_logs(DATA / "inspect" / "a")


class TestTables:
    def test_csv_jsonl_and_frames_are_one(self, tmp_path: Path) -> None:
        lines = tmp_path / "log.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        logs = [
            read_logs(write_csv(tmp_path / "log.csv", ROWS)),
            read_logs(lines),
            read_logs(Frame(ROWS)),
        ]
        assert logs[0][0].tasks == logs[1][0].tasks == logs[2][0].tasks
        assert logs[0][0].requested == ("a", "b")

    def test_every_optional_column_is_read(self, tmp_path: Path) -> None:
        rows = [
            {
                **row,
                "task": "t",
                "group": "g",
                "run": str(run),
                "repeat": repeat,
                "tokens": 3,
                "stop_reason": "length" if repeat else "stop",
            }
            for row in ROWS
            for run in range(2)
            for repeat in range(2)
        ]
        first, second = read_logs(write_csv(tmp_path / "log.csv", rows))
        assert (first.model, second.model) == ("0", "1")
        assert first.requested == ("t",)
        assert first.groups["t"].members == ("t/a", "t/b")
        answers = first.tasks["t/a"].metrics["score"].answers
        assert {
            (answer.repeat, answer.truncated, answer.tokens, answer.group) for answer in answers
        } == {
            (0, False, 3.0, "g"),
            (1, True, 3.0, "g"),
        }

    def test_an_item_without_a_score_is_missing(self, tmp_path: Path) -> None:
        (log,) = read_logs(
            write_csv(tmp_path / "log.csv", [*ROWS, {"item": "i9", "category": "a", "score": ""}])
        )
        assert [a.missing for a in log.tasks["a"].metrics["score"].answers] == [
            False,
            False,
            False,
            True,
        ]

    @pytest.mark.parametrize(("word", "higher"), [("true", True), ("FALSE", False), (1, True)])
    def test_a_column_says_the_direction_of_scores_beyond_one(
        self, tmp_path: Path, word: str | int, higher: bool
    ) -> None:
        rows = [{**row, "score": 50.0, "higher_is_better": word} for row in ROWS]
        (log,) = read_logs(write_csv(tmp_path / "log.csv", rows))
        metric = log.tasks["a"].metrics["score"]
        assert (metric.is_mean, metric.higher_is_better) == (False, higher)

    def test_the_caller_says_which_tasks_are_losses(self, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "log.csv", [{**row, "score": 1.5} for row in ROWS])
        (log,) = read_logs(path, lower=["a", "b"])
        assert not log.tasks["a"].metrics["score"].higher_is_better
        with pytest.raises(UserError, match=r"row 2: .*--lower-is-better b"):
            read_logs(path, lower=["a"])
        later = [
            {"item": 1, "category": task, "score": 1, "run": run}
            for run, task in ((1, "a"), (2, "a"), (2, "b"))
        ]
        *_, second = read_logs(write_csv(tmp_path / "later.csv", later), lower=["b"])
        assert not second.tasks["b"].metrics["score"].higher_is_better
        with pytest.raises(UserError, match=r"--lower-is-better=aa .*a, b"):
            read_logs(write_csv(tmp_path / "fine.csv", ROWS), lower=["aa"])
        with pytest.raises(UserError, match="--lower-is-better is for tables"):
            read_logs(PYTHON, lower=["pick"])

    def test_repeats_are_any_numbers(self, tmp_path: Path) -> None:
        rows = [{**row, "repeat": 10**9 * number} for number, row in enumerate(ROWS)]
        (log,) = read_logs(write_csv(tmp_path / "log.csv", rows))
        (other,) = read_logs(write_csv(tmp_path / "other.csv", ROWS))
        metric = matched({"a": [log], "b": [other]}).metrics["a"][0]
        assert metric.scores["a"].shape == metric.scores["b"].shape

    @pytest.mark.parametrize(
        "cells", [{"score": "TRUE"}, {"repeat": "1.0"}, {"output": "x" * 200_000}], ids=list
    )
    def test_ordinary_tables_of_other_programs(self, cells: dict[str, Any], tmp_path: Path) -> None:
        (log,) = read_logs(
            write_csv(tmp_path / "UP.CSV", [{"item": "i", "category": "c", "score": "1"} | cells])
        )
        (answer,) = log.tasks["c"].metrics["score"].answers
        assert (answer.score, answer.repeat) == (1, int("repeat" in cells))

    def test_cells_of_a_frame_without_a_value_are_empty(self) -> None:
        more = dict.fromkeys(
            ("task", "metric", "run", "group", "repeat", "output", "prompt"), math.nan
        )
        assert (
            read_logs(Frame([row | more for row in ROWS]))[0].tasks
            == read_logs(Frame(ROWS))[0].tasks
        )


class TestRuns:
    def test_the_answers_to_the_report_split(self, finished: Path) -> None:
        report = json.loads((finished / "run" / "report.json").read_text())
        models = [row for row in report["rows"] if row["kind"] != "router"]
        assert len(models) == len(report["rows"]) - 1
        for row in models:
            (log,) = read_logs(f"{finished / 'run'}:{row['name']}")
            means = {name: mean(log, name, "score") for name in log.tasks}
            assert means == pytest.approx(
                {name: one["mean"] for name, one in row["scores"].items()}
            )
            assert (
                sum(len(t.metrics["score"].answers) for t in log.tasks.values())
                == report["splits"]["test"]
            )
        assert read_logs(finished / "run")[0].model == "soup"

    def test_a_damaged_file_of_samples(self, finished: Path, tmp_path: Path) -> None:
        shutil.copy(finished / "run" / "report.json", tmp_path)
        whole = (finished / "run" / "samples.jsonl.gz").read_bytes()
        (tmp_path / "samples.jsonl.gz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"samples\.jsonl\.gz"):
            read_logs(tmp_path)
        (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(b""))
        with pytest.raises(UserError, match="no report"):
            read_logs(tmp_path)


def cut_sample(folder: Path) -> Path:
    shutil.copytree(PYTHON, folder, dirs_exist_ok=True)
    (file,) = folder.rglob("samples_pick_*")
    file.write_text(file.read_text()[:-40])
    return folder


def without_samples(folder: Path) -> Path:
    shutil.copytree(PYTHON, folder, dirs_exist_ok=True)
    next(folder.rglob("samples_pick_*")).unlink()
    return folder


def table(*rows: Mapping[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: write_csv(folder / "log.csv", [dict(row) for row in rows])


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such path": (lambda folder: folder / "nothing", "nothing: no such file"),
    "an empty folder": (lambda folder: folder, "not a log"),
    "an unknown file": (text("log.txt", "score 1"), "not a log"),
    "a truncated sample": (cut_sample, r"samples_pick_.*:8: not JSON, or cut off"),
    "no samples": (without_samples, "--log_samples"),
    "a truncated JSONL": (
        text("log.jsonl", '{"item": "a", "category": "c", "sc'),
        "log.jsonl:1: not JSON",
    ),
    "a line without a category": (
        text("log.jsonl", json.dumps(ROWS[0]) + '\n{"item": 1, "score": 1}'),
        "column category",
    ),
    "a JSON that is none": (text("log.json", '{"a": 1'), "not JSON"),
    "a JSON of something else": (text("log.json", '{"a": 1}'), "no results of lm_eval"),
    "wrong columns": (
        table({"item": 1, "category": "c", "scores": 1}),
        "no column score; did you mean scores.*--score",
    ),
    "no column of items": (table({"question": 1, "category": "c", "score": 1}), "item .*--item"),
    "no column of categories": (table({"item": 1, "score": 1}), "category .*--category"),
    "a score in words": (table({"item": 1, "category": "c", "score": "good"}), "row 1"),
    "an infinite score": (table({"item": 1, "category": "c", "score": "inf"}), "row 1"),
    "a row twice": (table(*[{"item": 1, "category": "c", "score": 1}] * 2), "--repeat"),
    "no rows": (text("log.csv", "item,category,score\n"), "no answers"),
    "bytes": (lambda folder: _binary(folder / "log.csv"), "not a table"),
}


def _binary(path: Path) -> Path:
    path.write_bytes(b"\xff\xfe\x00,\x01")
    return path


def changed(log: str, changes: Mapping[str, Callable[[str], str]]) -> Callable[[Path], Path]:
    """A log some of whose files are changed."""

    def make(folder: Path) -> Path:
        shutil.copytree(DATA / log, folder, dirs_exist_ok=True)
        for pattern, change in changes.items():
            file = next(folder.rglob(pattern))
            file.write_text(change(file.read_text()))
        return folder

    return make


def results(**changes: Any) -> Callable[[Path], Path]:
    return changed(
        "lm_eval/tuned_python",
        {"results_*": lambda text: json.dumps({**json.loads(text), **changes})},
    )


def sample(change: Callable[[str], str]) -> Callable[[Path], Path]:
    """A log of lm_eval with one more sample at the start: its first one, changed."""
    first = {"samples_pick_*": lambda text: change(text.splitlines()[0]) + "\n" + text}
    return changed("lm_eval/tuned_python", first)


def sizes(value: int) -> Callable[[Path], Path]:
    return results(**{"n-samples": {"pick": {"effective": value}}})


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def tokens(lines: str, count: Any) -> str:
    """Results of BFCL whose first item has this count of tokens."""
    first, *others = lines.splitlines()
    return "\n".join([json.dumps({**json.loads(first), "output_token_count": count}), *others])


CHAIN = {f"g{n}": [f"g{n + 1}"] for n in range(3000)}
TWICE = {
    "*irrelevance_result.json": lambda text: text.splitlines()[0] + "\n" + text,
    "*irrelevance_score.json": lambda text: text.replace('"total_count": 5', '"total_count": 6'),
}
HUGE = {
    "*irrelevance_score.json": lambda text: text.replace(
        '"accuracy": ', f'"accuracy": {"9" * 400}', 1
    )
}
BAD |= {
    "an accuracy beyond all floats": (changed("bfcl/a", HUGE), "irrelevance_score.json: accuracy"),
    "no configs": (results(configs=None), "no results of lm_eval"),
    "no figures": (results(results=[]), "no results of lm_eval"),
    "a group inside itself": (results(group_subtasks={"a": ["b"], "b": ["a"]}), "contains itself"),
    "no arguments": (
        sample(lambda line: json.dumps({**json.loads(line), "arguments": []})),
        "item 0 is damaged",
    ),
    "a sample twice": (sample(str), "item 0 .* has two scores of acc"),
    "a result twice": (changed("bfcl/a", TWICE), "item irrelevance_0 has two scores"),
    "a short row": (text("log.csv", "item,category,score\na,c,1\nb,c"), "row 2 has 2 of 3 columns"),
    "a long row": (text("log.csv", "item,category,score\na,c,1,2"), "row 1 has 4 of 3 columns"),
    "NaN in a CSV": (table({"item": 1, "category": "c", "score": "nan"}), "row 1.*nan"),
    "NaN in a JSONL": (
        text("log.jsonl", '{"item": 1, "category": "c", "score": NaN}'),
        "row 1.*NaN",
    ),
    "an underscore": (table({"item": 1, "category": "c", "score": "1_0"}), "row 1.*1_0"),
    "an empty file of samples": (
        changed("lm_eval/tuned_python", {"samples_pick_*": lambda _: ""}),
        "no samples",
    ),
    "fewer samples": (
        changed(
            "lm_eval/tuned_python",
            {"samples_pick_*": lambda text: "".join(text.splitlines(True)[:-1])},
        ),
        "of .* samples: the file is cut off",
    ),
    "a task with a slash": (results(configs={"a/b": {}}), "--log_samples"),
    "a run without names": (
        lambda folder: (
            text("report.json", '{"schema": 1, "rows": [{"scores": {}}]}')(folder).parent
        ),
        "no answers of soup",
    ),
    "two tasks of one name": (
        table(
            {"item": 1, "task": "", "category": "a/b", "score": 1},
            {"item": 2, "task": "a", "category": "b", "score": 1},
        ),
        "a/b",
    ),
    "half a repeat": (
        table({"item": 1, "category": "c", "score": 1, "repeat": 0.5}),
        "0.5 is not whole",
    ),
    "a loss without a direction": (
        table({"item": 1, "category": "c", "score": 1.5}),
        "row 1: score=1.5.*column higher_is_better.*--lower-is-better c",
    ),
    "a direction in other words": (
        table({"item": 1, "category": "c", "score": 1, "higher_is_better": "yes"}),
        "row 1: .*higher_is_better=yes",
    ),
    "two directions": (
        table(*({"item": n, "category": "c", "score": n, "higher_is_better": n} for n in (0, 1))),
        "row 2: higher_is_better",
    ),
    "two columns of scores": (
        text("log.csv", "item,category,score,score\na,c,1,0"),
        "log.csv: .*columns are called score",
    ),
    "two scores in a line": (
        text("log.jsonl", '{"item": 1, "category": "c", "score": 1, "score": 0}'),
        "log.jsonl:1: .*score",
    ),
    "a list 300 deep": (
        text("log.jsonl", json.dumps(ROWS[0])[:-1] + f', "note": {"[" * 300}{"]" * 300}}}'),
        "log.jsonl:1: note is nested",
    ),
    "a size that is negative": (sizes(-60), "n-samples.pick.effective=-60"),
    "a size of 400 digits": (sizes(10**400), "results_.*: the number 10000.* is too large"),
    "3,000 groups in each other": (results(group_subtasks=CHAIN), "group_subtasks: g101"),
    "a count of tokens of 400 digits": (
        changed("bfcl/a", {"*python_result.json": lambda line: tokens(line, 10**400)}),
        "python_result.json: item simple_python_0: tokens=",
    ),
    "counts of tokens that no float adds": (
        changed("bfcl/a", {"*python_result.json": lambda line: tokens(line, [[10**400, 0.5]])}),
        "python_result.json: item simple_python_0: tokens=",
    ),
    "counts of tokens 700 lists deep": (
        changed("bfcl/a", {"*python_result.json": lambda line: tokens(line, nested(700))}),
        "python_result.json:1: output_token_count is nested",
    ),
}
for name in ("tokens", "repeat", "score"):
    row: dict[str, Any] = {"item": 1, "category": "c", "score": 1, name: 10**400}
    BAD[f"{name} of 400 digits"] = (table(row), f"row 1: {name}=10000")


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_log_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    with pytest.raises(UserError, match=words) as refused:
        read_logs(make(tmp_path))
    assert len(str(refused.value).splitlines()) == 1
