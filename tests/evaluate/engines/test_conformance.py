"""Engines: what the protocol promises; vLLM's against a stand-in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from souping import pantry
from souping.core.protocols import ModelHost, ModuleSettings
from souping.core.types import Item
from souping.evaluate.engines.transformers import Answer, Engine, TransformersEngine, prompt_key
from souping.evaluate.engines.vllm import VllmEngine
from souping.evaluate.generate import LocalEvaluator
from tests.support.evaluators import Sink
from tests.support.live import live

FOLDER = pantry.path("python_cook")
WISHED = ModuleSettings(device="cuda:1", dtype="float16", trust_remote_code=True)
ITEMS = [Item(id=str(i), category="c", prompt=f"cook number {i} of them", answer="") for i in range(5)]


@pytest.fixture(params=[TransformersEngine, VllmEngine], ids=["transformers", "vllm"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LocalEvaluator:
    """An evaluator with the engine, as the engine is asked by it."""
    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", lambda folder, settings, transfer: Sink(folder))
    return LocalEvaluator(max_new_tokens=4, threads=1, device="cpu", engine=request.param())


@pytest.fixture(scope="module")
def served() -> Any:
    return live(FOLDER)


def answers(asked: LocalEvaluator, served: Any, items: Sequence[Item], replicate: int = 0) -> list[Answer]:
    return asked.engine.generate(asked, served, items, replicate)


def test_an_answer_for_every_item_in_order_and_the_same_again(asked: LocalEvaluator, served: Any) -> None:
    told = answers(asked, served, ITEMS)
    assert len(told) == len(ITEMS)
    assert answers(asked, served, ITEMS) == told
    assert [answers(asked, served, [item])[0] for item in ITEMS] == told
    asked.engine.close()
    asked.engine.close()
    assert answers(asked, served, ITEMS) == told


def test_an_answer_ends_at_a_stop_text(asked: LocalEvaluator, served: Any) -> None:
    whole = answers(asked, served, ITEMS[:1])[0].text
    stopped = replace(asked, stop=[whole[1]])
    assert answers(stopped, served, ITEMS[:1])[0].text == whole[: whole.index(whole[1])]


def test_an_answer_knows_its_prompt_and_its_tokens(asked: LocalEvaluator, served: Any) -> None:
    (told,) = answers(asked, served, ITEMS[:1])
    prompt = served.tokenizer(ITEMS[0].prompt)["input_ids"]
    assert (told.prompt_tokens, told.prompt_key) == (len(prompt), prompt_key(prompt))
    assert (told.outcome, len(told.tokens)) == ("truncated", 4)
    ended = SimpleNamespace(**{**vars(served), "eos_token_ids": (told.tokens[1],)})
    (short,) = answers(asked, ended, ITEMS[:1])
    assert served.tokenizer.decode(told.tokens[:1]) == short.text or asked.engine.model_form == "either"


def test_a_prompt_that_does_not_fit_is_unanswered(asked: LocalEvaluator, served: Any) -> None:
    long = Item(id="long", category="c", prompt="cook " * 2000, answer="")
    told, other = answers(asked, served, [long, ITEMS[0]])
    assert (told.outcome, told.text) == ("unanswered", "")
    assert re.fullmatch(r"the prompt does not fit the context of \d+ tokens", told.reason)
    assert other.outcome == "truncated"


def test_what_it_declares(asked: LocalEvaluator) -> None:
    engine = asked.engine
    assert Engine in type(engine).__mro__
    assert engine.settings is None or json.loads(json.dumps(engine.settings)) == engine.settings
    assert ("engine" in asked.settings) == (engine.settings is not None)
    settings = engine.module_settings(WISHED)
    assert settings.trust_remote_code
    assert (settings == WISHED) == (engine.model_form == "module")
    assert engine.model_form == asked.model_form
    assert engine.host == asked.host
    assert engine.host is None or (isinstance(engine.host, ModelHost) and engine.host.gpus >= 1)
    assert engine.host is None or 0 < engine.host.fraction <= 1
    assert all(one.fix.startswith("pip install") for one in engine.needs())
    assert asked.needs() == engine.needs()
