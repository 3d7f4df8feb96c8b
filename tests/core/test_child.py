"""Calls in a child process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from souping.core.child import call
from souping.core.files import expanded
from souping.core.types import UserError
from tests.conftest import ROOT


def counting(limit: int, report: Callable[[int, int], None]) -> str:
    for number in range(limit):
        report(number, limit)
    return "counted"


def test_a_result_and_reports_come_back() -> None:
    seen: list[tuple[int, int]] = []
    assert (
        call(counting, (3,), seconds=600, report=lambda *counts: seen.append(counts)) == "counted"
    )
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert call(math.hypot, (3, 4), seconds=600) == 5.0


def test_errors_come_back_by_their_kind() -> None:
    with pytest.raises(UserError, match="~nosuchuser"):
        call(expanded, ("~nosuchuser/x",), seconds=600)
    with pytest.raises(RuntimeError, match="math domain error"):
        call(math.sqrt, (-1,), seconds=600)
    with pytest.raises(MemoryError):
        call(bytearray, (1 << 40,), seconds=600)
    with pytest.raises(MemoryError):  # the child is gone without a word
        call(os._exit, (9,), seconds=600)


class Attack:
    """Value whose pickle names a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("made",)


def test_a_reply_of_a_child_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MemoryError):  # as if it had sent nothing
        call(Attack, (), seconds=600)
    assert not list(tmp_path.iterdir())


def test_a_call_that_does_not_end_is_ended() -> None:
    with pytest.raises(TimeoutError):
        call(time.sleep, (3600,), seconds=0.1)


def test_a_child_ends_with_its_caller() -> None:
    code = (
        "import time; from souping.core.child import call; call(time.sleep, (3600,), seconds=3600)"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not (children := psutil.Process(caller.pid).children()):
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    psutil.wait_procs(children, timeout=600)
    assert not any(child.is_running() for child in children)
