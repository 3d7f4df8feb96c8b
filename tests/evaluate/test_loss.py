"""evaluator=loss: bits per byte against a direct computation and lm_eval's own, windows, engines, and bad items."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping import demo
from souping.core.types import Item, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.engines.base import Passage
from souping.evaluate.engines.vllm import LIKELIHOOD, Vllm, VllmEngine, llm_arguments
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.loss import LossEvaluator, passage, scored_text
from tests.support.evaluators import Sink
from tests.support.live import live
from tests.support.texts import texts

CLOSE = 1e-5
"""Bits per byte by which a text's score may depend on the other texts of its block."""
LOSS = LossEvaluator(device="cpu", threads=1)
TEXTS = texts()
QUESTION = Item(
    id="q",
    category="c",
    prompt="Question: Move a song in 28 copies.\nCall:",
    answer=" move_song(copies=28)",
)


@pytest.fixture(scope="module")
def model() -> Any:
    return live(demo.path("tuned_python"), LOSS.hosting.module_settings())


def bits_of(model: Any, tokens: Sequence[int], scored: int) -> float:
    """Bits of the last tokens, by one forward pass."""
    import torch

    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        logits = model.module(input_ids=ids[:, :-1]).logits[0, -scored:]
    chosen = torch.log_softmax(logits.float(), -1).gather(1, ids[0, -scored:, None])
    return -float(chosen.double().sum()) / math.log(2)


@pytest.mark.parametrize("item", [TEXTS[0], QUESTION], ids=["text", "answer"])
def test_a_score_is_the_bits_of_a_forward_pass_over_the_bytes(model: Any, item: Item) -> None:
    read = passage(model.tokenizer, item)
    (record,) = LOSS.evaluate(model, [item])
    bits, size = record.statistics
    assert bits == bits_of(model, (*read.before, *read.scored), len(read.scored))
    assert (size, record.score) == (len(scored_text(item).encode()), bits / size)
    assert model.tokenizer.decode(read.scored).strip() == scored_text(item).strip()


def test_other_texts_of_a_block_and_their_order_change_the_last_digits_alone(model: Any) -> None:
    alone = [LOSS.evaluate(model, [item])[0].score for item in TEXTS[:12]]
    for order in (TEXTS[:12], TEXTS[11::-1]):
        found = {record.item: record.score for record in LOSS.evaluate(model, order)}
        assert [found[item.id] for item in TEXTS[:12]] == pytest.approx(alone, abs=CLOSE)


@pytest.mark.parametrize(
    ("before", "scored", "stride", "windows"),
    [
        (1, 9, None, [(0, 10, 9)]),
        (1, 23, None, [(0, 11, 10), (10, 21, 10), (13, 24, 3)]),
        (1, 23, 4, [(0, 11, 10), (4, 15, 4), (8, 19, 4), (12, 23, 4), (13, 24, 1)]),
        (4, 5, None, [(0, 9, 5)]),
        (14, 10, None, [(8, 19, 5), (13, 24, 5)]),
        (1, 23, 99, [(0, 11, 10), (10, 21, 10), (13, 24, 3)]),
    ],
)
def test_windows_score_every_token_once(
    before: int, scored: int, stride: int | None, windows: list[tuple[int, int, int]]
) -> None:
    tokens = tuple(range(before + scored))
    made = Passage(before=tokens[:before], scored=tokens[before:]).windows(limit=10, stride=stride)
    assert made == [(list(tokens[start:end]), count) for start, end, count in windows]
    assert [token for own, count in made for token in own[-count:]] == list(tokens[before:])


def test_windows_are_those_of_the_docstring() -> None:
    made = Passage(before=(0,), scored=tuple(range(1, 10))).windows(4, 2)
    assert made == [
        ([0, 1, 2, 3, 4], 4),
        ([2, 3, 4, 5, 6], 2),
        ([4, 5, 6, 7, 8], 2),
        ([5, 6, 7, 8, 9], 1),
    ]


