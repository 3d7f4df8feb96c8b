"""Verified drafts: the answers of plain decoding, whatever the drafts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from souping.core.protocols import ModuleSettings
from souping.core.types import Draft, Item, Record, UserError
from souping.evaluate.engines import Answer, context, verify
from souping.evaluate.engines.drafts import (
    AGREED,
    LONE,
    SPLIT,
    Drafted,
    PassCosts,
    Proposal,
    Survival,
    reaches,
)
from souping.evaluate.engines.row_cache import LayerRows, croppable, line_logits, packs
from souping.evaluate.engines.transformers import TransformersEngine, load_module, load_tokenizer
from souping.evaluate.engines.verify import Verifier, most_tokens
from souping.evaluate.engines.vllm import VllmEngine
from souping.evaluate.generate import LocalEvaluator
from souping.examples import pantry
from souping.examples.pantry import PantryBenchmark

LOCAL = LocalEvaluator(max_new_tokens=40, threads=1, device="cpu")
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def model(name: str) -> Any:
    folder = pantry.path(name)
    module = load_module(folder, ModuleSettings())
    return SimpleNamespace(soup=name, home=folder, module=module, tokenizer=load_tokenizer(folder), ends=())


@pytest.fixture(scope="module")
def python() -> Any:
    return model("python_cook")


@pytest.fixture(scope="module")
def java() -> Any:
    return model("java_cook")


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    every = PantryBenchmark(path=str(pantry.path("items")), name=None).items()
    return tuple(every[:: len(every) // 14])


def draft(record: Record) -> Draft:
    return Draft(tokens=record.tokens, prompt_key=record.prompt_key)


def bare(records: Sequence[Record]) -> list[Record]:
    """Records without what only a verified answer has."""
    return [replace(record, accepted=0, likelihood=None) for record in records]


Make = Callable[[Record, Record, random.Random], list[Draft]]
MAKERS: dict[str, Make] = {
    "none": lambda own, other, dice: [],
    "empty": lambda own, other, dice: [replace(draft(own), tokens=())],
    "full": lambda own, other, dice: [draft(own)],
    "another model's": lambda own, other, dice: [draft(other)],
    "partial": lambda own, other, dice: [replace(draft(own), tokens=own.tokens[: dice.randrange(len(own.tokens))])],
    "wrong": lambda own, other, dice: [replace(draft(own), tokens=tuple(dice.randrange(90) for _ in range(30)))],
    "too long": lambda own, other, dice: [replace(draft(own), tokens=own.tokens + own.tokens * 9)],
    "one token wrong": lambda own, other, dice: [replace(draft(own), tokens=(*own.tokens[:3], 7, *own.tokens[4:]))],
    "the second fits": lambda own, other, dice: [draft(other), draft(own)],
    "of another prompt": lambda own, other, dice: [replace(draft(own), prompt_key="x")],
    "mixed": lambda own, other, dice: dice.choice([[], [draft(own)], [draft(other)], [draft(other), draft(own)]]),
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "three workers": {"workers": 3},
    "a short limit": {"max_new_tokens": 5},
    "one token": {"max_new_tokens": 1},
    "a stop text": {"stop": ["("]},
    "stop texts over tokens": {"stop": ["=1", "))", ")\n"]},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "samples": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_verified_answer_is_the_plain_one(
    case: str, python: Any, java: Any, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(LOCAL, **CASES[case], engine=TransformersEngine())
    monkeypatch.setattr(Verifier, "pays", lambda self, blocks: True)
    for replicate in range(asked.answers):
        own, other = (asked.evaluate(one, items, replicate) for one in (python, java))
        for name, maker in MAKERS.items():
            dice = random.Random(0)
            drafts = [maker(a, b, dice) for a, b in zip(own, other, strict=True)]
            told = asked.verify(python, items, replicate, drafts)
            assert bare(told) == own, name
            if name == "full":
                assert [record.accepted for record in told] == [len(record.tokens) for record in own]
    assert len({len(record.tokens) for record in own}) > 1 or asked.max_new_tokens < 6


def test_end_tokens_are_verified_places(python: Any, items: tuple[Item, ...]) -> None:
    whole = LOCAL.evaluate(python, items)
    common = whole[0].tokens[4]
    ended = SimpleNamespace(**{**vars(python), "ends": (common, python.tokenizer.eos_token_id)})
    plain = LOCAL.evaluate(ended, items)
    assert any(a.tokens != b.tokens for a, b in zip(plain, whole, strict=True))
    assert bare(LOCAL.verify(ended, items, 0, [[draft(record)] for record in whole])) == plain


def test_a_module_may_know_alone_what_ends_an_answer(
    python: Any, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LOCAL.evaluate(python, items)
    twin = SimpleNamespace(**{**vars(python), "tokenizer": load_tokenizer.__wrapped__(python.home)})
    twin.tokenizer.eos_token = None
    monkeypatch.setattr(python.module.generation_config, "eos_token_id", [whole[0].tokens[4]])
    plain = LOCAL.evaluate(twin, items)
    assert (plain[0].tokens, plain[0].outcome) == (whole[0].tokens[:5], "finished")
    assert bare(LOCAL.verify(twin, items, 0, [[draft(record)] for record in whole])) == plain


def test_chat_items_and_prompts_that_do_not_fit(python: Any, items: tuple[Item, ...]) -> None:
    twin = SimpleNamespace(**{**vars(python), "tokenizer": load_tokenizer.__wrapped__(python.home)})
    twin.tokenizer.chat_template = CHAT
    chats = [replace(item, prompt=({"role": "user", "content": str(item.prompt)},)) for item in items[:6]]
    long = replace(items[0], id="long", prompt="cook " * 3000)
    tight = replace(items[0], id="tight", prompt="cook " * 503)
    asked = [*chats, long, tight]
    plain = LOCAL.evaluate(twin, asked)
    assert {record.outcome for record in plain} >= {"finished", "unanswered"}
    assert bare(LOCAL.verify(twin, asked, 0, [[draft(record)] for record in plain])) == plain


def test_blocks_after_one_another_learn_and_stay_right(python: Any, java: Any, items: tuple[Item, ...]) -> None:
    asked = replace(LOCAL, engine=TransformersEngine(), batch_size=7)
    own, other = ({r.item: r for r in LOCAL.evaluate(one, items)} for one in (python, java))
    for _ in range(2):
        for block in asked.batches(items):
            told = asked.verify(python, block, 0, [[draft(other[item.id])] for item in block])
            assert bare(told) == [own[item.id] for item in block]


def test_more_items_than_a_batch_take_turns(python: Any, java: Any, items: tuple[Item, ...]) -> None:
    asked = replace(LOCAL, engine=TransformersEngine(), batch_size=3)
    own, other = (LOCAL.evaluate(one, items) for one in (python, java))
    told = asked.verify(python, items, 0, [[draft(record)] for record in other])
    assert bare(told) == own
    assert any(record.accepted for record in told)


def test_a_prompt_longer_than_a_pass_does_not_wait_for_running_answers(
    python: Any, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, together = LOCAL.evaluate(python, items[:5]), []

    def counted(*given: Any) -> Any:
        together.append(len(given[2]))
        return line_logits(*given)

    monkeypatch.setattr(verify, "PASS", {"cpu": 8})
    monkeypatch.setattr(verify, "line_logits", counted)
    assert bare(LOCAL.verify(python, items[:5], 0, [[]] * 5)) == own
    assert together[:5] == [1, 2, 3, 4, 5]


def test_a_pass_is_as_short_as_the_vocabulary_is_large(python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LOGITS", {"cpu": 10 * python.module.config.vocab_size})
    assert most_tokens(python.module) == 10
    monkeypatch.setattr(verify, "LOGITS", {"cpu": 1})
    assert most_tokens(python.module) == 1


def test_the_pass_tells_how_likely_a_whole_draft_is(python: Any, java: Any, items: tuple[Item, ...]) -> None:
    own, other = (LOCAL.evaluate(one, items) for one in (python, java))
    fresh = replace(LOCAL, engine=TransformersEngine())  # which has measured nothing that would shorten a draft
    told = fresh.verify(python, items, 0, [[draft(record)] for record in own])
    given = fresh.likelihoods(python, items, [[draft(a), draft(b)] for a, b in zip(own, other, strict=True)])
    assert given is not None
    known = [(record.likelihood, row[0]) for record, row in zip(told, given, strict=True)]
    assert any(found is not None for found, _ in known)
    assert all(found is None or abs(found - row) < 1e-3 for found, row in known)
    pairs = [(mine, theirs) for mine, theirs in given if mine != theirs]
    assert pairs
    assert sum(mine > theirs for mine, theirs in pairs) > 0.7 * len(pairs)  # greedy, so not always the likeliest


def test_likelihoods_are_those_of_a_pass_without_cache(python: Any, items: tuple[Item, ...]) -> None:
    import torch

    own = LOCAL.evaluate(python, items)
    key = own[0].prompt_key
    answers = [[draft(record), Draft(tokens=(5,), prompt_key=record.prompt_key)] for record in own]
    answers[0] += [Draft(tokens=(), prompt_key=key), Draft(tokens=(5,), prompt_key="x")]
    told = LOCAL.likelihoods(python, items, answers)
    assert told is not None
    assert [value != value for value in told[0]] == [False, False, True, True]
    for item, given, values in zip(items, answers, told, strict=True):
        prompt = python.tokenizer(item.prompt)["input_ids"]
        for one, value in zip(given[:2], values, strict=False):
            ids = torch.tensor([prompt + list(one.tokens)])
            logs = python.module(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert abs(float(logs[range(len(one.tokens)), list(one.tokens)].sum().detach()) - value) < 1e-3


def test_where_drafts_are_of_no_use_answers_are_plain(
    python: Any, items: tuple[Item, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(LOCAL, engine=TransformersEngine())
    plain = asked.evaluate(python, items[:4])
    monkeypatch.setattr(python.module.config, "sliding_window", 16, raising=False)
    monkeypatch.setattr(python.module.config, "layer_types", None, raising=False)
    drafts = [[draft(record)] for record in plain]
    for _ in range(2):
        told = asked.verify(python, items[:4], 0, drafts)
        assert [record.accepted for record in told] == [0] * 4
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("engine.drafts: off for this model, which has a cache that cannot go")
    assert asked.likelihoods(python, items[:4], drafts) is None


def test_it_pauses_while_verifying_is_the_slower_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("souping.evaluate.engines.verify.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    verifier = Verifier()
    one = [Answer(tokens=(1, 2))]

    def block(drafted: bool, seconds: float) -> None:
        def answers() -> list[Answer]:
            clock[0] += seconds
            return one

        verifier.timed(drafted, 1, answers)

    block(False, 0.01)
    for _ in range(3):
        assert verifier.pays(1)
        block(True, 0.03)
    assert [verifier.pays(1) for _ in range(9)] == [False] * 8 + [True]
    block(True, 0.03)
    assert [verifier.pays(8) for _ in range(2)] == [False, True]  # eight blocks at once are as many
    for _ in range(6):
        block(True, 0.001)
        assert verifier.pays(1)


def test_who_takes_drafts() -> None:
    assert LOCAL.drafts == "search"
    assert replace(LOCAL, engine=TransformersEngine(drafts="off")).drafts == "off"
    assert replace(LOCAL, engine=VllmEngine()).drafts == "off"
    with pytest.raises(UserError, match=r"engine\.drafts=always must be search, all or off"):
        TransformersEngine(drafts="always")  # type: ignore[arg-type]
    assert replace(LOCAL, engine=TransformersEngine(drafts="off")).fingerprint == LOCAL.fingerprint
    assert LOCAL.drafted_settings != LOCAL.settings


class TestProposals:
    def test_drafts_fit_one_after_another(self) -> None:
        row = Drafted(number=0, prompt=[1], drafts=[(5, 6, 7, 8), (5, 9, 3, 4)], limit=4)
        assert list(row.propose().tokens) == [5, 6, 7, 8]
        row.take([5, 9], row.propose())
        assert list(row.propose().tokens) == [3, 4]

    def test_look_up_follows_the_longest_run(self) -> None:
        row = Drafted(number=0, prompt=[2, 3, 4, 5, 9, 2, 3, 7, 7], drafts=[(1, 2, 3, 8)], limit=9)
        row.take([6, 9, 2, 3], Proposal())
        found = row.propose()
        assert (list(found.tokens), found.kinds.tolist()) == ([7, 7, 6, 9, 2], [6, 6, 6, 7, 7])
        row.take([0], found)
        assert list(row.propose().tokens) == []

    def test_a_draft_is_taken_up_again_near_its_place(self) -> None:
        row = Drafted(number=0, prompt=[1], drafts=[(10, 11, 12, 13, 14, 15, 16, 17)], limit=9)
        row.take([10, 11, 50], row.propose())  # one token for another
        found = row.propose()
        assert (list(found.tokens), found.kinds.tolist()) == ([13, 14, 15, 16, 17], [3, 4, 5, 6, 6])
        row.take([51], found)
        row.take([13], row.propose())  # one more than the draft had
        found = row.propose()
        assert (list(found.tokens), found.kinds.tolist()) == ([14, 15, 16, 17], [4, 5, 6, 6])

    def test_a_token_is_agreed_lone_or_where_drafts_part(self) -> None:
        row = Drafted(number=0, prompt=[1], drafts=[(5, 6, 7, 8, 9), (5, 6, 2), (5, 3)], limit=9)
        assert row.propose().kinds.tolist() == [AGREED, SPLIT, SPLIT, LONE, LONE]
        row.take([5, 6, 2], row.propose())
        assert list(row.propose().tokens) == []

    def test_it_reaches_less_far_the_less_it_is_right(self) -> None:
        def reach(right: int, wrong: int, rows: int, overhead: float = 32.0) -> list[int]:
            known, costs = Survival(), PassCosts(overhead=overhead)
            for _ in range(right):
                known.note(proposal.first(1), 1)
            for _ in range(wrong):
                known.note(proposal.first(1), 0)
            costs.begin(rows)
            return reaches([known.chances(proposal)] * rows, costs, rows, 1000)

        proposal = Proposal(tokens=[1] * 40, kinds=np.full(40, LONE))
        assert reach(5000, 0, 8) == [40] * 8
        assert reach(0, 900, 8) == [0] * 8
        assert reach(300, 20, 8) > reach(300, 60, 8) > reach(300, 300, 8)
        assert reach(300, 20, 8) > reach(300, 20, 64)
        assert reach(300, 20, 8) < reach(300, 20, 8, overhead=256.0)
        assert sum(reach(50000, 0, 64)) <= 1000

    def test_proposals_of_one_pass_reach_as_far_as_each_is_good(self) -> None:
        known, costs = Survival(), PassCosts()
        split = Proposal(tokens=[1] * 20, kinds=np.array([AGREED] * 9 + [SPLIT] + [AGREED] * 10))
        agreed = Proposal(tokens=[1] * 20, kinds=np.full(20, AGREED))
        for _ in range(30):
            known.note(agreed, 20)
            known.note(Proposal(tokens=[1], kinds=np.array([SPLIT])), 0)
        costs.begin(3)
        assert reaches([known.chances(one) for one in (split, agreed, Proposal())], costs, 3, 1000) == [9, 20, 0]

    def test_the_overhead_is_what_a_short_pass_costs(self) -> None:
        costs = PassCosts()
        costs.timed(1000, 1.0)
        for seconds in (0.04, 0.065, 0.5):
            costs.timed(8, seconds)
        costs.settle()
        assert costs.overhead == 64.0


TINY: dict[str, Any] = {"vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "heads that share keys": ("llama", {"num_key_value_heads": 2, "intermediate_size": 48}),
    "norms of queries": ("qwen3", {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}),
    "a part of a head rotated": ("gpt_neox", {"intermediate_size": 48}),
    "learned positions": ("gpt2", {}),
    "experts": ("mixtral", {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_whose_rows_are_read_in_one_line(kind: str) -> None:
    name, more = KINDS[kind]
    assert packs(random_model(name, more))


def test_a_model_with_other_attention_is_not_read_so() -> None:
    assert not packs(random_model("bloom", {}))


def test_rows_whose_logits_differ_are_not_read_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = random_model(*KINDS["learned positions"])
    monkeypatch.setattr(LayerRows, "attend", lambda self, query, scale: query.transpose(1, 2))
    assert not packs(module)


UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "window": ("mistral", {"sliding_window": 8, "num_key_value_heads": 2}, "a cache that cannot go back"),
    "state space": ("mamba", {}, "a cache that cannot go back"),
    "no cache": ("mpt", {}, "no cache that souping knows"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_take_no_drafts(kind: str) -> None:
    name, more, reason = UNFIT[kind]
    assert croppable(random_model(name, more)).startswith(reason)


def test_rows_stay_below_the_length_at_which_all_positions_change(
    python: Any, items: tuple[Item, ...], caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    more = {"sliding_window": None, "pad_token_id": 0, "vocab_size": 900, "original_max_position_embeddings": 96}
    module = random_model("phi3", {**more, "rope_parameters": rope, "max_position_embeddings": 256})
    twin = SimpleNamespace(**{**vars(python), "module": module})
    asked = replace(LOCAL, engine=TransformersEngine(), max_new_tokens=12)
    plain = asked.evaluate(twin, items[:3])
    drafts = [[draft(record)] for record in plain]
    assert all(record.accepted for record in asked.verify(twin, items[:3], 0, drafts))
    long = replace(asked, max_new_tokens=90)
    assert not any(record.accepted for record in long.verify(twin, items[:3], 0, drafts))
    assert long.likelihoods(twin, items[:3], drafts) is None
    assert ["where a row is long (longrope)" in record.message for record in caplog.records] == [True]


def test_a_model_of_text_and_images_is_judged_by_its_text() -> None:
    import transformers

    full = {
        **TINY,
        "max_position_embeddings": 77,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "pad_token_id": 0,
    }
    sees = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    for layers, reason in (("full_attention", ""), ("sliding_attention", "a cache that cannot go back")):
        text = {**full, "layer_types": [layers] * 2}
        config = transformers.AutoConfig.for_model("gemma3", text_config=text, vision_config=sees)
        module = transformers.AutoModelForCausalLM.from_config(config).eval()
        assert croppable(module)[:27] == reason
        assert context(SimpleNamespace(module=module)) == 77  # type: ignore[arg-type]
        module.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
        assert reason or packs(module)
        assert (config._attn_implementation, config.text_config._attn_implementation) == ("sdpa", "eager")


def random_model(name: str, more: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **{**TINY, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval()
