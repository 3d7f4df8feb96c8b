"""Child process that renders templates which come with data: chat templates of candidates, templates of task files.

`souping.evaluate.templates` starts it. Its standard input holds pickled requests: first the import path, then one
(kind, seconds, arguments) per template. It answers each with one line of JSON. A template that takes too long ends the
process by SIGALRM, which also ends a call into C; one that takes too much memory ends it with status `MEMORY`.
This file runs by itself: it uses the standard library, and loads jinja2 or transformers for the first template.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import Any

MEMORY = 77
"""Exit status of a process whose template needed too much memory."""
BYTES = 5 << 28
"""Memory of the process: a sixth of it is taken before the first template."""
LONGEST = 50_000_000
"""Characters that a template may write: no tokenizer gets through more."""


def main() -> None:
    """Answer requests until the parent closes the pipe, which the system also does when the parent dies."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not a reply
    sys.path[:] = pickle.load(requests)
    sys.modules["torch"] = None  # type: ignore[assignment]  # slow to import, and of no use to a template
    with suppress(OSError, ValueError):  # macOS has no such limit: there the parent watches
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    with suppress(EOFError):
        while True:
            kind, seconds, arguments = pickle.load(requests)
            print(answer(renderer(kind), seconds, arguments), file=replies, flush=True)


def answer(render: Callable[..., str], seconds: float, arguments: Sequence[Any]) -> str:
    """The rendered text as JSON, or why there is none; `refused` marks jinja's own errors (raise_exception)."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        text = render(*arguments)
        if len(text) > LONGEST:
            raise ValueError(f"it makes a text of {len(text):.0e} characters")
        return json.dumps({"text": text})
    except MemoryError:
        os._exit(MEMORY)
    except Exception as error:  # a template can raise anything
        refused = type(error).__module__.startswith("jinja2.")
        return json.dumps({"error": str(error)[:2000] or type(error).__name__, "refused": refused})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@cache
def renderer(kind: str) -> Callable[..., str]:
    """Function that renders templates of a kind: `chat` as transformers does, without the tokenizer, of which it needs
    the template and the special tokens; `task` as lm_eval does, in jinja's sandbox.
    """
    if kind == "chat":
        from transformers import PreTrainedTokenizerBase as Base

        choose: Callable[..., str] = Base.get_chat_template
        apply: Callable[..., object] = Base.apply_chat_template

        def chat(template: str, special_tokens: Mapping[str, str], messages: list[str], options: dict[str, str]) -> str:
            tokenizer = SimpleNamespace(chat_template=template, special_tokens_map=special_tokens)
            tokenizer.get_chat_template = partial(choose, tokenizer)
            return str(apply(tokenizer, messages, **options))

        return chat
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox

    environment = Sandbox(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda string, pattern, repl, count=0: re.sub(
        pattern, repl, string, count=count
    )
    compiled = lru_cache(maxsize=1024)(environment.from_string)
    return lambda template, doc: compiled(template).render(doc)


if __name__ == "__main__":
    main()
