"""Texts for people: commands that mend, and what may reach a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from souping.core.text import _requirement, fitted, install, read_json, safe
from souping.core.types import Missing, UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({}, "souping[vllm]"),
        ({"url": "file:///home/me/sou%20ping", "dir_info": {}}, "/home/me/sou ping[vllm]"),
        ({"url": "file:///tmp/s.whl", "archive_info": {}}, "souping[vllm] @ file:///tmp/s.whl"),
        (
            {"url": "https://host/souping", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "souping[vllm] @ git+https://host/souping@abc",
        ),
    ],
)
def test_an_extra_is_had_from_where_the_package_came(source: dict[str, Any], wanted: str) -> None:
    from packaging.requirements import Requirement

    assert _requirement(source, "vllm") == wanted
    if "@" in wanted:
        assert Requirement(wanted).extras == {"vllm"}


def test_a_checkout_is_installed_again_and_the_command_is_found_in_an_error() -> None:
    assert install("vllm") == f'pip install -e "{ROOT}[vllm]"'
    told = Missing.from_error(UserError(f"engine=vllm needs vLLM: {install('vllm')} (vllm>=1)"))
    assert (told.what, told.mends) == ("engine=vllm needs vLLM", install("vllm"))


def test_what_commands_a_terminal_is_written_out() -> None:
    assert safe("a\x1b[31m\u202eb\r\n\u00e9\U0001f372") == "a\\x1b[31m\\u202eb\\r\n\u00e9\U0001f372"


def test_lines_end_between_words_and_keep_their_inset() -> None:
    assert fitted("short", 80) == "short"
    assert fitted("  a line of words", 9) == "  a line\n    of\n    words"
    assert fitted("cannot-be-cut-anywhere", 5) == "cannot-be-cut-anywhere"
    assert fitted("python -m souping out=x", 12, " \\").split() == ["python", "-m", "\\", "souping", "\\", "out=x"]


@pytest.mark.parametrize(
    "text",
    ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000, "[1e400]", f"[{'1' * 400}]", "[1", ""],
    ids=lambda text: text[:8],
)
def test_json_that_no_code_can_bear(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_json_that_can_be_read() -> None:
    assert read_json('{"a": [1, 2.5, "x", null, {"b": []}]}') == {"a": [1, 2.5, "x", None, {"b": []}]}
    assert read_json("[" * 100 + "]" * 100)
    assert read_json("[0.0, Infinity]") == [0.0, float("inf")]  # as the configs of some state-space models have it
