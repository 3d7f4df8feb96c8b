"""Prompts as token ids, and the process that renders templates: they are code of a candidate or of a task file, which
must neither fill the memory nor run forever.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from souping.core.text import first_line
from souping.core.types import Item, Json, UserError
from souping.evaluate.rendering import BYTES, MEMORY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 20.0
"""Time that a template has for one item."""
WATCH = 200
"""Milliseconds between two looks at the memory of a process that has not answered yet."""
PASSED = ("PATH", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables that the process gets: it needs no keys or tokens."""
THREADS = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy sets memory aside for each thread."""
ENDINGS = {MEMORY: "it takes more than 1 GB of memory", -signal.SIGALRM: f"it did not end in {SECONDS:g} s"}
"""What the exit status of the process says of the template."""


class TemplateStoppedError(Exception):
    """A template took too long or too much memory, or failed by other means than jinja's own errors."""


class TemplateProcess:
    """Process that renders all templates of a run. It starts with the first one; after a template that had to be
    stopped, a new one starts. It has a session of its own, so that a Ctrl-C on the terminal is for the run alone.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def render(self, kind: str, *arguments: object) -> str:
        """The text that a template makes of its arguments.

        Raises:
            TemplateStoppedError: it takes too long or too much memory, or fails.
            jinja2.TemplateError: the template refuses what it is given.
        """
        request = pickle.dumps((kind, SECONDS, arguments))
        with self._lock:
            if self._process is None:
                self._process = _start()
            try:
                reply = _exchange(self._process, request)
            except BaseException:  # an interrupt too: the reply would be taken for that of the next request
                self._end()
                raise
        if "text" in reply:
            return str(reply["text"])
        from jinja2 import TemplateError

        raise (TemplateError if reply["refused"] else TemplateStoppedError)(str(reply["error"]))

    def close(self) -> None:
        """End the process; a later template starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:  # what is still to be written to it
                pass


def _start() -> subprocess.Popen[bytes]:
    """The process, with the import path of this one: it starts without the environment that may have set it."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("rendering.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name in PASSED} | THREADS,
        start_new_session=True,
    )
    assert process.stdin is not None
    pickle.dump(sys.path, process.stdin)
    return process


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Json]:
    """The reply to a request.

    Raises:
        TemplateStoppedError: the process ended, or has grown too large on a system that sets it no limit.
    """
    import psutil

    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.flush()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while not poll.poll(WATCH):
        with suppress(psutil.Error):  # it may have ended since
            if psutil.Process(process.pid).memory_info().rss > BYTES:
                raise TemplateStoppedError(ENDINGS[MEMORY])
    line = process.stdout.readline()
    if not line:
        status = process.wait()
        raise TemplateStoppedError(ENDINGS.get(status, f"the process that renders it ended with status {status}"))
    reply: dict[str, Json] = json.loads(line)
    return reply


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)


def apply_chat_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Json]], options: Mapping[str, Any]
) -> str:
    """What `tokenizer.apply_chat_template(messages, **options)` gives, rendered by the process for templates.

    Raises:
        TemplateStoppedError: the template takes too long or too much memory, or fails.
        jinja2.TemplateError: the template refuses the messages.
    """
    from transformers import PreTrainedTokenizerBase as Base

    if type(tokenizer).apply_chat_template is not Base.apply_chat_template:  # a class with a format of its own
        return str(tokenizer.apply_chat_template(messages, **options))  # type: ignore[arg-type]
    return PROCESS.render("chat", tokenizer.chat_template, dict(tokenizer.special_tokens_map), messages, options)


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
    options = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
    try:
        return apply_chat_template(tokenizer, messages, options)
    except Exception as error:  # a template is code of the candidate's
        raise UserError(f"item {item.id}: the chat template refuses its messages: {first_line(error)}") from error
