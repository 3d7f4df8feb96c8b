"""Answers that lm_eval logged are taken into the store: same documents and prompts, scored again by the task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from souping.answers.evaluation import EvaluatorWorker
from souping.core.protocols import evaluator_fingerprint
from souping.core.types import Recipe, Request, UserError
from souping.evaluate.lm_eval import HarnessEvaluator
from tests.support import lm_eval_tasks
from tests.support.models import HeldModel, own_items

lm_eval = pytest.importorskip("lm_eval")
TASKS = ["pick", "shots", "write", "translate", "roll"]
ANT = Recipe(ingredients=("ant",), fingerprints=("f",), weights=(1.0,), dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"), 6)


@pytest.fixture(scope="module")
def logged(ant: tuple[Any, Any], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that lm_eval wrote."""
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    out = tmp_path_factory.mktemp("out")
    tracker = EvaluationTracker(output_path=str(out))
    model = HFLM(pretrained=ant[0], tokenizer=ant[1], batch_size=16)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=TASKS,
        task_manager=manager,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return out


@pytest.fixture
def evaluator(folder: Path, logged: Path) -> HarnessEvaluator:
    tasks: list[Any] = list(TASKS)
    return HarnessEvaluator(
        tasks=tasks, include_path=str(folder), device="cpu", threads=1, logs={"ant": str(logged)}
    )


def rewrite(logged: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a log, each of whose samples went through `change`."""
    for path in logged.rglob("*"):
        if not path.is_file():
            continue
        text = path.read_text()
        if path.suffix == ".jsonl":
            samples = [json.loads(line) for line in text.splitlines()]
            for sample in samples:
                change(sample)
            text = "".join(json.dumps(sample) + "\n" for sample in samples)
        (copy / path.name).write_text(text)
    return copy


def counted(evaluator: HarnessEvaluator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that the model itself is asked."""
    from souping.evaluate.lm_eval.model import HarnessModel

    asked: list[str] = []
    for name in ("generate_until", "loglikelihood", "loglikelihood_rolling"):
        own = getattr(HarnessModel, name)

        def spy(self: Any, requests: Any, *rest: Any, own: Any = own, **more: Any) -> Any:
            asked.extend(f"{request.task_name}/{request.doc_id}" for request in requests)
            return own(self, requests, *rest, **more)

        monkeypatch.setattr(HarnessModel, name, spy)
    return asked


def test_records_are_those_of_the_model_and_it_is_not_asked(
    evaluator: HarnessEvaluator, served: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = own_items(evaluator)
    live = evaluator.evaluate(served, items)
    asked = counted(evaluator, monkeypatch)
    worker = EvaluatorWorker({"": (evaluator, lambda recipe: served)})
    found = worker.put(Request(number=0, recipe=ANT, items=items)).records
    assert asked == []
    assert (
        evaluator_fingerprint(evaluator.for_recipe(ANT))
        == evaluator_fingerprint(evaluator)
        == evaluator_fingerprint(replace(evaluator, logs=None))
    )
    for own, other in zip(found, live, strict=True):
        assert (own.item, own.output, own.outcome) == (other.item, other.output, other.outcome)
        assert own.score == pytest.approx(other.score)
        assert own.statistics == pytest.approx(other.statistics)
    soup = replace(ANT, ingredients=("ant", "bee"), fingerprints=("f", "g"), weights=(0.5, 0.5))
    worker.put(Request(number=1, recipe=soup, items=items[:1]))
    assert asked  # a soup has no log


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("pick", "doc_hash", "0"),
        ("write", "arguments", {"gen_args_0": {"arg_0": "another prompt", "arg_1": {}}}),
        ("write", "arguments", []),
    ],
)
def test_other_documents_and_prompts_are_evaluated(
    evaluator: HarnessEvaluator,
    served: HeldModel,
    logged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
    key: str,
    value: Any,
) -> None:
    def change(sample: dict[str, Any]) -> None:
        if (
            sample["doc_id"] == 2
            and key in sample
            and len(sample["resps"]) == (4 if task == "pick" else 1)
        ):
            sample[key] = value

    changed = replace(evaluator, logs={"ant": str(rewrite(logged, tmp_path, change))})
    items = [item for item in own_items(changed) if item.id.startswith(task)]
    asked = counted(changed, monkeypatch)
    changed.for_recipe(ANT).evaluate(served, items)
    assert set(asked) == {f"{task}/2"}
    assert caplog.text.count("evaluator.logs") == 1


def test_a_wrong_setting_is_found_before_any_work(
    evaluator: HarnessEvaluator, tmp_path: Path
) -> None:
    evaluator.prompts.check(["ant", "bee"])
    for logs, more, words in (
        ({"cat": "x"}, {}, "evaluator.logs"),
        ({"ant": str(tmp_path / "none")}, {}, "no such folder"),
        ({"ant": str(tmp_path)}, {}, "results_"),
        (evaluator.logs, {"repeats": 2}, "evaluator.repeats"),
    ):
        with pytest.raises(UserError, match=words):
            replace(evaluator, logs=logs, **more).prompts.check(["ant", "bee"])  # type: ignore[arg-type]
