"""What the top tells of an error, by its kind: the exit status, and what the first line names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from souping.cli import config
from souping.cli.errors import tell
from souping.core.types import UserError


def test_an_error_of_the_users_is_told_as_it_is() -> None:
    assert tell(UserError("optimiser.step=2 is too much")) == ("optimiser.step=2 is too much", 2)


@pytest.mark.parametrize(
    ("number", "needle"),
    [(errno.ENOENT, "No such file"), (errno.ENOSPC, "make room"), (errno.EMFILE, "ulimit"), (errno.EACCES, "denied")],
)
def test_an_error_of_the_file_system_names_the_file_and_what_to_do(number: int, needle: str, tmp_path: Path) -> None:
    words, code = tell(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert code == 2
    assert words.startswith(f"{tmp_path}/file: ")
    assert needle in words


def test_a_file_that_a_key_names_is_told_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "CHECKED", {"benchmark": {"path": "none.jsonl"}})
    with pytest.raises(OSError, match=r"none\.jsonl") as caught:
        (tmp_path / "none.jsonl").read_text()
    words, code = tell(caught.value)
    assert (words.partition("=")[0], code) == ("benchmark.path", 2)


def test_memory_that_is_not_there_is_the_users() -> None:
    assert tell(MemoryError("no"))[1] == 2


def test_a_fault_of_this_package_keeps_its_traceback(tmp_path: Path) -> None:
    try:
        raise ZeroDivisionError("mine")
    except ZeroDivisionError as error:
        words, code = tell(error, tmp_path)
    assert (tmp_path / "traceback.txt").read_text().endswith("ZeroDivisionError: mine\n")
    assert code == 2  # the line that raised is in this file, which is a user's to souping
    assert Path(__file__).name in words