@pytest.mark.slow
def test_long_texts_agree_with_lm_eval(model: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    prompts = [str(item.prompt) for item in TEXTS]
    joined = [" ".join(prompts[start : start + 12]) for start in (0, 12)]
    long = [Item(id=text, category="c", prompt=text, answer="", scorer="loss") for text in joined]
    theirs = HFLM(
        pretrained=model.module,
        tokenizer=model.tokenizer,
        batch_size=2,
        max_length=512,
        add_bos_token=False,
    )
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        for text in joined
    ]
    nats = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = [
        -value / math.log(2) / len(text.encode()) for value, text in zip(nats, joined, strict=True)
    ]
    found = LOSS.evaluate(model, long)
    assert min(record.prompt_tokens for record in found) > 600
    assert [record.score for record in found] == pytest.approx(expected, abs=1e-4)


class TestVllm:
    def test_a_window_leaves_room_for_the_token_that_is_generated(
        self, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "souping.evaluate.engines.vllm.Vllm", lambda folder, settings: Sink(folder)
        )
        engine = VllmEngine()
        read = Passage(before=(0,), scored=tuple(range(1, 300)))
        assert (
            engine.likelihoods(LOSS.machine, model, [read, read], stride=None)
            == [-sum(range(300))] * 2
        )
        assert all(len(tokens) <= 127 for tokens, _ in read.windows(limit=126, stride=None))

    def test_log_probabilities_are_those_of_the_prompts_own_tokens(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = list[Any]()

        class Llm:
            def __init__(self, **_: Any) -> None: ...

            def generate(
                self,
                inputs: list[dict[str, Any]],
                sampling: Any,
                use_tqdm: bool,
                lora_request: None,
            ) -> list[Any]:
                asked.append(sampling)
                assert {prompt["cache_salt"] for prompt in inputs} == {"s"}
                likely = SimpleNamespace(logprob=-0.5)
                outputs = []
                for prompt in inputs:
                    logprobs: list[Any] = [None]
                    for token in prompt["prompt_token_ids"][1:]:
                        logprobs.append({99: likely, token: SimpleNamespace(logprob=-token)})
                    outputs.append(SimpleNamespace(prompt_logprobs=logprobs))
                return outputs

        monkeypatch.setitem(
            sys.modules, "vllm", SimpleNamespace(LLM=Llm, SamplingParams=lambda **given: given)
        )
        platform = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False))
        monkeypatch.setitem(sys.modules, "vllm.platforms", platform)
        arguments = llm_arguments(Path(), VllmEngine(), LOSS.machine)
        assert Vllm(Path(), arguments).logprobs([[1, 2, 3], [4, 5]], "s") == [[-2.0, -3.0], [-5.0]]
        assert asked == [LIKELIHOOD]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "1", "source": "s", "text": ""}, "`text` is empty"),
        ({"id": "1", "text": "t"}, "`source` is missing"),
        ({"id": "1", "source": "s", "text": 5}, "`text` must be a text"),
        ({"id": "0", "source": "s", "text": "t"}, "id '0' appears twice"),
        ({"id": "1", "source": "s", "prompt": "p"}, "`answer` is missing"),
    ],
)
def test_a_bad_line_is_named(line: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, ({"id": "0", "source": "s", "text": "good"}, line))))
    with pytest.raises(UserError) as refused:
        Benchmark(path=str(path)).items()
    assert f"{path}:2: " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize("answer", [7, ["a", "b"], ""])
def test_an_item_without_a_text_is_refused_before_any_work(answer: Any) -> None:
    with pytest.raises(UserError, match="item i: evaluator=loss needs"):
        LOSS.prompts.check_tokenizer(
            demo.path("tuned_python"), [Item(id="i", category="c", prompt="p", answer=answer)]
        )


def test_a_text_has_no_answer_to_generate() -> None:
    with pytest.raises(UserError, match="use evaluator=loss"):
        LocalEvaluator(device="cpu").prompts.check_tokenizer(demo.path("tuned_python"), TEXTS[:1])


def test_unknown_characters_are_noted() -> None:
    strange = Item(
        id="i", category="c", prompt="\N{SNOWMAN} and \N{HAIR SPACE}", answer="", scorer="loss"
    )
    tokenizer = live(demo.path("tuned_python")).tokenizer
    hit = tokenizer.unk_token_id in tokenizer(strange.prompt)["input_ids"]
    assert len(LOSS.prompts.prompt_notes(demo.path("tuned_python"), [*TEXTS[:2], strange])) == int(
        hit
    )
