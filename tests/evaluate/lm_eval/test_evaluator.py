"""evaluator=lm_eval against the real harness: same prompts, same answers, item by item, on the live module."""

from __future__ import annotations

import inspect
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Record, UserError
from souping.evaluate.benchmark import assign
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.lm_eval import HarnessEvaluator
from souping.evaluate.lm_eval.model import HFLM_KEYS
from tests.conftest import Cli
from tests.support import lm_eval_tasks

pytest.importorskip("lm_eval")

ALL = ["picks", "shots", "write", "translate"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> HarnessEvaluator:
    return HarnessEvaluator(tasks=ALL, include_path=str(folder), device="cpu", threads=1)  # type: ignore[arg-type]


def by_hand(served: SimpleNamespace, folder: Path, tasks: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """What `simple_evaluate` says: {item id: sample} of each task's first filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=served.module, tokenizer=served.tokenizer, batch_size=16)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **settings)
    assert found is not None
    return {f"{name}/{s['doc_id']}": s for name, samples in found["samples"].items() for s in samples}


def scores(records: Sequence[Record]) -> dict[str, float]:
    return {r.item: r.score for r in records}


class TestSameAsByHand:
    """A complete run of the harness gives what ours gives, item by item."""

    def test_every_item_has_the_harness_own_answer(
        self, evaluator: HarnessEvaluator, served: SimpleNamespace, folder: Path
    ) -> None:
        items = evaluator.benchmark.items()
        records = evaluator.evaluate(served, items)
        samples = by_hand(served, folder, ALL)
        assert [r.item for r in records] == [i.id for i in items]
        assert set(samples) == {r.item for r in records}
        for record in records:
            sample = samples[record.item]
            if record.item.startswith(("pick", "shots")):
                assert record.score == sample["acc"]
                theirs = [likelihood for ((likelihood, _),) in sample["resps"]]
                assert json.loads(record.output) == pytest.approx(theirs, abs=2e-4)
            else:
                assert record.output == sample["resps"][0][0]
        assert 0 < sum(r.score for r in records if r.item.startswith("pick")) < 24

    def test_a_part_of_the_documents_gets_the_prompts_of_the_whole(
        self, evaluator: HarnessEvaluator, served: SimpleNamespace
    ) -> None:
        """Few-shot examples are drawn once for all documents, so an item's score is its own."""
        items = [i for i in evaluator.benchmark.items() if i.id.startswith("shots")]
        whole = {r.item: r.output for r in evaluator.evaluate(served, items)}
        part = evaluator.evaluate(served, [items[7], items[3]])
        assert [r.item for r in part] == ["shots/7", "shots/3"]
        for record in part:
            assert json.loads(record.output) == pytest.approx(json.loads(whole[record.item]), abs=2e-4)

    def test_the_shots_that_are_asked_for_count(
        self, folder: Path, evaluator: HarnessEvaluator, served: SimpleNamespace
    ) -> None:
        other = replace(evaluator, tasks=["shots"], num_fewshot=1, fewshot_random_seed=7)
        ours = other.evaluate(served, other.benchmark.items())
        theirs = by_hand(served, folder, ["shots"], num_fewshot=1, fewshot_random_seed=7)
        for record in ours:
            wanted = [likelihood for ((likelihood, _),) in theirs[record.item]["resps"]]
            assert json.loads(record.output) == pytest.approx(wanted, abs=2e-4)

    def test_chat_and_system_prompt_go_through_the_template(
        self, folder: Path, evaluator: HarnessEvaluator, served: SimpleNamespace
    ) -> None:
        chat = {"apply_chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": True}
        served.tokenizer.chat_template = TEMPLATE
        try:
            other = replace(evaluator, tasks=["shots"], **chat)  # type: ignore[arg-type]
            ours = other.evaluate(served, other.benchmark.items())
            theirs = by_hand(served, folder, ["shots"], **chat)
        finally:
            served.tokenizer.chat_template = None
        assert theirs["shots/0"]["arguments"][0][0].startswith("<system>Be brief.<user>")
        for record in ours:
            wanted = [likelihood for ((likelihood, _),) in theirs[record.item]["resps"]]
            assert json.loads(record.output) == pytest.approx(wanted, abs=2e-4)


def test_new_weights_in_the_same_module_change_the_answers(
    evaluator: HarnessEvaluator, family: Path, folder: Path
) -> None:
    """No answer of the old weights survives: neither in the logits' cache nor anywhere else."""
    import torch

    module = load_module(family / "ant", evaluator.module_settings())
    live = SimpleNamespace(module=module, tokenizer=load_tokenizer(family / "ant"), folder=None, eos_token_ids=())
    items = evaluator.benchmark.items()
    before = evaluator.evaluate(live, items)
    other = load_module(family / "dog", evaluator.module_settings())
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)
    after = evaluator.evaluate(live, items)
    fresh = SimpleNamespace(module=other, tokenizer=live.tokenizer, folder=None, eos_token_ids=())
    assert [r.output for r in after] != [r.output for r in before]
    assert after == replace(evaluator).evaluate(fresh, items)


class TestItems:
    """Ids, categories, groups, and what of a task is in an item's fingerprint."""

    def test_groups_tags_and_patterns_become_their_leaf_tasks(self, folder: Path) -> None:
        for spec in ("picks", "chosen", "pick*"):
            own = HarnessEvaluator(tasks=[spec], include_path=str(folder))
            assert {"pick", "pick2"} <= set(own.loaded)
        own = HarnessEvaluator(
            tasks=[str(folder / "write.yaml"), {"task": "pick", "num_fewshot": 0}], include_path=str(folder)
        )
        assert [one.entry for one in own.loaded.values()] == ["write", "pick"]

    @pytest.mark.parametrize(
        ("settings", "category", "group"),
        [
            ({}, "pick2", "pick2/3"),
            ({"category": "entry", "group": "doc"}, "picks", "doc 3"),
            ({"category": "column:topic", "group": "column:passage"}, "stew", "1"),
        ],
    )
    def test_categories_and_groups(
        self, evaluator: HarnessEvaluator, settings: Mapping[str, Any], category: str, group: str
    ) -> None:
        plain = {i.id: i for i in evaluator.benchmark.items()}["pick2/3"]
        own = replace(evaluator, **settings)  # type: ignore[arg-type]
        item = {i.id: i for i in own.benchmark.items()}["pick2/3"]
        assert (item.category, item.group) == (category, group)
        assert item.fingerprint == plain.fingerprint
        assert own.fingerprint == evaluator.fingerprint

    def test_a_book_that_groups_questions_goes_by_its_hash(self, tmp_path: Path) -> None:
        data = [{**row, "book": f"{row['passage']} " * 100} for row in lm_eval_tasks.rows(6, 1)]
        lm_eval_tasks.put(tmp_path, "read", data, lm_eval_tasks.CHOICE)
        own = HarnessEvaluator(tasks=["read"], include_path=str(tmp_path), group="column:book")
        groups = [i.group for i in own.benchmark.items()]
        assert [groups.index(g) for g in groups] == [0, 0, 2, 2, 4, 4]
        assert {len(g) for g in groups} == {16}
        with pytest.raises(UserError, match="there, no category"):
            replace(own, category="column:book").benchmark.items()

    def test_limit_and_samples_choose_documents(self, evaluator: HarnessEvaluator, tmp_path: Path) -> None:
        first = replace(evaluator, tasks=["pick", "write"], limit=0.25)
        assert [i.id for i in first.benchmark.items()] == [f"{t}/{n}" for t in ("pick", "write") for n in range(3)]
        some = replace(evaluator, tasks=["pick", "write"], samples={"pick": [5, 2]})
        assert [i.id for i in some.benchmark.items()] == ["pick/2", "pick/5"]
        data = [{**row, "kind": "abcde"[n // 4]} for n, row in enumerate(lm_eval_tasks.rows(20, 1))]
        lm_eval_tasks.put(tmp_path, "read", data, lm_eval_tasks.CHOICE)
        own = HarnessEvaluator(tasks=["read"], include_path=str(tmp_path), category="column:kind", limit=7)
        assert [item.category for item in own.benchmark.items()] == list("aabbcde")  # some of every category

    def test_what_changes_an_answer_makes_a_new_item(self, folder: Path, tmp_path: Path) -> None:
        def prints(**settings: Any) -> dict[str, str]:
            own = HarnessEvaluator(tasks=["pick", "shots", "write"], include_path=str(tmp_path), **settings)
            return {i.id: i.fingerprint for i in own.benchmark.items()}

        lm_eval_tasks.make(tmp_path)
        base = HarnessEvaluator(tasks=["pick", "shots", "write"], include_path=str(folder))
        before = prints()
        assert before == {i.id: i.fingerprint for i in base.benchmark.items()}  # wherever the data lies
        for settings, changed in (
            ({"metric": {"pick": "acc_norm"}}, {"pick"}),
            ({"gen_kwargs": {"max_gen_toks": 3}}, {"write"}),
            ({"num_fewshot": 1}, {"pick", "shots", "write"}),
            ({"fewshot_random_seed": 5}, {"shots"}),
        ):
            now = prints(**settings)
            assert {name.split("/")[0] for name in now if now[name] != before[name]} == changed, settings

    def test_a_changed_document_or_version_is_a_new_item(self, tmp_path: Path) -> None:
        lm_eval_tasks.make(tmp_path)
        own = HarnessEvaluator(tasks=["pick"], include_path=str(tmp_path))
        before = {i.id: i.fingerprint for i in own.benchmark.items()}
        data = json.loads((tmp_path / "pick.json").read_text())
        data[4]["answer"] = (data[4]["answer"] + 1) % 4
        (tmp_path / "pick.json").write_text(json.dumps(data))
        assert [i.id for i in replace(own).benchmark.items() if i.fingerprint != before[i.id]] == ["pick/4"]
        (tmp_path / "pick.yaml").write_text((tmp_path / "pick.yaml").read_text().replace("1.0", "1.1"))
        assert not {i.fingerprint for i in replace(own).benchmark.items()} & set(before.values())

    def test_settings_decide_the_fingerprint(self, evaluator: HarnessEvaluator) -> None:
        assert evaluator.fingerprint == replace(evaluator).fingerprint
        assert evaluator.settings["lm_eval"]
        for change in ({"batch_size": 3}, {"dtype": "bfloat16"}, {"system_instruction": "x"}):
            assert replace(evaluator, **change).fingerprint != evaluator.fingerprint  # type: ignore[arg-type]
        for change in ({"tasks": ["pick"]}, {"limit": 2}, {"metric": "acc"}, {"name": "x"}):
            assert replace(evaluator, **change).fingerprint == evaluator.fingerprint  # type: ignore[arg-type]


def test_what_is_passed_on_to_the_harness_is_its_own() -> None:
    from lm_eval.models.huggingface import HFLM

    assert set(HFLM_KEYS) <= set(inspect.signature(HFLM.__init__).parameters)


@pytest.mark.slow
def test_a_corpus_metric_from_select_to_report(souping: Cli, family: Path, tmp_path: Path) -> None:
    """Scores are sacrebleu's of the answers in the store; a second run evaluates nothing and reports the same."""
    import sacrebleu

    tasks = lm_eval_tasks.from_family(tmp_path / "tasks", family / "items.jsonl")
    docs = {f"red_green_blue/{n}": d for n, d in enumerate(json.loads((tasks / "red_green_blue.json").read_text()))}
    command = [
        "evaluator=lm_eval",
        "evaluator.tasks=[red_green_blue]",
        f"evaluator.include_path={tasks}",
        "evaluator.metric=chrf",
        "evaluator.category=column:category",
        "evaluator.group=column:group",
        "evaluator.threads=1",
        f"pool.candidates=[{','.join(str(family / n) for n in ('ant', 'bee', 'cat', 'dog'))}]",
        "optimiser.trials=3",
        "selector.threshold=0.99",
        "name=chrf",
        "analysis=[]",
    ]
    for _ in range(2):
        done = souping(*command)
        assert done.code == 0, done.err
        assert "lm_eval" not in done.err.lower().replace(str(tmp_path), "")
    paths = sorted((tmp_path / "outputs" / "chrf").glob("*/report.json"))
    report, again = (json.loads(path.read_text()) for path in paths)
    assert [r["cost"]["evaluated_items"] > 0 for r in (report, again)] == [True, False]
    assert report["rows"] == again["rows"]
    row = next(r for r in report["rows"] if r["kind"] == "soup")
    assert set(row["scores"]) == {"red", "green", "blue"}
    with sqlite3.connect(tmp_path / "outputs" / "store.sqlite") as db:
        found = db.execute(
            "SELECT items.category, items.name, output FROM scores JOIN items ON items.id = item "
            "JOIN soups ON soups.id = soup WHERE json_extract(soups.recipe, '$.id') = ?",
            (row["recipe_id"],),
        ).fetchall()
    for category, score in row["scores"].items():
        own = [
            (docs[name]["answer"], text)
            for kind, name, text in found
            if kind == category and assign(docs[name]["group"]) == "report"
        ]
        assert len(own) == score["n"]
        theirs = sacrebleu.corpus_chrf([text for _, text in own], [[answer for answer, _ in own]]).score / 100
        assert score["mean"] == pytest.approx(theirs, abs=1e-9)
        assert score["low"] < score["mean"] < score["high"]
