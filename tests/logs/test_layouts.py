"""Result files of other tools, tables by named fields, parquet and arrays.

`tests/data/logs/README.md` says how the files were made. Each difference can be worked out
by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import souping
from souping.cli.compare import compare_logs
from souping.comparison.result import CompareResult
from souping.core import files
from souping.core.types import UserError
from souping.logs import layouts
from souping.logs.layouts import LogLayout
from souping.logs.records import LogRow
from souping.logs.sources import read_logs
from tests.conftest import ROOT

DATA = ROOT / "tests" / "data" / "logs"
EEE = DATA / "every_eval_ever"

BASE_CORRECT = [2, 1, 0, 0, 1, 0]
"""Right answers of two to each of six questions; the first of `cand` to the last question failed."""
CAND_CORRECT = [2, 2, 1, 0, 2, 0]
DIFFERENCE = (sum(CAND_CORRECT) - sum(BASE_CORRECT)) / 2 / 6
# verifiers adds 0.25 for every answer that there is
CORRECT_WEIGHT = 0.75
TWICE = {
    "nemo_evaluator/{}/results.jsonl": DIFFERENCE,
    "nemo_evaluator/{}/trajectories.jsonl": DIFFERENCE,
    "nemo_gym/{}/rollouts.jsonl": DIFFERENCE,
    "verifiers/{}/traces.jsonl": CORRECT_WEIGHT * DIFFERENCE,
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compared(base: Any, cand: Any, **options: Any) -> CompareResult:
    return souping.compare({"base": base, "cand": cand}, **options)


def names(pattern: str) -> tuple[Path, Path]:
    return DATA / pattern.format("base"), DATA / pattern.format("cand")


class TestTools:
    @pytest.mark.parametrize("pattern", TWICE)
    def test_the_difference_is_that_of_the_answers(self, pattern: str) -> None:
        result = compared(*names(pattern))
        head = result.average_row("cand")
        assert head.items == 6
        assert head.difference == pytest.approx(TWICE[pattern])
        assert head.missing == 1

    @pytest.mark.parametrize("pattern", TWICE)
    def test_two_answers_to_an_item_are_its_repeats(self, pattern: str) -> None:
        (log,) = read_logs(names(pattern)[1])
        answers = list(log.answers())
        assert log.harness == pattern.partition("/")[0]
        assert sorted(answer.repeat for answer in answers) == [0] * 6 + [1] * 6
        assert [answer.item[-1] for answer in answers if answer.missing] == ["5"]
        assert all(answer.prompt and answer.prompt_hash for answer in answers)

    @pytest.mark.parametrize("pattern", TWICE)
    def test_unpaired_items_are_counted(self, pattern: str, tmp_path: Path) -> None:
        base, cand = names(pattern)
        rows = [row for row in rows_of(cand) if "A bowl holds 8 figs" not in json.dumps(row)]
        assert len(rows) == 10
        notes = compared(base, write(tmp_path / "cand.jsonl", rows)).warnings
        assert [note for note in notes if "1 of " in note and "items are left out" in note]

    @pytest.mark.parametrize("pattern", TWICE)
    def test_other_questions_are_noticed(self, pattern: str, tmp_path: Path) -> None:
        base, cand = names(pattern)
        other = tmp_path / "cand.jsonl"
        other.write_text(
            cand.read_text().replace("A bowl", "A box").replace('"hash":"', '"hash":"0')
        )
        assert any("differ in 100 %" in note for note in compared(base, other).warnings)
        with pytest.raises(UserError, match="--same-prompts"):
            compared(base, other, same_prompts=True)

    def test_categories_tokens_and_cut_answers(self) -> None:
        result = compared(*names("nemo_evaluator/{}/trajectories.jsonl"))
        rows = {row.name: row for row in result.verdicts}
        assert rows["few"].difference == pytest.approx(1 / 3)
        assert rows["many"].difference == pytest.approx(1 / 6)
        assert rows["tokens"].baseline_mean == pytest.approx(np.mean([3, 4, 5, 6, 7, 8]))
        assert rows["cut"].baseline_mean == pytest.approx(1 / 6)

    def test_rewards_of_any_range_are_better_if_higher(self, tmp_path: Path) -> None:
        base, cand = names("nemo_gym/{}/rollouts.jsonl")
        logs = []
        for path in (base, cand):
            rows = rows_of(path)
            for row in rows:
                row["reward"] = 4 * row["reward"] - 2
            logs.append(write(tmp_path / f"{path.parent.name}.jsonl", rows))
        head = compared(*logs).average_row("cand")
        assert head.higher_is_better
        assert head.difference == pytest.approx(4 * DIFFERENCE)

    def test_two_tools_do_not_compare(self) -> None:
        with pytest.raises(UserError, match=r"nemo_gym.*verifiers"):
            compared(
                DATA / "nemo_gym" / "base" / "rollouts.jsonl",
                DATA / "verifiers" / "cand" / "traces.jsonl",
            )


class TestVerifiers:
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(DATA / "verifiers" / "base" / "traces.jsonl")

    def test_only_traces_that_train_count(self, tmp_path: Path) -> None:
        rows = self.rows()
        judge = json.loads(json.dumps(rows[0]["traces"][0]))
        judge["agent"] |= {"name": "judge", "trainable": False}
        judge["rewards"] = {"correct": {"score": 0.0, "weight": 1.0}}
        rows[0]["traces"].append(judge)
        (log,) = read_logs(write(tmp_path / "traces.jsonl", rows))
        assert next(log.answers()).score == 1

    def test_a_reward_that_was_not_computed_is_missing(self, tmp_path: Path) -> None:
        rows = self.rows()
        rows[0]["traces"][0]["rewards"]["correct"] = None
        rows[1]["traces"][0]["rewards"] = {}
        (log,) = read_logs(write(tmp_path / "traces.jsonl", rows))
        assert [answer.missing for answer in log.answers()] == [True, True] + [False] * 10

    @pytest.mark.parametrize(
        ("score", "weight"),
        [("x", 20_000_000_000), ([0], 20_000_000_000), (10**400, 1), (1, 10**400), ({}, 1)],
        ids=["text", "list", "digits", "weight", "object"],
    )
    def test_a_reward_that_is_no_number_is_refused(
        self, tmp_path: Path, score: Any, weight: int
    ) -> None:
        rows = self.rows()
        rows[3]["traces"][0]["rewards"]["correct"] = {"score": score, "weight": weight}
        with pytest.raises(UserError, match="row 4: "):
            read_logs(write(tmp_path / "traces.jsonl", rows))

    def test_a_damaged_row_is_named(self, tmp_path: Path) -> None:
        rows = self.rows()
        rows[3]["traces"][0]["rewards"] = ["correct"]
        with pytest.raises(UserError, match="row 4: not a row of verifiers"):
            read_logs(write(tmp_path / "traces.jsonl", rows))
        del rows[3]["traces"]
        with pytest.raises(UserError, match="no column traces"):
            read_logs(write(tmp_path / "traces.jsonl", rows))


class TestEveryEvalEver:
    PYTHON = EEE / "tuned_python_samples.jsonl"
    JAVA = EEE / "tuned_java_samples.jsonl"

    def mean(self, model: str, metric: str) -> float:
        """The figure of the lm_eval log that the converter read."""
        (samples,) = (DATA / "lm_eval" / model).rglob("samples_pick_*.jsonl")
        return float(np.mean([row[metric] for row in rows_of(samples)]))

    @pytest.mark.parametrize(("metric", "place"), [("acc", 0), ("acc_norm", 1)])
    def test_the_difference_is_that_of_the_log_that_was_converted(
        self, metric: str, place: int
    ) -> None:
        rows = [
            row for row in compared(self.PYTHON, self.JAVA).verdicts if row.metric in ("", metric)
        ]
        difference = self.mean("tuned_java", metric) - self.mean("tuned_python", metric)
        assert rows[place].difference == pytest.approx(difference)

    def test_an_error_is_a_missing_answer(self, tmp_path: Path) -> None:
        rows = rows_of(self.JAVA)
        for row in rows[:2]:
            row["error"] = "timeout"
        cand = write(tmp_path / "java.jsonl", rows)
        assert compared(self.PYTHON, cand).average_row("cand").missing == 1

    def test_one_of_several_models_is_named(self, tmp_path: Path) -> None:
        both = tmp_path / "both.jsonl"
        both.write_text(self.PYTHON.read_text() + self.JAVA.read_text())
        with pytest.raises(UserError, match="souping/tuned_java, souping/tuned_python"):
            read_logs(both)
        with pytest.raises(UserError, match="no answers of gemma"):
            read_logs(f"{both}:gemma")
        result = compared(f"{both}:souping/tuned_python", f"{both}:souping/tuned_java")
        apart = compared(self.PYTHON, self.JAVA)
        assert result.verdicts == apart.verdicts

    def test_other_samples_of_the_same_id_are_noticed(self, tmp_path: Path) -> None:
        rows = rows_of(self.JAVA)
        for row in rows[:8]:
            row["sample_hash"] = "0" + row["sample_hash"]
        notes = compared(self.PYTHON, write(tmp_path / "java.jsonl", rows)).warnings
        assert any("differ in 50 %" in note for note in notes)


TRIES: dict[str, dict[str, list[int | None]]] = {
    "base": {"q1": [1, 0], "q2": [0, 0], "q3": [1, None]},
    "cand": {"q1": [1, 1], "q2": [1, 0], "q3": [1, 0]},
}
"""Scores of two tries at each question: means 1/2, 0, 1 and 1, 1/2, 1/2, so the difference is 1/6."""
FIELDS = {"item": "id", "score": "result.score", "repeat": "try", "category": "about.topic"}


def nested(path: Path, model: str) -> Path:
    """A JSONL file whose row of a failed try has no result."""
    rows = []
    for question, scores in TRIES[model].items():
        for number, score in enumerate(scores):
            row: dict[str, Any] = {"id": question, "try": number, "about": {"topic": "figs"}}
            if score is not None:
                row["result"] = {"score": score}
            rows.append(row)
    rows.reverse()
    return write(path / f"{model}.jsonl", rows)


class TestNamedFields:
    @pytest.fixture
    def logs(self, tmp_path: Path) -> tuple[Path, Path]:
        return nested(tmp_path, "base"), nested(tmp_path, "cand")

    def test_dotted_names_reach_nested_fields(self, logs: tuple[Path, Path]) -> None:
        head = compared(*logs, **FIELDS).average_row("cand")
        assert (head.items, head.missing) == (3, 1)
        assert head.difference == pytest.approx(1 / 6)
        (log,) = read_logs(logs[0], **FIELDS)
        assert list(log.tasks) == ["figs"]

    def test_a_table_without_a_category_has_one(self, logs: tuple[Path, Path]) -> None:
        fields = {key: FIELDS[key] for key in ("item", "score", "repeat")}
        assert compared(*logs, **fields).average_row("cand").difference == pytest.approx(1 / 6)

    def test_the_command_takes_them(
        self, logs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = []
        for name, field in FIELDS.items():
            flags += [f"--{name}", field]
        assert compare_logs([f"base={logs[0]}", f"cand={logs[1]}", "--json", *flags]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["verdicts"][0]["difference"] == pytest.approx(1 / 6)

    @pytest.mark.parametrize(
        ("option", "field", "near"),
        [("item", "ids", "id"), ("score", "result.scor", "result.score"), ("repeat", "tri", "try"),
         ("category", "about.topics", "about.topic")],
    )  # fmt: skip
    def test_a_wrong_name_gives_the_nearest(
        self, logs: tuple[Path, Path], option: str, field: str, near: str
    ) -> None:
        with pytest.raises(UserError, match=f"no column {field}; did you mean {near}"):
            read_logs(logs[1], **{**FIELDS, option: field})

    def test_they_come_before_those_of_a_tool(self) -> None:
        path = DATA / "nemo_evaluator" / "base" / "results.jsonl"
        (log,) = read_logs(path, category="scoring_details.method")
        assert list(log.tasks) == ["exact"]

    def test_a_column_of_models_is_picked_from(self, tmp_path: Path) -> None:
        rows = []
        for model, right in {"a": [1, 1, 0], "b": [1, 0, 0]}.items():
            for number, score in enumerate(right):
                rows.append({"model": model, "q": number, "ok": score})
        path = write(tmp_path / "all.jsonl", rows)
        with pytest.raises(UserError, match=r"several models.*\(a, b\)"):
            read_logs(path, item="q", score="ok")
        result = compared(f"{path}:a", f"{path}:b", item="q", score="ok")
        assert result.average_row("cand").difference == pytest.approx(-1 / 3)

    def test_a_harness_has_its_own(self) -> None:
        with pytest.raises(UserError, match="--item, --score and --repeat"):
            read_logs(DATA / "lm_eval" / "tuned_python", item="doc_id")

    def test_parquet_is_read_as_jsonl(self, logs: tuple[Path, Path], tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        files = []
        for path in logs:
            rows = [{"result": None, **row} for row in rows_of(path)]
            files.append(path.with_suffix(".parquet"))
            parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1])
        assert compared(*files, **FIELDS).verdicts == compared(*logs, **FIELDS).verdicts
        files[0].write_bytes(files[0].read_bytes()[:-20])
        with pytest.raises(UserError, match=r"base\.parquet: not a table"):
            read_logs(files[0], **FIELDS)

    @pytest.mark.parametrize("case", ["two columns", "equal rows", "equal texts", "damaged"])
    def test_parquet_that_is_damaged_or_unpacks_to_too_much_is_refused(
        self, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(files, "UNPACKED_BYTES", 1 << 20)
        same = np.zeros(60 if case == "equal texts" else 20_000, np.int8)
        text = "a" * (100_000 if case == "equal texts" else 1)
        columns = [pyarrow.array(same)]
        for value in ("i", "c", text):
            columns.append(pyarrow.DictionaryArray.from_arrays(same, [value]))
        names = ["score", "item", "category", "score" if case == "two columns" else "output"]
        path = tmp_path / "log.parquet"
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), path)
        if case == "damaged":
            content = path.read_bytes()
            path.write_bytes(content[:50] + b"\xff" * 50 + content[100:])
        with pytest.raises(UserError, match=r"log\.parquet"):
            read_logs(path)

    def test_parquet_needs_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        path = tmp_path / "log.parquet"
        path.write_bytes(b"PAR1")
        with pytest.raises(UserError, match="pip install pyarrow"):
            read_logs(path)


class TestArrays:
    BASE = (1, 0, 0, 1, 0, 0)
    CAND = (1, 1, 0, 1, 1, 0)

    @pytest.mark.parametrize("kind", [list, tuple, np.array])
    def test_scores_are_paired_by_position(self, kind: Callable[..., Any]) -> None:
        head = compared(kind(self.BASE), kind(self.CAND)).average_row("cand")
        assert (head.items, head.missing) == (6, 0)
        assert head.difference == pytest.approx(2 / 6)

    def test_a_data_frame_gives_the_same(self) -> None:
        pandas = pytest.importorskip("pandas")
        frames = []
        for scores in (self.BASE, self.CAND):
            frames.append(pandas.DataFrame({"item": range(6), "category": "all", "score": scores}))
        arrays = compared(np.array(self.BASE), np.array(self.CAND))
        assert compared(*frames).verdicts == arrays.verdicts
        assert compared(*(frame["score"] for frame in frames)).verdicts == arrays.verdicts
        # The items of a table may be numbers too, in another order.
        with pytest.raises(UserError, match="do not compare"):
            compared(np.array(self.BASE), frames[1])

    def test_nan_is_a_missing_answer(self) -> None:
        scores = np.array(self.CAND, dtype=float)
        scores[0] = np.nan
        assert compared(list(self.BASE), scores).average_row("cand").missing == 1

    def test_a_masked_score_is_a_missing_answer(self) -> None:
        mask = [True, True, False, False, False, False]
        scores: np.ma.MaskedArray = np.ma.array(self.CAND, mask=mask)
        found = compared(list(self.BASE), scores).average_row("cand")
        hidden = np.array([np.nan, np.nan, *self.CAND[2:]])
        assert found == compared(list(self.BASE), hidden).average_row("cand")
        assert found.missing == 2

    def test_the_labels_of_a_series_name_its_items(self) -> None:
        pandas = pytest.importorskip("pandas")
        base = pandas.Series(self.BASE, index=list("abcdef"))
        cand = pandas.Series(self.CAND, index=list("abcdef"))
        difference = compared(base, cand[::-1]).average_row("cand").difference
        assert difference == pytest.approx(2 / 6)
        with pytest.raises(UserError, match="no item in common"):
            compared(list(self.BASE), cand)

    def test_two_columns_of_one_name_in_a_data_frame_are_refused(self) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"item": range(6), "category": "all", "score": self.BASE})
        twice = frame.copy()
        twice.insert(3, "score", self.CAND, allow_duplicates=True)
        with pytest.raises(UserError, match="two columns are called score"):
            compared(frame, twice)

    def test_a_list_of_arrays_is_several_runs(self) -> None:
        runs = [np.array(self.CAND), np.array(self.BASE)]
        head = compared(list(self.BASE), runs).average_row("cand")
        assert head.difference == pytest.approx(1 / 6)

    @pytest.mark.parametrize(
        ("scores", "words"),
        [
            ([1, 0, 1], "base has 6, cand has 3"),
            (np.zeros((6, 2)), "one dimension"),
            ([1, 0, {}, 1, 0, 1], "not scores"),
            (np.array([1, 0, 1, 1j, 0, 1]), "complex"),
            (np.array(["2026-12-02"] * 6, "M8[D]"), "datetime"),
            ([1, 0, 1, 2.5, 0, 1], "score=2.5.*higher_is_better"),
            (DATA / "nemo_gym" / "base" / "rollouts.jsonl", "do not compare"),
        ],
        ids=[
            "length",
            "two dimensions",
            "no number",
            "complex",
            "dates",
            "no direction",
            "a file",
        ],
    )
    def test_scores_that_cannot_be_paired_are_refused(self, scores: Any, words: str) -> None:
        with pytest.raises(UserError, match=words):
            compared(list(self.BASE), scores)


class TestInstalledPackages:
    """Layouts of installed packages, as if their entry points had been found."""

    ROWS = ({"item": 1, "category": "x", "score": 1}, {"item": 2, "category": "x", "score": 0})

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The paths that packages were given. The first package writes no rows, the second fails, the third reads."""
        paths = list[Path]()

        def fails(path: Path) -> list[LogRow]:
            paths.append(path)
            raise RuntimeError("not mine")

        def reads(path: Path) -> tuple[LogRow, ...]:
            return self.ROWS if path.suffix == ".lab" else ()

        parts = (
            LogLayout(name="tables", keys=("question", "right"), columns=self.columns),
            LogLayout(name="broken", rows=fails),
            LogLayout(name="lab", rows=reads),
        )
        monkeypatch.setattr(layouts, "installed_layouts", lambda: parts)
        return paths

    @staticmethod
    def columns(row: LogRow) -> dict[str, Any]:
        return {"item": row["question"], "score": row["right"]}

    def test_a_package_reads_what_no_harness_wrote(self, seen: list[Path], tmp_path: Path) -> None:
        path = tmp_path / "log.lab"
        path.write_text("any form")
        (log,) = read_logs(path)
        assert (log.harness, seen) == ("lab", [path])
        assert sorted(answer.score for answer in log.answers()) == [0.0, 1.0]
        other = path.rename(tmp_path / "log.other")
        with pytest.raises(UserError, match=r"log\.other: not a log"):
            read_logs(other)

    def test_logs_of_a_known_harness_are_given_to_no_package(self, seen: list[Path]) -> None:
        (log,) = read_logs(DATA / "bfcl" / "a")
        assert (log.harness, seen) == ("bfcl", [])

    def test_a_table_is_that_of_a_package_unless_fields_name_its_columns(
        self, seen: list[Path], tmp_path: Path
    ) -> None:
        path = write(tmp_path / "t.jsonl", [{"question": 1, "right": 1, "also": 0}])
        (log,) = read_logs(path)
        assert log.harness == "tables"
        (named,) = read_logs(path, item="question", score="also")
        assert named.harness == "table"
        assert [answer.score for answer in named.answers()] == [0.0]
        (known,) = read_logs(write(tmp_path / "own.jsonl", [dict(self.ROWS[0])]))
        assert known.harness == "table"
        assert seen == []


