"""Texts for people: commands that mend, and what may reach a terminal."""

from __future__ import annotations

import pytest

from souping.core import text
from souping.core.text import fitted, install, read_json, safe
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


def test_lines_end_between_words_and_keep_their_inset() -> None:
    assert fitted("short", 80, "") == "short"
    assert fitted("  a line of words", 9, "") == "  a line\n    of\n    words"
    assert fitted("cannot-be-cut-anywhere", 5, "") == "cannot-be-cut-anywhere"
    assert fitted("python -m souping out=x", 12, " \\").split() == ["python", "-m", "\\", "souping", "\\", "out=x"]


@pytest.mark.parametrize(
    "content",
    ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000, "[1e400]", f"[{'1' * 400}]", "[1", ""],
    ids=lambda content: content[:8],
)
def test_json_that_no_code_can_bear(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(content)


def test_json_that_can_be_read() -> None:
    assert read_json('{"a": [1, 2.5, "x", null, {"b": []}]}') == {"a": [1, 2.5, "x", None, {"b": []}]}
    assert read_json("[" * 100 + "]" * 100)
    assert read_json("[0.0, Infinity]") == [0.0, float("inf")]  # as the configs of some state-space models have it
