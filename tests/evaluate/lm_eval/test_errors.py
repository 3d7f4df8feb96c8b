"""What a user can get wrong with evaluator=lm_eval ends in one or two lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Item, UserError
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.lm_eval.errors import require
from souping.evaluate.lm_eval.evaluator import HarnessEvaluator
from tests.conftest import Cli, pool_of
from tests.support import lm_eval_tasks

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"), count=4)


def refused(folder: Path, *tasks: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        HarnessEvaluator(
            tasks=list(tasks), include_path=str(folder), include_defaults=False, **settings
        ).benchmark.items()
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 2, text
    assert all(len(line) < 400 for line in text.splitlines()), text
    return text


class TestTasks:
    def test_an_unknown_task_names_the_nearest(self, folder: Path) -> None:
        assert "no task, group or tag is named pickk; did you mean" in refused(folder, "pickk")
        assert "pick2" in refused(folder, "pickk")
        assert "set evaluator.include_path" in refused(folder, "zzz")
        assert "no task matches zz*" in refused(folder, "zz*")
        assert "evaluator.tasks is empty" in refused(folder)

    def test_a_file_that_cannot_be_read_is_named(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "broken.yaml").write_text("task: broken\nmetric_list: [\n")
        assert "broken.yaml" in refused(tmp_path, "broken")

    def test_missing_data_names_the_yaml(self, folder: Path, tmp_path: Path) -> None:
        lm_eval_tasks.put(tmp_path, "lost", lm_eval_tasks.rows(3, 1), lm_eval_tasks.CHOICE)
        (tmp_path / "lost.json").unlink()
        assert "lost.yaml" in refused(tmp_path, "lost")

    def test_data_that_does_not_hold_what_it_should(self, tmp_path: Path) -> None:
        lm_eval_tasks.put(tmp_path, "bare", [], lm_eval_tasks.CHOICE)
        (tmp_path / "bare.json").write_text("")
        assert "bare has no documents" in refused(tmp_path, "bare")
        lm_eval_tasks.put(tmp_path, "torn", lm_eval_tasks.rows(3, 1), lm_eval_tasks.CHOICE)
        (tmp_path / "torn.json").write_text('{"question": "a"}\n{"question": ')
        assert "An error occurred" not in refused(tmp_path, "torn")

    def test_more_examples_than_there_are(self, folder: Path) -> None:
        assert "fewer few-shot examples than evaluator.num_fewshot" in refused(folder, "pick", num_fewshot=500)

    def test_a_task_with_a_key_that_is_none(self, folder: Path) -> None:
        said = refused(folder, {"task": "pick", "num_fewshto": 2})
        assert said.startswith("evaluator.tasks: pick cannot be loaded")
        assert "num_fewshto" in said

    @pytest.mark.slow
    def test_data_of_the_hub_without_a_way_there(self, folder: Path, tmp_path: Path) -> None:
        lines = ["task: far", "dataset_path: nobody/nothing-there", "test_split: test", *lm_eval_tasks.CHOICE]
        (tmp_path / "far.yaml").write_text("\n".join(lines))
        assert "load it once with access to the Hub" in refused(tmp_path, "far")

    def test_a_task_that_stands_twice(self, folder: Path) -> None:
        assert "pick is in picks and in pick" in refused(folder, "picks", "pick")

    def test_code_and_images(self, folder: Path, tmp_path: Path) -> None:
        data = lm_eval_tasks.rows(3, 1)
        lm_eval_tasks.put(tmp_path, "runs", data, ["unsafe_code: true", *lm_eval_tasks.WRITE])
        assert "evaluator.confirm_run_unsafe_code=true" in refused(tmp_path, "runs")
        lm_eval_tasks.put(tmp_path, "sees", data, ['doc_to_image: "{{text}}"', *lm_eval_tasks.WRITE])
        assert "needs images or sound" in refused(tmp_path, "sees")

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        assert "is not a folder" in refused(tmp_path / "no", "pick")


class TestMetrics:
    def test_unknown_names(self, folder: Path) -> None:
        assert "did you mean acc_norm?" in refused(folder, "pick", metric="acc_nor")
        assert "task pick: evaluator.filter=strict" in refused(folder, "pick", filter="strict")
        assert "evaluator.metric: task=pik is not one of pick; did you mean pick?" in refused(
            folder, "pick", metric={"pik": "acc"}
        )

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ("aggregation: mean\n    higher_is_better: false", "is better when lower, and souping maximises"),
            ("aggregation: median\n    higher_is_better: true", "is aggregated by median"),
        ],
    )
    def test_a_metric_that_cannot_be_maximised(self, tmp_path: Path, entry: str, reason: str) -> None:
        text = "\n".join(lm_eval_tasks.WRITE).replace("aggregation: mean\n    higher_is_better: true", entry)
        lm_eval_tasks.put(tmp_path, "odd", lm_eval_tasks.rows(3, 1), text.splitlines())
        assert "odd has no metric to maximise: exact_match " + reason in refused(tmp_path, "odd")
        assert reason in refused(tmp_path, "odd", metric="exact_match")


class TestItems:
    def test_columns(self, folder: Path) -> None:
        assert "did you mean topic?" in refused(folder, "pick", category="column:topik")
        assert "its columns are question, choices" in refused(folder, "pick", group="column:zz")
        assert "which names no category" in refused(folder, "pick", category="column:choices")

    def test_samples_and_limit(self, folder: Path) -> None:
        assert "pick has documents 0 to 3, not 9" in refused(folder, "pick", samples={"pick": [9]})
        assert "no documents are left" in refused(folder, "pick", samples={})
        assert "evaluator.samples: task=pyck" in refused(folder, "pick", samples={"pyck": [1]})

    def test_items_of_another_benchmark(self, folder: Path) -> None:
        own = HarnessEvaluator(tasks=["pick"], include_path=str(folder))
        with pytest.raises(UserError, match=r"item x is no document of evaluator\.tasks"):
            own.evaluate(SimpleNamespace(), [Item(id="x", category="c", prompt="p", answer="a")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "topic"}, "must be task, entry or column:NAME"),
        ({"group": "column"}, "must be item, doc or column:NAME"),
        ({"limit": 0}, r"\(limit="),
        ({"limit": 2, "samples": {}}, "evaluator.samples names"),
        ({"batch_size": 0}, r"\(batch_size="),
        ({"batch_size": "many"}, r"\(batch_size="),
        ({"batch_size": "autos"}, r"\(batch_size="),
        ({"num_fewshot": -1}, r"\(num_fewshot="),
        ({"batch_size": "auto", "replicates": 2}, "needs a number"),
        ({"softmax_dtype": "int4"}, r"\(softmax_dtype="),
        ({"tools": "functions"}, "needs evaluator.apply_chat_template=true"),
        ({"device": "tpu"}, r"\(device="),
        ({"threads": 0}, r"\(threads="),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HarnessEvaluator(tasks=["pick"], **change)


class TestRunning:
    @pytest.fixture(scope="class")
    @classmethod
    def served(cls, family: Path) -> SimpleNamespace:
        own = HarnessEvaluator(tasks=["pick"], device="cpu")
        return SimpleNamespace(
            module=load_module(family / "ant", own.module_settings()),
            tokenizer=load_tokenizer(family / "ant"),
            ends=(),
        )

    def test_a_tokenizer_without_a_chat_template(self, folder: Path, served: Any) -> None:
        own = HarnessEvaluator(tasks=["pick"], include_path=str(folder), device="cpu", apply_chat_template=True)
        with pytest.raises(UserError, match=r"set evaluator\.apply_chat_template=false, or give it one"):
            own.evaluate(served, own.benchmark.items())

    def test_an_answer_longer_than_the_context(self, folder: Path, served: Any) -> None:
        own = HarnessEvaluator(tasks=["write"], include_path=str(folder), device="cpu")
        long = replace(own, gen_kwargs={"max_gen_toks": 500})
        with pytest.raises(UserError, match=r"set evaluator\.gen_kwargs=\{max_gen_toks: N\}"):
            long.evaluate(served, long.benchmark.items())

    def test_a_choice_longer_than_the_context(self, folder: Path, served: Any) -> None:
        own = HarnessEvaluator(tasks=["pick"], include_path=str(folder), device="cpu", max_length=3)
        with pytest.raises(UserError, match="is a choice empty, or longer than the model's context"):
            own.evaluate(served, own.benchmark.items())

    @pytest.mark.parametrize("task", ["pick", "write"])
    def test_prompts_that_are_cut_are_told_of_once(
        self, folder: Path, served: Any, task: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = HarnessEvaluator(tasks=[task], include_path=str(folder), device="cpu", max_length=16)
        for _ in range(2):
            own.evaluate(served, own.benchmark.items())
        assert [r.getMessage() for r in caplog.records if "are cut on the left" in r.getMessage()] == [
            f"some prompts of {task} are longer than the model's context of 16 tokens and are cut on the left"
        ]

    def test_a_batch_size_that_is_found_prints_nothing(
        self, folder: Path, served: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        own = HarnessEvaluator(tasks=["pick", "write"], include_path=str(folder), device="cpu")
        found = replace(own, batch_size="auto", max_batch_size=4).evaluate(served, own.benchmark.items())
        assert [r.score for r in found] == [r.score for r in own.evaluate(served, own.benchmark.items())]
        said = capfd.readouterr()
        assert said.out + said.err == ""

    def test_a_task_whose_own_code_fails(self, tmp_path: Path, served: Any) -> None:
        (tmp_path / "utils.py").write_text("def judge(doc, results):\n    raise KeyError('no such thing')\n")
        lines = [*lm_eval_tasks.WRITE, "process_results: !function utils.judge"]
        lm_eval_tasks.put(tmp_path, "fails", lm_eval_tasks.rows(3, 1), lines)
        own = HarnessEvaluator(tasks=["fails"], include_path=str(tmp_path), device="cpu", allow_code=True)
        with pytest.raises(UserError, match="evaluator=lm_eval stopped in fails: KeyError: 'no such thing'"):
            own.evaluate(served, own.benchmark.items())

    @pytest.mark.parametrize(
        ("result", "message"),
        [("{'other': 1.0}", "no value for metric exact_match"), ("{'exact_match': float('nan')}", "not a number")],
    )
    def test_a_metric_without_a_value(self, tmp_path: Path, served: Any, result: str, message: str) -> None:
        (tmp_path / "utils.py").write_text(f"def judge(doc, results):\n    return {result}\n")
        lines = [*lm_eval_tasks.WRITE, "process_results: !function utils.judge"]
        lm_eval_tasks.put(tmp_path, "half", lm_eval_tasks.rows(3, 1), lines)
        own = HarnessEvaluator(tasks=["half"], include_path=str(tmp_path), device="cpu", allow_code=True)
        with pytest.raises(UserError, match=rf"item half/0.*{message}.*evaluator\.metric"):
            own.evaluate(served, own.benchmark.items())


class TestCommandLine:
    def test_unknown_tasks_and_keys(self, souping: Cli, family: Path, folder: Path) -> None:
        own = ["evaluator=lm_eval", f"evaluator.include_path={folder}", pool_of(family)[0]]
        souping(*own, "evaluator.include_defaults=false", "evaluator.tasks=[pik]").refused("did you mean pick")
        souping(*own).refused("evaluator.tasks")
        souping(*own, "evaluator.tasks=[pick]", "evaluator.num_fewshots=2").refused("num_fewshot")
        souping(*own, "evaluator.tasks=[pick]", "evaluator.limit=many").refused("evaluator.limit", "a number")

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("souping.evaluate.lm_eval.errors.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"needs lm_eval: .*pip install .*\[lm_eval\]"):
            require()


def test_a_changed_helper_file_makes_new_items(tmp_path: Path) -> None:
    """The functions of a task's own are in its items' fingerprints, with the file that they stand in."""

    def prints(factor: str) -> str:
        (tmp_path / "utils.py").write_text(f"def judge(doc, results):\n    return {{'exact_match': {factor}}}\n")
        lines = [*lm_eval_tasks.WRITE, "process_results: !function utils.judge"]
        lm_eval_tasks.put(tmp_path, "own", lm_eval_tasks.rows(3, 1), lines)
        own = HarnessEvaluator(tasks=["own"], include_path=str(tmp_path), device="cpu", allow_code=True)
        return own.benchmark.items()[0].fingerprint

    assert prints("1.0") == prints("1.0") != prints("0.5")
    assert json.dumps(prints("1.0"))
