"""Prompts as token ids, and the guard of chat templates: code of a candidate's, in jinja's sandbox, that neither fills
memory nor runs forever.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from souping.core.text import first_line
from souping.core.types import Item, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 50_000_000
"""Characters, or entries of a list, that a product in a template may have."""
SECONDS = 30.0
"""Time that a template has for one item."""


class TemplateStoppedError(Exception):
    """A template went on for too long, or made too much."""

    def __init__(self, message: str = f"it did not end in {SECONDS:g} s") -> None:
        super().__init__(message)


def check_length(text: str) -> None:
    """Refuse a text that no tokenizer ends with."""
    if len(text) > LONGEST:
        raise TemplateStoppedError(f"it makes a text of {len(text):.0e} characters")


@lru_cache(maxsize=1)
def guard_templates() -> None:
    """Let jinja's sandbox, which chat templates run in, ask before it multiplies: a text times 3e9 fills the memory.

    For this process, once: transformers makes the environment itself, and the sandbox has no other door.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox

    plain = Sandbox.call_binop

    def careful(self: Sandbox, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        whole = all(isinstance(size, int) for size in sizes)
        if operator == "*" and whole and sizes != [left, right] and sizes[0] * sizes[1] > LONGEST:
            raise TemplateStoppedError(f"it makes a text of {sizes[0] * sizes[1]:.0e} characters")
        if operator == "**" and whole and abs(sizes[0]) > 1 and sizes[1] > 1000:
            raise TemplateStoppedError("it makes a number of thousands of digits")
        return plain(self, context, operator, left, right)

    Sandbox.call_binop = careful  # type: ignore[method-assign,assignment]
    Sandbox.intercepted_binops = Sandbox.intercepted_binops | {"*", "**"}


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TemplateStoppedError in this thread once it was in here for `SECONDS`."""
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not done:
                raised = ctypes.py_object(TemplateStoppedError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()


def render(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[int]:
    """The prompt's tokens: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        UserError: there is no chat template, or it refuses the messages.
    """
    if isinstance(item.prompt, str):
        return list(tokenizer(item.prompt)["input_ids"])
    return list(tokenizer(_chat(tokenizer, item), add_special_tokens=False)["input_ids"])


def as_seen(tokenizer: PreTrainedTokenizerBase, item: Item, key: str) -> str:
    """A prompt in letters as the model sees it, with the tokens that mark its parts; `key` is the digest of its ids."""
    known = _seen(tokenizer)
    if key not in known:
        known[key] = str(tokenizer.decode(render(tokenizer, item), skip_special_tokens=False))
    return known[key]


@lru_cache(maxsize=8)
def _seen(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Prompts that this tokenizer wrote, by the digest of their ids: every model of a run is asked the same."""
    return {}


def no_template(item: Item) -> UserError:
    """Error of an item whose messages nothing can write out."""
    return UserError(f"item {item.id}: chat messages need a chat template, and the tokenizer has none")


def _chat(tokenizer: PreTrainedTokenizerBase, item: Item) -> str:
    """The item's messages and tools as the tokenizer's chat template writes them."""
    template = tokenizer.chat_template
    if not template:
        raise no_template(item)
    if item.tools and "tools" not in str(template):
        raise UserError(f"item {item.id}: the tokenizer's chat template shows no tools; put them into a message")
    messages = [dict(message) for message in item.prompt if not isinstance(message, str)]
    tools = [dict(tool) for tool in item.tools] or None
    guard_templates()
    try:
        with time_limit():
            text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)  # type: ignore[arg-type]  # a list of dictionaries
        check_length(str(text))
    except Exception as error:  # a template is code of the candidate's
        raise UserError(f"item {item.id}: the chat template refuses its messages: {first_line(error)}") from error
    return str(text)
