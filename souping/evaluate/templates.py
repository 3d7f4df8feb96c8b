"""Prompts as token ids, and the child process that renders templates.

Templates are code that comes with a candidate or a task file, which must neither fill the memory nor run forever.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from souping.core.child import Child
from souping.core.system import package_environment
from souping.core.text import first_line
from souping.core.types import Item, Json, UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

SECONDS = 20.0
"""Time that a template has for one item."""
START = 600.0
"""Seconds for the process to start, import its libraries and render a template."""
BYTES = 5 << 28
"""Memory of the process: a sixth of it is taken before the first template."""
LONGEST = 50_000_000
"""Characters that a template may write: no tokenizer gets through more."""
PASSED = ("PATH", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables that the process gets: it needs no keys or tokens."""


class TemplateStoppedError(Exception):
    """A template took too long or too much memory, or failed by other means than jinja's own errors."""


def _environment() -> dict[str, str]:
    package = package_environment()
    path = os.pathsep.join([package["PYTHONPATH"], *filter(None, sys.path)])
    passed = {name: value for name, value in os.environ.items() if name in PASSED}
    return {**passed, "PYTHONPATH": path, "PYTHONSAFEPATH": package["PYTHONSAFEPATH"], "OPENBLAS_NUM_THREADS": "1"}


PROCESS = Child(_environment, BYTES)
"""Process that renders all templates of a run."""
atexit.register(PROCESS.close)


# ------------------------------------------------------------ in the child


def _chat_in_child(
    template: str, special_tokens: Mapping[str, str], messages: list[str], options: dict[str, str], seconds: float
) -> tuple[str, str]:
    """A chat template as transformers renders it, without the tokenizer, of which it needs the special tokens."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # slow to import, and of no use to a template
    from transformers import PreTrainedTokenizerBase as Base

    choose: Callable[..., str] = Base.get_chat_template
    apply: Callable[..., object] = Base.apply_chat_template
    tokenizer = SimpleNamespace(chat_template=template, special_tokens_map=special_tokens)
    tokenizer.get_chat_template = partial(choose, tokenizer)
    return _rendered(lambda: str(apply(tokenizer, messages, **options)), seconds)


def _task_in_child(template: str, doc: Mapping[str, Any], seconds: float) -> tuple[str, str]:
    """A task's template as lm_eval renders it, in jinja's sandbox."""
    return _rendered(lambda: _compiled(template).render(doc), seconds)


@lru_cache(maxsize=1024)
def _compiled(template: str) -> Template:
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters["regex_replace"] = lambda string, pattern, repl, count=0: re.sub(pattern, repl, string, count=count)
    return sandbox.from_string(template)


def _rendered(render: Callable[[], str], seconds: float) -> tuple[str, str]:
    """("text", the text), or why there is none. The alarm ends the process, which also ends a call into C."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        text = render()
        if len(text) > LONGEST:
            return "stopped", f"it makes a text of {len(text):.0e} characters"
        return "text", text
    except MemoryError:
        raise
    except Exception as error:  # a template can raise anything
        kind = "refused" if type(error).__module__.startswith("jinja2.") else "stopped"
        return kind, str(error)[:2000] or type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ------------------------------------------------------------ here


def _render(function: Callable[..., tuple[str, str]], *arguments: object) -> str:
    """The text that a template makes of its arguments.

    Raises:
        TemplateStoppedError: it takes too long or too much memory, or fails.
        jinja2.TemplateError: the template refuses its arguments (`raise_exception`).
    """
    try:
        kind, text = PROCESS.call(function, (*arguments, SECONDS), START)
    except TimeoutError:
        raise TemplateStoppedError(f"it did not end in {SECONDS:g} s") from None
    except MemoryError:
        raise TemplateStoppedError("it takes more than 1 GB of memory") from None
    if kind == "text":
        return text
    from jinja2 import TemplateError

    raise (TemplateError if kind == "refused" else TemplateStoppedError)(text)


def render_task(template: str, doc: Mapping[str, Any]) -> str:
    """A task's template with a document, in place of lm_eval's own function. Raises as `apply_chat_template`."""
    return _render(_task_in_child, template, doc)


def apply_chat_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Json]], options: Mapping[str, Any]
) -> str:
    """`tokenizer.apply_chat_template(messages, **options)`, rendered by the child process.

    Raises:
        TemplateStoppedError: the template takes too long or too much memory, or fails.
        jinja2.TemplateError: the template refuses the messages.
    """
    from transformers import PreTrainedTokenizerBase as Base

    if type(tokenizer).apply_chat_template is not Base.apply_chat_template:  # a class with its own format
        return str(tokenizer.apply_chat_template(messages, **options))  # type: ignore[arg-type]
    return _render(_chat_in_child, tokenizer.chat_template, dict(tokenizer.special_tokens_map), messages, options)


def render(tokenizer: PreTrainedTokenizerBase, item: Item) -> list[int]:
    """The prompt's tokens: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        UserError: there is no chat template, or it refuses the messages.
    """
    if isinstance(item.prompt, str):
        return list(tokenizer(item.prompt)["input_ids"])
    return list(tokenizer(_chat(tokenizer, item), add_special_tokens=False)["input_ids"])


def as_seen(tokenizer: PreTrainedTokenizerBase, item: Item, key: str) -> str:
    """A prompt as text, as the model sees it, with its special tokens; `key` is the digest of its ids."""
    known = _seen(tokenizer)
    if key not in known:
        known[key] = str(tokenizer.decode(render(tokenizer, item), skip_special_tokens=False))
    return known[key]


@lru_cache(maxsize=8)
def _seen(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Prompts that this tokenizer wrote, by the digest of their ids; every model of a run gets the same ones."""
    return {}


def no_template(item: Item) -> UserError:
    """Error of an item with chat messages for a tokenizer without a chat template."""
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
    except Exception as error:  # a template is the candidate's code
        raise UserError(f"item {item.id}: the chat template refuses its messages: {first_line(error)}") from error
