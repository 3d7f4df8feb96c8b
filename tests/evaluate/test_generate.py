"""evaluator=local: what greedy generation with transformers adds to the conformance of evaluators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Item, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.engines.transformers import left_by, load_module, load_tokenizer, room
from souping.evaluate.generate import LocalEvaluator
from tests.support.live import live

LOCAL = LocalEvaluator(max_new_tokens=4, batch_size=16, threads=1, device="cpu")


@pytest.fixture(scope="module")
def served(family: Path) -> SimpleNamespace:
    return live(family / "ant", LOCAL.module_settings())


@pytest.fixture(scope="module")
def items(family: Path) -> tuple[Item, ...]:
    return Benchmark(path=str(family / "items.jsonl")).items()[:40]


def test_the_default_limit_is_1024_or_what_the_context_leaves() -> None:
    assert room([1] * 10, None, None) == room([1] * 10, None, 4096) == (1024, "")
    assert room([1] * 100, None, 612) == room([1] * 100, 600, 612) == (512, "")
    assert room([1] * 10, None, 10)[0] == 0


def test_settings_decide_the_fingerprint() -> None:
    changes = {"batch_size": 3, "max_new_tokens": 9, "dtype": "float16", "threads": 2, "workers": 2, "stop": ["x"]}
    changed = [replace(LOCAL, **{key: value}) for key, value in changes.items()]  # type: ignore[arg-type]
    assert len({one.fingerprint for one in [LOCAL, replace(LOCAL), *changed]}) == 1 + len(changed)


def test_other_weights_change_the_answers(served: SimpleNamespace, family: Path, items: tuple[Item, ...]) -> None:
    mine = [r.output for r in LOCAL.evaluate(served, items)]
    assert mine != [r.output for r in LOCAL.evaluate(live(family / "dog", LOCAL.module_settings()), items)]


def item(prompt: Any, name: str = "i") -> Item:
    return Item(id=name, category="c", prompt=prompt, answer="x")


def test_neither_batches_nor_workers_change_the_answers(served: SimpleNamespace, items: tuple[Item, ...]) -> None:
    together = [r.output for r in LOCAL.evaluate(served, items[:11])]
    assert together == [LOCAL.evaluate(served, [i])[0].output for i in items[:11]]
    for count in (1, 2, 11):
        shared = replace(LOCAL, workers=3).evaluate(served, items[:count])
        assert [r.output for r in shared] == together[:count]


def test_generation_equals_a_loop_without_a_cache(served: SimpleNamespace, items: tuple[Item, ...]) -> None:
    import torch

    text = str(items[0].prompt)
    ids = torch.tensor([served.tokenizer(text)["input_ids"]])
    start = ids.shape[1]
    for _ in range(4):
        ids = torch.cat([ids, served.module(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == served.tokenizer.eos_token_id:
            break
    expected = served.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert LOCAL.evaluate(served, items[:1])[0].output == expected


TOOL = {"type": "function", "function": {"name": "r", "description": "e", "parameters": {}}}
PROMPT = "{% for m in messages %}{{ m.content }}{% endfor %}"
TOOLS = "{% for t in tools %}{{ t.function.name + t.function.description }}d{% endfor %}{{ messages[1].content }}"
CHAT = item(({"role": "system", "content": "red"}, {"role": "user", "content": " 1:"}))


@pytest.mark.parametrize(
    ("template", "asked", "refused"),
    [
        (PROMPT, CHAT, ""),
        (TOOLS, replace(CHAT, tools=(TOOL,)), ""),
        (None, CHAT, "chat template"),
        (PROMPT, replace(CHAT, tools=(TOOL,)), "tools"),
        ("{{ raise_exception('no system role') }}", CHAT, "no system role"),
    ],
)
def test_messages_and_tools_go_through_the_template(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, template: str | None, asked: Item, refused: str
) -> None:
    monkeypatch.setattr(served.tokenizer, "chat_template", template)
    if refused:
        with pytest.raises(UserError, match=f"item i: .*{refused}"):
            LOCAL.evaluate(served, [asked])
    else:
        assert LOCAL.evaluate(served, [asked])[0].output == LOCAL.evaluate(served, [item("red 1:")])[0].output
    assert replace(CHAT, tools=(TOOL,)).fingerprint != CHAT.fingerprint


def test_a_prompt_gets_all_that_the_context_leaves(served: SimpleNamespace) -> None:
    records = LOCAL.evaluate(served, [item("a" * 126, "tight"), item("red 1:", "short")])
    assert (records[0].outcome, len(records[0].tokens)) == ("truncated", 2)
    assert records[1] == LOCAL.evaluate(served, [item("red 1:", "short")])[0]


def test_every_answer_says_how_it_ended(served: SimpleNamespace, items: tuple[Item, ...]) -> None:
    asked = (replace(LOCAL, max_new_tokens=40).evaluate(served, [one])[0] for one in items)
    cut = next(record for record in asked if len(set(record.tokens)) > 2)
    one = next(one for one in items if one.id == cut.item)
    assert (cut.outcome, len(cut.tokens), cut.prompt_key != "") == ("truncated", 40, True)
    change = next(n for n, token in enumerate(cut.tokens) if token != cut.tokens[0])
    ending = SimpleNamespace(**{**vars(served), "eos_token_ids": (cut.tokens[change], served.tokenizer.eos_token_id)})
    for others in ([], [other for other in items if other != one][:5]):  # alone, and padded beside longer answers
        ended = replace(LOCAL, max_new_tokens=40).evaluate(ending, [one, *others])[0]  # type: ignore[arg-type]
        assert (ended.outcome, ended.tokens) == ("finished", cut.tokens[: change + 1])
        assert ended.output == cut.output[:change]  # the end is no part of the text
        stop = replace(LOCAL, max_new_tokens=40, stop=[cut.output[change]])
        stopped = stop.evaluate(served, [one, *others])[0]
        assert (stopped.outcome, stopped.output) == ("finished", cut.output[:change])
        assert len(stopped.tokens) < 40
    assert ended.prompt_key == cut.prompt_key


def test_what_transformers_cannot_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match="transformers cannot load this model"):
        load_module(tmp_path, LOCAL.module_settings())
    with pytest.raises(UserError, match="transformers cannot load the tokenizer"):
        load_tokenizer(tmp_path)


def test_the_poured_module_is_the_written_folder_loaded_back(family: Path, tmp_path: Path) -> None:
    """Bit for bit, in the compute dtype: what is evaluated is what is written."""
    import torch

    from souping.core.types import Candidate
    from souping.merge.local import LocalMerge
    from souping.pipeline.models import OpenPool
    from souping.pipeline.store import Store

    candidates = [Candidate(name=n, path=family / n) for n in ("ant", "bee", "cat")]
    with Store(tmp_path / "s") as store:
        kitchen = OpenPool(candidates, LocalMerge(), store)
        for number, weights in enumerate([(0.3, 0.3, 0.4), (0.1, 0.2, 0.7), (0.0, 1.0, 0.0)]):
            recipe = kitchen.recipe(dict(zip(kitchen.names, weights, strict=True)))
            poured = {k: v.clone() for k, v in kitchen.serving(LOCAL)(recipe).module.state_dict().items()}
            kitchen.merge_pool.write(recipe, tmp_path / str(number))
            loaded = load_module(tmp_path / str(number), LOCAL.module_settings()).state_dict()
            assert poured.keys() == loaded.keys()
            assert all(torch.equal(poured[k], loaded[k]) and poured[k].dtype == torch.float32 for k in poured)


def test_prompts_of_like_length_are_asked_together_and_within_the_context(served: Any, family: Path) -> None:
    items = [Item(id=str(n), category="c", prompt="x" * (40 + n), answer="") for n in range(8)]
    asked = replace(LOCAL, max_new_tokens=None)
    records = asked.evaluate(served, items)
    assert {record.prompt_tokens for record in records} == set(range(40, 48))
    for record in records:
        assert len(record.tokens) <= left_by(128, record.prompt_tokens)
        assert record.outcome == "finished" or len(record.tokens) == left_by(128, record.prompt_tokens)
    assert asked.settings["max_new_tokens"] is None
    alone = asked.evaluate(served, [items[3]])[0]
    assert len(alone.tokens) == len(records[3].tokens)


def test_a_run_says_how_long_answers_may_be(family: Path) -> None:
    for settings, tokens, rest in ((replace(LOCAL, max_new_tokens=None), "1,024", True), (LOCAL, "4", False)):
        line = settings.banner()
        assert f" {tokens} new tokens" in line
        assert "evaluator.max_new_tokens" in line
        assert ("context" in line) == rest
