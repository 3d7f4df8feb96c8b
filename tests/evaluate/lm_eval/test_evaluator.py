"""evaluator=lm_eval against the real harness: same prompts, same answers, each drawn by its own seed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from souping.core.protocols import evaluator_fingerprint
from souping.core.types import Record, UserError
from souping.evaluate.benchmark import EvaluatorBenchmark, assign
from souping.evaluate.lm_eval import HarnessEvaluator
from tests.conftest import Cli
from tests.support import lm_eval_tasks
from tests.support.live import live
from tests.support.models import HeldModel, own_items

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


def by_hand(
    served: HeldModel, folder: Path, tasks: Sequence[Any], **settings: Any
) -> dict[str, Any]:
    """What `simple_evaluate` says: {item id: sample} of each task's first filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=served.module, tokenizer=served.tokenizer, batch_size=16)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **settings
    )
    assert found is not None
    return {
        f"{name}/{s['doc_id']}": s for name, samples in found["samples"].items() for s in samples
    }


def scores(records: Sequence[Record]) -> dict[str, float]:
    return {r.item: r.score for r in records}


def likelihoods(samples: Mapping[str, Any], item: str) -> Any:
    return pytest.approx([likelihood for ((likelihood, _),) in samples[item]["resps"]], abs=2e-4)


