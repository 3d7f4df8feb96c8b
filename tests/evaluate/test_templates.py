"""Templates are rendered in a process of their own, exactly as transformers does, within bounds of memory and time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from souping.core.types import Item, UserError
from souping.evaluate import templates
from souping.evaluate.engines.transformers import load_tokenizer
from souping.evaluate.templates import (
    PROCESS,
    TemplateStoppedError,
    apply_chat_template,
    render,
    render_task,
)
from tests.support.choices import slow_unless

TOOLS = (
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    },
)
CHAT = (
    {"role": "system", "content": "Sei kurz, \U0001f600 ä"},
    {"role": "user", "content": "what is <1 & 2>?"},
)
HONEST: dict[str, Any] = {
    "special tokens": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ eos_token }}>{% endif %}",
    "tools": "{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{{ messages | length }}",
    "loops and namespaces": "{% set n = namespace(x=0) %}{% for m in messages %}{% if loop.last %}"
    "{% break %}{% endif %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}{{ '-' * 3 }}{{ 2 ** 3 }}",
    "several templates": {"default": "plain", "tool_use": "{{ tools[0].function.name }}"},
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}
TOO_MUCH = {
    "text times number": "{{ 'x' * 3000000000 }}",
    "doubled again and again": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(32) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x|length }}",
    "width": "{{ ('%3000000000d' % 1)|length }}",
    "join": "{{ range(100000)|join('a' * 30000)|length }}",
    "long text": "{{ 'x'.ljust(60000000) }}",
}
TOO_LONG = {
    "loop": "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = a %}{% endfor %}{% endfor %}",
    "squares": "{% set n = namespace(x=10**900) %}{% for i in range(30) %}{% set n.x = n.x * n.x %}{% endfor %}{{ 1 }}",
}
QUICK = ("text times number", "loop")
"""Templates that are rendered by default: each of the others ends the process that renders."""


@pytest.fixture(scope="module")
def tokenizer(family: Path) -> Iterator[Any]:
    yield load_tokenizer.__wrapped__(family / "ant")
    PROCESS.close()


def item(content: str = "x") -> Item:
    return Item(id="i", category="c", prompt=({"role": "user", "content": content},), answer="x")


def child() -> psutil.Process:
    """The process that renders."""
    (found,) = [one for one in psutil.Process().children() if "souping.core.child" in one.cmdline()]
    return found


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("tools", [None, list(TOOLS)])
def test_a_template_gives_what_the_tokenizer_gives(tokenizer: Any, name: str, tools: Any) -> None:
    tokenizer.chat_template = HONEST[name]
    options = {"tools": tools, "tokenize": False, "add_generation_prompt": True}
    if name in ("tools", "several templates") and tools is None:
        options["tools"] = list(TOOLS)
    assert apply_chat_template(tokenizer, CHAT, options) == tokenizer.apply_chat_template(
        CHAT, **options
    )


@pytest.mark.parametrize("name", slow_unless(QUICK, TOO_MUCH))
def test_a_template_that_fills_the_memory_is_refused(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TOO_MUCH[name]
    with pytest.raises(UserError, match="item i: "):
        render(tokenizer, item())


@pytest.mark.parametrize("name", slow_unless(QUICK, TOO_LONG))
def test_a_template_that_does_not_end_is_stopped(
    tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = TOO_LONG[name]
    monkeypatch.setattr(templates, "TEMPLATE_TIMEOUT_S", 0.3)
    with pytest.raises(UserError, match=r"item i: .*did not end"):
        render(tokenizer, item())


def test_one_process_renders_all_and_a_new_one_follows_one_that_was_stopped(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"
    first = render(tokenizer, item("red")), child().pid
    assert first == (render(tokenizer, item("red")), child().pid)
    tokenizer.chat_template = "{{ 'x' * 3000000000 }}"
    with pytest.raises(UserError):
        render(tokenizer, item())
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(tokenizer, item("red")) == first[0]
    assert child().pid != first[1]


def test_the_process_has_no_secrets_and_a_session_of_its_own(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    PROCESS.close()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tokenizer.chat_template = "{{ messages[0].content }}"
    render(tokenizer, item("red"))
    assert "hf_secret" not in child().environ().values()
    assert os.getsid(child().pid) == child().pid  # a Ctrl-C on the terminal does not reach it


def test_memory_is_watched_where_the_system_sets_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    render_task("x", {})  # in a process that was started with the usual limit
    monkeypatch.setattr(PROCESS, "memory", 1)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateStoppedError, match="memory"):
        render_task(endless, {})


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import psutil, sys; from souping.evaluate.templates import render_task; render_task('x', {})\n"
        "print(psutil.Process().children()[0].pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    own = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    with parent:
        own.wait(timeout=600)
