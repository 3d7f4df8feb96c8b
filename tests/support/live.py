"""Loaded models and running servers, as evaluators get them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from souping.core.protocols import ModuleSettings
from souping.core.types import Item
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers.server_process import Process, ServerError, models_at, post
from tests.support.models import HeldModel


def live(folder: Path, settings: ModuleSettings | None = None) -> HeldModel:
    module = load_module(folder, settings or ModuleSettings())
    return HeldModel(soup="s", folder=folder, module=module, tokenizer=load_tokenizer(folder))


def local_answers(folder: Path, prompts: Sequence[Any], tokens: int) -> list[str]:
    """What evaluator=local answers."""
    evaluator = LocalEvaluator(max_new_tokens=tokens, device="cpu", threads=1, batch_size=1)
    items = [
        Item(id=str(i), category="c", prompt=prompt, answer="") for i, prompt in enumerate(prompts)
    ]
    model = live(folder, evaluator.hosting.module_settings())
    return [evaluator.evaluate(model, [item])[0].output for item in items]


def completions(url: str, model: str, prompts: Sequence[Any], tokens: int) -> list[str]:
    """Greedy completions of texts or chats by a server."""
    texts = []
    for prompt in prompts:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        place = "completions" if isinstance(prompt, str) else "chat/completions"
        reply = post(
            f"{url}/{place}", {"model": model, "max_tokens": tokens, "temperature": 0, **asked}, 600
        )
        choice = json.loads(reply)["choices"][0]
        texts.append(
            str(choice["text"] if isinstance(prompt, str) else choice["message"]["content"])
        )
    return texts


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, more: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server that somebody else started, once it lists its models."""
    process = Process(command, {**os.environ, **(more or {})}, log)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 600
    while process.alive and time.monotonic() < end:
        try:
            models_at(address)
            break
        except ServerError:
            time.sleep(0.2)
    assert process.alive, process.reason()
    yield address
    process.stop()
