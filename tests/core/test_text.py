"""Texts for people: commands that fix an error, and what may reach a terminal."""

from __future__ import annotations

import pytest

from souping.core import text
from souping.core.text import install, read_json, safe
from souping.core.types import Missing, UserError
from tests.conftest import ROOT


def test_the_command_that_installs_an_extra_is_found_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install("vllm") == f'pip install -e "{ROOT}[vllm]"'
    packages = ["numpy>=2", 'lm_eval<0.5,>=0.4; extra == "lm-eval"', 'datasets>=3; extra == "lm-eval"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: packages)
    monkeypatch.setattr(text, "__file__", "/site-packages/souping/core/text.py")
    command = install.__wrapped__("lm-eval")
    assert command == 'pip install "lm_eval<0.5,>=0.4" "datasets>=3"'
    for one in (command, install("vllm")):
        missing = Missing.from_error(UserError(f"engine=vllm needs vLLM: {one} (vllm>=1)"))
        assert (missing.what, missing.fix) == ("engine=vllm needs vLLM", one)


def test_what_commands_a_terminal_is_written_out() -> None:
    assert safe("a\x1b[31m\u202eb\r\n\u00e9\U0001f372") == "a\\x1b[31m\\u202eb\\r\n\u00e9\U0001f372"


@pytest.mark.parametrize("content", ["[" * 100_000, "[1", ""], ids=["deep", "cut", "empty"])
def test_text_that_is_no_json(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(content)