def test_a_file_of_an_installed_package_is_read_by_the_first_that_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A package whose reader fails is named with its remedy, and the next one is tried."""

    def broken(path: Path) -> list[LogRow]:
        raise RuntimeError(f"{path.name}?\nmore")

    found: list[LogRow] = [{"item": "i", "score": 1.0}]
    installed = (
        LogLayout(name="broken", package="theirs", rows=broken),
        LogLayout(name="tables", keys=("x",)),
        LogLayout(name="another's", rows=lambda path: []),
        LogLayout(name="ours", rows=lambda path: iter(found)),
        LogLayout(name="later", rows=lambda path: [{}]),
    )
    monkeypatch.setattr(layouts, "installed_layouts", lambda: installed)
    assert layouts.installed_rows(tmp_path / "log.bin") == (installed[3], found)
    (message,) = caplog.messages
    assert message.endswith("not read as broken: RuntimeError: log.bin?: pip uninstall theirs")
    monkeypatch.setattr(layouts, "installed_layouts", lambda: installed[1:3])
    assert layouts.installed_rows(tmp_path / "log.bin") is None


GYM = {
    "_ng_task_index": 3,
    "_ng_rollout_index": 1,
    "reward": 0.5,
    "responses_create_params": {"input": "2 + 2?"},
}
EVALUATOR = {"problem_idx": 3, "repeat": 1, "reward": 0.5, "prompt": "2 + 2?"}
EVERY = {
    "schema_version": "1",
    "model_id": "m",
    "evaluation_name": "sums",
    "sample_id": 3,
    "evaluation": {"score": 0.5},
}


def trace(trainable: bool, *rewards: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    """A trace with named rewards, (score, weight) each."""
    named = {}
    for number, reward in enumerate(rewards):
        named[str(number)] = reward and {"score": reward[0], "weight": reward[1]}
    return {"agent": {"trainable": trainable}, "rewards": named, **more}


def episode(*traces: dict[str, Any], ok: bool = True, tokens: int = 7, **task: Any) -> LogRow:
    own = {"hash": "h", "type": "sums", **task}
    return {"task": own, "traces": list(traces), "ok": ok, "num_output_tokens": tokens}


LAST = {"nodes": [{}, {"message": {"content": "four"}}], "calls": [{}, {"finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("row", "tool", "expected"),
    [
        (GYM, "nemo_gym", {
            "item": 3, "category": "all", "score": 0.5, "repeat": 1, "prompt": "2 + 2?", "output": "", "tokens": None,
            "stop_reason": "", "higher_is_better": True,
        }),
        (GYM | {"mask_sample": True, "agent_ref": {"name": "sums"}}, "nemo_gym", {"score": None, "category": "sums"}),
        (GYM | {"responses_create_params": {"input": [{"text": "2"}]}}, "nemo_gym", {"prompt": '[{"text": "2"}]'}),
        (GYM | {"responses_create_params": {}}, "nemo_gym", {"prompt": ""}),
        (GYM | {"response": {
            "output": [{"content": [{"text": "fo"}, {"text": "ur"}]}, {"text": "!"}, 3],
            "usage": {"output_tokens": 9}, "incomplete_details": {"reason": "max_tokens"},
        }}, "nemo_gym", {"output": "fo\nur\n!", "tokens": 9, "stop_reason": "max_tokens"}),
        (EVALUATOR, "nemo_evaluator", {
            "item": 3, "category": "all", "score": 0.5, "repeat": 1, "prompt": "2 + 2?", "output": None, "tokens": None,
            "unanswered": False, "stop_reason": None, "higher_is_better": True,
        }),
        (EVALUATOR | {"metadata": {"category": "sums"}, "seed_metadata": {"category": "x"}}, "nemo_evaluator",
         {"category": "sums"}),
        (EVALUATOR | {"seed_metadata": {"category": "x"}, "model_error": "late"}, "nemo_evaluator",
         {"category": "x", "unanswered": True}),
        (EVALUATOR | {"scoring_details": {"judge": {"error": "late"}}}, "nemo_evaluator", {"unanswered": True}),
        (EVALUATOR | {"scoring_details": {"error_category": "x"}}, "nemo_evaluator", {"unanswered": True}),
        (EVALUATOR | {"model": {"content": "five", "tokens": {"completion": 4}, "finish_reason": "length"}},
         "nemo_evaluator", {"output": "five", "tokens": 4, "stop_reason": "length"}),
        (EVALUATOR | {"model_response": "four", "model": {"content": "five"}}, "nemo_evaluator", {"output": "four"}),
        (EVERY, "every_eval_ever", {
            "item": 3, "category": "sums", "model": "m", "metric": None, "score": 0.5, "repeat": None, "prompt": None,
            "prompt_hash": None, "output": "", "tokens": None, "unanswered": False, "stop_reason": None,
        }),
        (EVERY | {
            "input": {"raw": "2 + 2?"}, "output": {"raw": ["fo", "ur"]}, "token_usage": {"output_tokens": 4},
            "error": "late", "metadata": {"epoch": 2, "stop_reason": "stop"}, "sample_hash": "h",
        }, "every_eval_ever", {
            "prompt": "2 + 2?", "output": "fo\nur", "tokens": 4, "unanswered": True, "repeat": 2, "stop_reason": "stop",
            "prompt_hash": "h",
        }),
        (EVERY | {"input": {"raw": "2", "formatted": "<2>"}}, "every_eval_ever", {"prompt": "<2>"}),
        (episode(trace(True, (0.5, 2.0), (1.0, 0.25)), trace(True, (0.75, 1.0), **LAST), trace(False, (9.0, 9.0))),
         "verifiers", {
            "item": "h", "category": "sums", "score": 1.0, "prompt": None, "prompt_hash": "h", "output": "four",
            "tokens": 7, "stop_reason": "stop", "higher_is_better": True,
        }),
        (episode(trace(False, (0.5, 2.0)), key="k", data={"prompt": "2?"}, tokens=0), "verifiers",
         {"item": "k", "score": 1.0, "prompt": "2?", "tokens": None, "output": None, "stop_reason": None}),
        (episode(trace(True, (0.5, 2.0)), ok=False), "verifiers", {"score": None}),
        (episode(), "verifiers", {"score": None, "output": None}),
    ],
)  # fmt: skip
def test_a_row_of_a_tool_has_these_columns(
    row: LogRow, tool: str, expected: dict[str, Any]
) -> None:
    layout = layouts.layout_of(row, ())
    assert layout.name == tool
    columns = layout.columns(row)
    assert {name: columns[name] for name in expected} == expected


@pytest.mark.parametrize("rewards", [(), (None,), ((0.5, 1.0), None)])
def test_an_episode_without_all_of_its_rewards_has_no_score(
    rewards: tuple[tuple[float, float] | None, ...],
) -> None:
    row = episode(trace(True, *rewards))
    assert np.isnan(layouts.layout_of(row, ()).columns(row)["score"])


def test_a_table_whose_item_or_score_is_named_is_of_no_installed_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = LogLayout(name="theirs", keys=("x",))
    monkeypatch.setattr(layouts, "installed_layouts", lambda: (theirs,))
    assert layouts.layout_of({"x": 1}, ()) == theirs
    assert layouts.layout_of({"x": 1}, ("group",)) == theirs
    for named in ("item", "score"):
        assert layouts.layout_of({"x": 1}, (named,)).name == "table"
    assert layouts.layout_of(GYM | {"x": 1}, ()).name == "nemo_gym"
    assert layouts.layout_of({"y": 1}, ()).name == "table"


def test_a_row_of_an_installed_package_needs_an_item_and_a_score() -> None:
    theirs = LogLayout(
        name="theirs", keys=("x",), package="p", columns=lambda row: {"item": row["x"]}
    )
    rows = layouts.rows_by_column(Path("log.csv"), [{"x": 1}], theirs, {})
    with pytest.raises(UserError, match=r"log\.csv: no column score"):
        list(rows)


def test_answers_without_a_number_are_numbered_by_item() -> None:
    rows = [episode(trace(True, (0.5, 2.0)), key=key) for key in ("a", "b", "a", "a")]
    layout = layouts.layout_of(rows[0], ())
    found = list(layouts.rows_by_column(Path("log"), rows, layout, {}))
    assert [(row["item"], row["repeat"]) for row in found] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("a", 2),
    ]


def test_a_row_without_the_named_score_is_a_missing_answer_if_others_have_one() -> None:
    rows: list[LogRow] = [
        {"item": 1, "category": "c"},
        {"item": 2, "category": "c", "own": {"s": 0.5}},
    ]
    table = layouts.OWN_TABLE
    found = list(layouts.rows_by_column(Path("t.csv"), rows, table, {"score": "own.s"}))
    assert [row["score"] for row in found] == [None, 0.5]
    with pytest.raises(UserError, match=r"t\.csv: no column own\.s"):
        list(layouts.rows_by_column(Path("t.csv"), rows[:1], table, {"score": "own.s"}))
    named = list(
        layouts.rows_by_column(
            Path("t.csv"), [{"n": 3, "s": 1}], table, {"item": "n", "score": "s"}
        )
    )
    assert (named[0]["item"], named[0]["category"], named[0]["score"]) == (3, "all", 1)
