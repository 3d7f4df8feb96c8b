"""What a user can get wrong with evaluator=lm_eval: the message names the key, the task or the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Item, UserError
from souping.evaluate.lm_eval.evaluator import HarnessEvaluator
from souping.evaluate.lm_eval.tasks import require
from tests.conftest import Cli, pool_of
from tests.support import lm_eval_tasks

pytest.importorskip("lm_eval")
ROWS = lm_eval_tasks.rows(3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks that are right, and some that are not."""
    folder = lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"), count=4)
    (folder / "broken.yaml").write_text("task: broken\nmetric_list: [\n")
    for name in ("lost", "bare"):
        lm_eval_tasks.put(folder, name, ROWS, lm_eval_tasks.CHOICE)
    (folder / "lost.json").unlink()
    (folder / "bare.json").write_text("")
    lm_eval_tasks.put(folder, "runs", ROWS, ["unsafe_code: true", *lm_eval_tasks.WRITE])
    lm_eval_tasks.put(folder, "sees", ROWS, ['doc_to_image: "{{text}}"', *lm_eval_tasks.WRITE])
    text = "\n".join(lm_eval_tasks.WRITE)
    for name, entry in (("less", ("true", "false")), ("middle", ("aggregation: mean", "aggregation: median"))):
        lm_eval_tasks.put(folder, name, ROWS, text.replace(*entry).splitlines())
    return folder


def refused(folder: Path, *tasks: Any, **settings: Any) -> str:
    own = HarnessEvaluator(tasks=list(tasks), include_path=str(folder), include_defaults=False, **settings)
    with pytest.raises(UserError) as caught:
        own.benchmark.items()
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 2, text
    assert all(len(line) < 400 for line in text.splitlines()), text
    return text


@pytest.mark.parametrize(
    ("tasks", "settings", "words"),
    [
        (["pickk"], {}, "pickk; did you mean pick"),
        (["zz*"], {}, "evaluator.tasks: no task matches zz*"),
        ([], {}, "evaluator.tasks is empty"),
        (["broken"], {}, "broken.yaml"),
        (["lost"], {}, "lost cannot be loaded"),
        (["bare"], {}, "bare has no documents"),
        ([{"task": "pick", "num_fewshto": 2}], {}, "num_fewshto"),
        (["picks", "pick"], {}, "pick is in picks and in pick"),
        (["runs"], {}, "evaluator.confirm_run_unsafe_code=true"),
        (["sees"], {}, "images or sound"),
        (["pick"], {"metric": "acc_nor"}, "did you mean acc_norm?"),
        (["pick"], {"filter": "strict"}, "task pick: evaluator.filter=strict"),
        (["pick"], {"metric": {"pik": "acc"}}, "evaluator.metric: task=pik"),
        (["less"], {}, "less has no metric to maximise: exact_match is better when lower"),
        (["middle"], {"metric": "exact_match"}, "is aggregated by median"),
        (["pick"], {"category": "column:topik"}, "did you mean topic?"),
        (["pick"], {"group": "column:zz"}, "its columns are question, choices"),
        (["pick"], {"category": "column:choices"}, "there, no category"),
        (["pick"], {"samples": {"pick": [9]}}, "pick has documents 0 to 3, not 9"),
        (["pick"], {"samples": {}}, "evaluator.samples"),
        (["pick"], {"samples": {"pyck": [1]}}, "evaluator.samples: task=pyck"),
    ],
)
def test_tasks_metrics_and_items(folder: Path, tasks: list[Any], settings: dict[str, Any], words: str) -> None:
    assert words in refused(folder, *tasks, **settings)


def test_folders(tmp_path: Path) -> None:
    assert f"evaluator.include_path={tmp_path / 'no'}" in refused(tmp_path / "no", "pick")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"category": "topic"}, "task, entry or column:NAME"),
        ({"limit": 2, "samples": {}}, "evaluator.samples names"),
        ({"batch_size": "autos"}, r"\(batch_size="),
        ({"batch_size": "auto", "replicates": 2}, "evaluator.replicates=2"),
        ({"temperature": 0.0, "samples": 2}, "evaluator.temperature above 0"),
        ({"aggregate": "best"}, r"\(aggregate=.*mean, pass"),
    ],
)
def test_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        HarnessEvaluator(tasks=["pick"], **change)


class TestRunning:
    def test_items_of_another_benchmark(self, folder: Path, served: Any) -> None:
        own = HarnessEvaluator(tasks=["pick"], include_path=str(folder))
        with pytest.raises(UserError, match=r"item x is no document of evaluator\.tasks"):
            own.evaluate(served, [Item(id="x", category="c", prompt="p", answer="a")])

    @pytest.mark.slow
    def test_a_batch_size_that_is_found_prints_nothing(
        self, folder: Path, served: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        own = HarnessEvaluator(tasks=["pick", "write"], include_path=str(folder), device="cpu")
        found = replace(own, batch_size="auto", max_batch_size=4).evaluate(served, own.benchmark.items())
        assert [r.score for r in found] == [r.score for r in own.evaluate(served, own.benchmark.items())]
        assert "".join(capfd.readouterr()) == ""

    @pytest.fixture
    def judged(self, tmp_path: Path) -> Callable[[str], HarnessEvaluator]:
        """A task with a judging function of its own, made anew with another body each time."""

        def judged(body: str) -> HarnessEvaluator:
            (tmp_path / "utils.py").write_text(f"def judge(doc, results):\n    {body}\n")
            lines = [*lm_eval_tasks.WRITE, "process_results: !function utils.judge"]
            lm_eval_tasks.put(tmp_path, "own", ROWS, lines)
            return HarnessEvaluator(tasks=["own"], include_path=str(tmp_path), device="cpu", allow_code=True)

        return judged

    @pytest.mark.parametrize(
        ("result", "words"),
        [("{'other': 1.0}", "no value for metric exact_match"), ("{'exact_match': float('nan')}", "not a number")],
    )
    def test_a_metric_without_a_value(self, judged: Any, served: Any, result: str, words: str) -> None:
        own = judged(f"return {result}")
        with pytest.raises(UserError, match=rf"item own/0.*{words}.*evaluator\.metric"):
            own.evaluate(served, own.benchmark.items())

    def test_a_changed_helper_file_makes_new_items(self, judged: Any) -> None:
        """The functions of a task's own are in its items' fingerprints, with the file that they stand in."""
        first, same, other = (
            judged(f"return {{'exact_match': {factor}}}").benchmark.items()[0].fingerprint for factor in (1, 1, 0)
        )
        assert first == same != other


def test_the_command_line_names_keys_tasks_and_the_library(souping: Cli, family: Path, folder: Path) -> None:
    own = ["evaluator=lm_eval", f"evaluator.include_path={folder}", "evaluator.include_defaults=false"]
    own += [pool_of(family)[0], "selector=all"]
    souping(*own, "evaluator.tasks=[pik]").refused("did you mean pick")
    souping(*own).refused("evaluator.tasks")
    souping(*own, "evaluator.tasks=[pick]", "evaluator.num_fewshots=2").refused("num_fewshot")
    done = souping(*own, "evaluator.tasks=[write]", "evaluator.gen_kwargs={max_gen_toks: 500}")
    assert done.code == 2, done.err
    assert "lm_eval" in done.err
    assert "max tokens to generate" in done.err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.evaluate.lm_eval.tasks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs lm_eval: .*pip install .*\[lm_eval\]"):
        require()