def test_every_answer_is_the_harness_own(
    evaluator: HarnessEvaluator, served: HeldModel, folder: Path
) -> None:
    items = own_items(evaluator)
    records = evaluator.evaluate(served, items)
    samples = by_hand(served, folder, ALL)
    assert [r.item for r in records] == [i.id for i in items]
    assert set(samples) == {r.item for r in records}
    for record in records:
        sample = samples[record.item]
        if record.item.startswith(("pick", "shots")):
            assert record.score == sample["acc"]
            assert json.loads(record.output) == likelihoods(samples, record.item)
        else:
            assert record.output == sample["resps"][0][0]
    assert 0 < sum(r.score for r in records if r.item.startswith("pick")) < 24


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(
            {"num_fewshot": 1, "args": {"fewshot_random_seed": 7}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {
                "apply_chat_template": True,
                "args": {"system_instruction": "Be brief.", "fewshot_as_multiturn": True},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["two shots", "one shot", "chat"],
)
def test_prompts_are_the_harness_own_even_of_a_part_of_the_documents(
    folder: Path,
    evaluator: HarnessEvaluator,
    served: HeldModel,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        served.tokenizer, "chat_template", TEMPLATE if "apply_chat_template" in settings else None
    )
    own = replace(evaluator, tasks=["shots"], **settings)
    keys = {name: value for name, value in settings.items() if name != "args"}
    samples = by_hand(served, folder, ["shots"], **keys, **settings.get("args", {}))
    items = own_items(own)
    for asked in (items, [items[7], items[3]]):
        records = own.evaluate(served, asked)
        assert [record.item for record in records] == [item.id for item in asked]
        assert all(
            json.loads(record.output) == likelihoods(samples, record.item) for record in records
        )
        for record in records:
            sent = [context + choice for context, choice in samples[record.item]["arguments"]]
            assert record.prompt == "\n".join(dict.fromkeys(sent))


def test_new_weights_in_the_same_module_change_the_answers(
    evaluator: HarnessEvaluator, family: Path
) -> None:
    import torch

    settings = evaluator.hosting.module_settings()
    mine = live(family / "ant", settings)
    other = live(family / "dog", settings)
    items = own_items(evaluator)
    before = evaluator.evaluate(mine, items)
    with torch.no_grad():
        for own, theirs in zip(mine.module.parameters(), other.module.parameters(), strict=True):
            own.copy_(theirs)
    after = evaluator.evaluate(mine, items)
    assert [r.output for r in after] != [r.output for r in before]
    assert after == replace(evaluator).evaluate(other, items)


@pytest.mark.parametrize(
    ("settings", "category", "group"),
    [
        ({}, "pick2", "pick2/3"),
        ({"category": "entry", "group": "doc"}, "picks", "doc 3"),
        ({"category": "column:topic", "group": "column:passage"}, "stew", "1"),
    ],
)
def test_category_and_group_are_set_without_changing_the_item(
    evaluator: HarnessEvaluator, settings: dict[str, Any], category: str, group: str
) -> None:
    plain = {i.id: i for i in own_items(evaluator)}["pick2/3"]
    own = replace(evaluator, **settings)  # type: ignore[arg-type]
    item = {i.id: i for i in own_items(own)}["pick2/3"]
    assert (item.category, item.group) == (category, group)
    assert item.fingerprint == plain.fingerprint
    assert evaluator_fingerprint(own) == evaluator_fingerprint(evaluator)


def test_a_benchmark_chooses_and_names_the_documents(evaluator: HarnessEvaluator) -> None:
    choice = EvaluatorBenchmark(name="mine", exclude=["write"], limit=3)
    chosen = choice.brought_by(replace(evaluator, tasks=["pick", "write", "shots"]).prompts)
    assert [item.id for item in chosen.items()] == [
        f"{task}/{number}" for task in ("pick", "shots") for number in range(3)
    ]
    assert chosen.label == "mine"
    assert EvaluatorBenchmark().brought_by(evaluator.prompts).label == "lm_eval"


def test_a_setting_that_changes_an_answer_makes_a_new_item(folder: Path, tmp_path: Path) -> None:
    def prints(**settings: Any) -> dict[str, str]:
        own = HarnessEvaluator(
            tasks=["pick", "shots", "write"], include_path=str(tmp_path), **settings
        )
        return {i.id: i.fingerprint for i in own_items(own)}

    lm_eval_tasks.make(tmp_path)
    base = HarnessEvaluator(tasks=["pick", "shots", "write"], include_path=str(folder))
    before = prints()
    assert before == {i.id: i.fingerprint for i in own_items(base)}  # wherever the data lies
    for settings, changed in (
        ({"metric": {"pick": "acc_norm"}}, {"pick"}),
        ({"gen_kwargs": {"max_gen_toks": 3}}, {"write"}),
        ({"num_fewshot": 1}, {"pick", "shots", "write"}),
        ({"args": {"fewshot_random_seed": 5}}, {"shots"}),
    ):
        now = prints(**settings)
        assert {name.split("/")[0] for name in now if now[name] != before[name]} == changed, (
            settings
        )
    data = json.loads((tmp_path / "pick.json").read_text())
    data[4]["answer"] = (data[4]["answer"] + 1) % 4
    (tmp_path / "pick.json").write_text(json.dumps(data))
    now = prints()
    assert [name for name in now if now[name] != before[name]] == ["pick/4"]
    (tmp_path / "pick.yaml").write_text((tmp_path / "pick.yaml").read_text().replace("1.0", "1.1"))
    now = prints()
    assert {name.split("/")[0] for name in now if now[name] != before[name]} == {"pick"}


@pytest.mark.slow
def test_a_corpus_metric_from_select_to_report(souping: Cli, family: Path, tmp_path: Path) -> None:
    import sacrebleu

    tasks = lm_eval_tasks.from_family(tmp_path / "tasks", family / "items.jsonl")
    docs = {
        f"red_green_blue/{n}": d
        for n, d in enumerate(json.loads((tasks / "red_green_blue.json").read_text()))
    }
    command = [
        "evaluator=lm_eval",
        "evaluator.tasks=[red_green_blue]",
        f"evaluator.include_path={tasks}",
        "evaluator.metric=chrf",
        "evaluator.category=column:category",
        "evaluator.group=column:group",
        "evaluator.threads=1",
        f"pool.candidates=[{','.join(str(family / n) for n in ('ant', 'bee', 'cat', 'dog'))}]",
        "optimiser.max_trials=3",
        "selector.threshold=0.99",
        "name=chrf",
        "analysis=[]",
    ]
    for _ in range(2):
        done = souping(*command)
        assert done.code == 0, done.err
        assert "lm_eval" not in done.err.lower().replace(str(tmp_path), "")
    paths = sorted((tmp_path / "outputs" / "chrf").glob("*/report.json"))
    assert len(paths) == 2
    report = json.loads(paths[0].read_text())
    again = json.loads(paths[1].read_text())
    assert report["cost"]["evaluated_items"] > 0
    assert again["cost"]["evaluated_items"] == 0
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
            if kind == category and assign(docs[name]["group"]) == "test"
        ]
        assert len(own) == score["n"]
        theirs = (
            sacrebleu.corpus_chrf([text for _, text in own], [[answer for answer, _ in own]]).score
            / 100
        )
        assert score["mean"] == pytest.approx(theirs, abs=1e-9)
        assert score["low"] < score["mean"] < score["high"]


@pytest.fixture(scope="module")
def free(folder: Path) -> HarnessEvaluator:
    lines = [*lm_eval_tasks.WRITE[:4], "  until: []", "  max_gen_toks: 12"]
    for name, more in (("free", []), ("dice", ["  do_sample: true", "  temperature: 1.5"])):
        lm_eval_tasks.put(
            folder, name, lm_eval_tasks.rows(8, 8), [*lines, *more, *lm_eval_tasks.WRITE[6:]]
        )
    return HarnessEvaluator(tasks=["free"], include_path=str(folder), device="cpu", threads=1)


def ask(
    own: HarnessEvaluator, served: HeldModel, repeat: int = 0, only: slice = slice(None)
) -> list[Record]:
    return own.evaluate(served, own_items(own)[only], repeat)


def texts(records: Sequence[Record]) -> list[str]:
    return [record.output for record in records]


def test_answers_end_at_any_end_token_and_say_so(free: HarnessEvaluator, served: HeldModel) -> None:
    whole = ask(free, served)
    assert {record.outcome for record in whole} >= {"truncated"}
    long = next(record for record in whole if record.outcome == "truncated")
    assert len(long.tokens) == 12
    end = long.tokens[4]
    served.eos_token_ids = (end, 2)
    cut = {record.item: record for record in ask(free, served)}
    for record in whole:
        if end in record.tokens:
            own = cut[record.item]
            assert own.tokens == record.tokens[: record.tokens.index(end) + 1]
            assert own.outcome == "finished"
            assert record.output.startswith(own.output)


def test_a_stop_text_ends_a_row_and_no_other(free: HarnessEvaluator, served: HeldModel) -> None:
    whole = ask(free, served)
    letter = whole[0].output[3]
    stopped = ask(replace(free, gen_kwargs={"until": [letter]}), served)
    for long, short in zip(whole, stopped, strict=True):
        assert short.output == long.output.split(letter)[0]
        assert short.tokens == long.tokens[: len(short.tokens)]
        assert (short.outcome == "finished") == (
            letter in long.output or long.outcome == "finished"
        )
    assert len({len(record.tokens) for record in stopped}) > 1


def test_prompts_are_counted_and_those_that_are_cut_are_truncated(
    free: HarnessEvaluator, served: HeldModel
) -> None:
    whole = ask(free, served)
    lengths = [len(served.tokenizer(str(item.prompt))["input_ids"]) for item in own_items(free)]
    assert [record.prompt_tokens for record in whole] == lengths
    assert len({record.prompt_key for record in whole}) == len(whole)
    assert len({free.scoring.scorer_digest(item) for item in own_items(free)}) == 1
    # With its 12 new tokens the longest prompt is one token too long.
    limit = max(lengths) + 11
    cut = ask(replace(free, args={"max_length": limit}), served)
    reason = f"the prompt was cut on the left to fit the context of {limit} tokens"
    assert [r.reason for r in cut] == [reason if n == max(lengths) else "" for n in lengths]
    assert all(r.outcome == "truncated" for r in cut if r.reason)
    choices = ask(replace(free, tasks=["pick"], args={"max_length": 16}), served)
    assert {r.outcome for r in choices if r.reason} == {"truncated"}
    assert {r.outcome for r in ask(replace(free, tasks=["pick"]), served)} == {"finished"}


@pytest.fixture
def drawn(free: HarnessEvaluator) -> HarnessEvaluator:
    return replace(free, gen_kwargs={"do_sample": True, "temperature": 1.5}, repeats=3)


def test_an_answer_is_its_own(
    drawn: HarnessEvaluator, free: HarnessEvaluator, served: HeldModel
) -> None:
    assert drawn.sampling.answers_per_item == 3
    first = ask(drawn, served)
    second = ask(drawn, served, 1)
    assert [record.repeat for record in second] == [1] * 8
    assert texts(first) != texts(second)
    assert texts(ask(drawn, served)) == texts(first)
    assert texts(ask(replace(drawn, batch_size=3), served)) == texts(first)
    assert texts(ask(drawn, served, 1, slice(2, 5))) == texts(second)[2:5]
    assert texts(ask(replace(drawn, seed=1), served)) != texts(first)
    for greedy in ({"top_k": 1}, {"top_p": 1e-6}):
        likeliest = replace(drawn, gen_kwargs={**(drawn.gen_kwargs or {}), **greedy})
        assert texts(ask(likeliest, served)) == texts(ask(free, served))


def test_greedy_answers_are_repeated_in_other_batches(
    free: HarnessEvaluator, drawn: HarnessEvaluator
) -> None:
    items = own_items(free)
    small = replace(free, repeats=2, batch_size=1)
    assert [len(batch) for batch in small.batches(items, repeat=0)] == [8]
    assert small.batches(items, repeat=1) == replace(free, batch_size=2).batches(items, repeat=0)
    assert replace(drawn, batch_size=4).batches(items, repeat=1) == drawn.batches(items, repeat=0)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"max_lenght": 9}, "max_lenght"),
        ({"verbosity": "DEBUG"}, "verbosity"),
        ({"kwargs": {}}, "kwargs"),
        ({"device": "cuda"}, "device"),
        ({"numpy_random_seed": -1}, "evaluator.args"),
    ],
)
def test_an_argument_that_nothing_takes_is_refused(
    free: HarnessEvaluator, args: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match=r"^evaluator\.args") as caught:
        _ = replace(free, args=args).loaded
    assert name in str(caught.value)


def test_an_argument_that_fits_twice_is_refused(
    free: HarnessEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models import huggingface

    def model(pretrained: str, metadata: Any = None) -> None: ...

    monkeypatch.setattr(huggingface, "HFLM", model)
    with pytest.raises(UserError, match=r"^evaluator\.args\.metadata"):
        _ = replace(free, args={"metadata": {}}).loaded


def test_a_value_that_the_model_cannot_use_is_refused(
    free: HarnessEvaluator, served: HeldModel
) -> None:
    with pytest.raises(UserError, match=r"^evaluator\.args"):
        ask(replace(free, args={"softmax_dtype": "float3"}), served)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("dice", {"gen_kwargs": {"num_beams": 2}}, "dice: .*num_beams=2"),
        (
            "free",
            {"gen_kwargs": {"custom_generate": "somebody/code"}},
            "custom_generate is not one of",
        ),
    ],
)
def test_a_task_that_cannot_be_evaluated_here_is_refused(
    free: HarnessEvaluator, task: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        own_items(replace(free, tasks=[task], **settings))
