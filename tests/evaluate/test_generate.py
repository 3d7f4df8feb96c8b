"""evaluator=local: what it generates, decoded by its settings and nothing else; sampled answers without neighbours."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.answers.claims import evaluator_digest
from souping.answers.store import Store
from souping.core.protocols import evaluator_fingerprint
from souping.core.types import Candidate, Item, Record, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.engines.base import answer_room
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.engines.vllm import VllmEngine
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.templates import Decoding, keep_likely, sampler
from souping.merge.local import LocalMerge
from souping.soups.models import RunPool
from tests.support.live import live
from tests.support.models import HeldModel

LOCAL = LocalEvaluator(max_new_tokens=4, batch_size=16, threads=1, device="cpu")


@pytest.fixture(scope="module")
def served(family: Path) -> HeldModel:
    return live(family / "ant", LOCAL.hosting.module_settings())


@pytest.fixture(scope="module")
def items(family: Path) -> tuple[Item, ...]:
    return Benchmark(path=str(family / "items.jsonl")).items()[:40]


def test_the_default_limit_is_1024_or_what_the_context_leaves() -> None:
    assert answer_room([1] * 10, None, None) == answer_room([1] * 10, None, 4096) == (1024, "")
    assert answer_room([1] * 100, None, 612) == answer_room([1] * 100, 600, 612) == (512, "")
    assert answer_room([1] * 10, None, 10)[0] == 0


def test_settings_decide_the_fingerprint() -> None:
    changes = {
        "batch_size": 3,
        "max_new_tokens": 9,
        "dtype": "float16",
        "threads": 2,
        "workers": 2,
        "stop": ["x"],
    }
    changed = [replace(LOCAL, **{key: value}) for key, value in changes.items()]  # type: ignore[arg-type]
    assert len(
        {evaluator_fingerprint(one) for one in [LOCAL, replace(LOCAL), *changed]}
    ) == 1 + len(changed)


def tokens(records: Sequence[Record]) -> list[tuple[int, ...]]:
    return [record.tokens for record in records]


def item(prompt: Any, name: str = "i") -> Item:
    return Item(id=name, category="c", prompt=prompt, answer="x")


def test_neither_batches_nor_workers_change_the_answers(
    served: HeldModel, items: tuple[Item, ...]
) -> None:
    together = [r.output for r in LOCAL.evaluate(served, items[:11])]
    assert together == [LOCAL.evaluate(served, [i])[0].output for i in items[:11]]
    for count in (1, 2, 11):
        shared = replace(LOCAL, workers=3).evaluate(served, items[:count])
        assert [r.output for r in shared] == together[:count]


def test_generation_equals_a_loop_without_a_cache(
    served: HeldModel, items: tuple[Item, ...]
) -> None:
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


# The two templates that are not refused give "red 1:", by the messages or by "r" + "e" of the tool and "d".
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
    served: HeldModel,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    asked: Item,
    refused: str,
) -> None:
    monkeypatch.setattr(served.tokenizer, "chat_template", template)
    if refused:
        with pytest.raises(UserError, match=f"item i: .*{refused}"):
            LOCAL.evaluate(served, [asked])
    else:
        assert (
            LOCAL.evaluate(served, [asked])[0].output
            == LOCAL.evaluate(served, [item("red 1:")])[0].output
        )


def test_tools_are_part_of_an_items_fingerprint() -> None:
    assert replace(CHAT, tools=(TOOL,)).fingerprint != CHAT.fingerprint


def test_a_prompt_gets_all_that_the_context_leaves(served: HeldModel) -> None:
    records = LOCAL.evaluate(served, [item("a" * 126, "tight"), item("red 1:", "short")])
    assert (records[0].outcome, len(records[0].tokens)) == ("truncated", 2)
    assert records[1] == LOCAL.evaluate(served, [item("red 1:", "short")])[0]


def test_every_answer_says_how_it_ended(served: HeldModel, items: tuple[Item, ...]) -> None:
    asked = (replace(LOCAL, max_new_tokens=40).evaluate(served, [one])[0] for one in items)
    cut = next(record for record in asked if len(set(record.tokens)) > 2)
    one = next(one for one in items if one.id == cut.item)
    assert (cut.outcome, len(cut.tokens), cut.prompt_key != "") == ("truncated", 40, True)
    change = next(n for n, token in enumerate(cut.tokens) if token != cut.tokens[0])
    ending = served.ending_at(cut.tokens[change], served.tokenizer.eos_token_id)
    # alone, and padded beside longer answers
    for others in ([], [other for other in items if other != one][:5]):
        ended = replace(LOCAL, max_new_tokens=40).evaluate(ending, [one, *others])[0]
        assert (ended.outcome, ended.tokens) == ("finished", cut.tokens[: change + 1])
        assert ended.output == cut.output[:change]  # the end is no part of the text
        stop = replace(LOCAL, max_new_tokens=40, stop=[cut.output[change]])
        stopped = stop.evaluate(served, [one, *others])[0]
        assert (stopped.outcome, stopped.output) == ("finished", cut.output[:change])
        assert len(stopped.tokens) < 40
    assert ended.prompt_key == cut.prompt_key


def test_the_poured_module_is_the_written_folder_loaded_back(family: Path, tmp_path: Path) -> None:
    import torch

    candidates = [Candidate(name=n, path=family / n) for n in ("ant", "bee", "cat")]
    with Store(tmp_path / "s") as store:
        kitchen = RunPool.fetch(candidates, LocalMerge(), store)
        for number, weights in enumerate([(0.3, 0.3, 0.4), (0.1, 0.2, 0.7), (0.0, 1.0, 0.0)]):
            recipe = kitchen.recipe(dict(zip(kitchen.names, weights, strict=True)))
            poured = kitchen.serving(LOCAL)(recipe).module.state_dict()
            folder = kitchen.merge_pool.write(recipe, tmp_path / str(number))
            loaded = load_module(folder, LOCAL.hosting.module_settings()).state_dict()
            assert poured.keys() == loaded.keys()
            for name, tensor in poured.items():
                assert tensor.dtype == torch.float32
                assert torch.equal(tensor, loaded[name]), name


DRAWN = replace(LOCAL, temperature=1.0, repeats=3)
PENALTY: Mapping[str, Any] = {
    "repetition_penalty": 1.7,
    "suppress_tokens": [23, 91],
    "do_sample": True,
    "top_k": 3,
}


def copy(family: Path, place: Path, name: str, config: Mapping[str, Any]) -> Path:
    folder = place / name
    shutil.copytree(family / name, folder)
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **config}))
    return folder


def test_no_generation_config_decodes_anything(
    family: Path, tmp_path: Path, served: HeldModel, items: tuple[Item, ...]
) -> None:
    plain = tokens(LOCAL.evaluate(served, items[:24]))
    folder = copy(family, tmp_path, "ant", PENALTY)
    odd = live(folder, LOCAL.hosting.module_settings())
    assert tokens(LOCAL.evaluate(odd, items[:24])) == plain
    assert LOCAL.prompts.pool_notes({"ant": folder, "bee": family})[0].startswith("ant: ")


def test_folders_are_served_with_a_generation_config_of_ids_alone(
    family: Path, tmp_path: Path
) -> None:
    folders = {
        "ant": copy(family, tmp_path, "ant", {**PENALTY, "eos_token_id": [2, 9]}),
        "bee": family / "bee",
    }
    with Store(tmp_path / "s") as store:
        pool = RunPool.fetch(
            [Candidate(name=n, path=p) for n, p in folders.items()], LocalMerge(), store
        )
        serve = pool.serving(replace(LOCAL, engine=VllmEngine()))
        for weights in ({"ant": 1.0}, {"ant": 0.5, "bee": 0.5}):
            ends = pool.eos_token_ids(pool.recipe(weights))
            folder = serve(pool.recipe(weights)).folder
            assert json.loads((folder / "generation_config.json").read_text()) == {
                "bos_token_id": 1,
                "eos_token_id": list(ends),
                "pad_token_id": 0,
            }
            assert ends == (2, 9)
            assert serve(pool.recipe(weights)).eos_token_ids == ends
        assert serve(pool.recipe({"bee": 1.0})).folder == family / "bee"
        pool.close()


def test_a_sampled_answer_knows_no_neighbours(served: HeldModel, items: tuple[Item, ...]) -> None:
    items = items[:24]
    together = tokens(DRAWN.evaluate(served, items, repeat=1))
    assert together == [tokens(DRAWN.evaluate(served, [item], repeat=1))[0] for item in items]
    assert (
        together == tokens(replace(DRAWN, workers=3).evaluate(served, items[::-1], repeat=1))[::-1]
    )
    assert together == tokens(DRAWN.evaluate(served, items, repeat=1))
    assert together != tokens(DRAWN.evaluate(served, items, repeat=0))
    assert together != tokens(replace(DRAWN, seed=1).evaluate(served, items, repeat=1))
    assert together != tokens(LOCAL.evaluate(served, items))


def test_draws_follow_the_probabilities() -> None:
    import torch

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    decode = Decoding(temperature=0.7)
    draw = sampler(decode, range(4000), 0)
    counts = Counter(draw(torch.zeros((4000, 1)), logits.repeat(4000, 1)).argmax(-1).tolist())
    expected = (logits / 0.7).softmax(-1).tolist()
    for token, share in enumerate(expected):
        # Standard error of a share among 4,000 draws.
        error = np.sqrt(share * (1 - share) / 4000)
        assert abs(counts[token] / 4000 - share) < 4 * error


def test_top_k_top_p_and_min_p_keep_the_likely_tokens() -> None:
    import torch

    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for settings, kept in (
        ({"top_k": 2}, 2),
        ({"top_p": 0.79}, 2),
        ({"top_p": 0.81}, 3),
        ({"min_p": 0.2}, 3),
        ({}, 4),
    ):
        decode = Decoding(temperature=1.0, **settings)  # type: ignore[arg-type]
        assert int(torch.isfinite(keep_likely(scores, decode)).sum()) == kept


def test_more_answers_keep_the_first_ones(family: Path) -> None:
    assert (
        evaluator_fingerprint(DRAWN)
        == evaluator_fingerprint(replace(DRAWN, repeats=9, aggregate="pass"))
        != evaluator_fingerprint(LOCAL)
    )
    # greedy: no part of it
    assert evaluator_fingerprint(LOCAL) == evaluator_fingerprint(replace(LOCAL, seed=5, top_p=0.5))
    assert evaluator_fingerprint(DRAWN) != evaluator_fingerprint(replace(DRAWN, seed=5))
    assert len({evaluator_digest(replace(DRAWN, aggregate=how)) for how in ("mean", "pass")}) == 2  # type: ignore[arg-type]


def test_greedy_repeats_are_asked_in_other_batches(items: tuple[Item, ...]) -> None:
    items = items[:24]
    twice = replace(LOCAL, repeats=2)
    first = twice.batches(items, repeat=0)
    second = twice.batches(items, repeat=1)
    assert first == LOCAL.batches(items)
    assert {len(batch) for batch in second} == {8}
    assert sorted(i.id for batch in second for i in batch) == sorted(i.id for i in items)
    assert (
        twice.sampling.answers_per_item,
        DRAWN.sampling.answers_per_item,
        DRAWN.batches(items, repeat=2),
    ) == (
        2,
        3,
        LOCAL.batches(items),
    )


def test_several_answers_score_by_their_mean_or_by_the_best() -> None:
    one = Item(id="i", category="c", prompt="p", answer="7", scorer="number")
    said = ["it is 7", "3", "no: 3", "7.0", "so 3"]
    records = [[Record(item="i", score=float("7" in text), output=text) for text in said]]
    for how, score in (("mean", 0.4), ("pass", 1.0)):
        found = replace(DRAWN, aggregate=how).scoring.item_scores([one], records)  # type: ignore[arg-type]
        assert found.tolist() == [pytest.approx(score)]


def test_dtype_is_float32_on_a_cpu_and_the_checkpoints_own_on_a_gpu(family: Path) -> None:
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        bound = replace(LOCAL, device=device).for_pool(family / "ant", {"ant": family / "ant"})
        assert bound.hosting.module_settings().dtype == dtype
