"""What only some systems have, texts for people, and calls in a child process."""

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

from souping import LocalEvaluator
from souping.core import system
from souping.core.child import call
from souping.core.files import expanded
from souping.core.text import install, safe
from souping.core.types import UserError
from tests.conftest import ROOT, Cli


def test_a_checkout_installs_its_extras_and_a_package_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install.cache_clear()
    assert install("ray") == f'pip install -e "{ROOT}[ray]"'
    needed = ["wandb>=0.19", 'ray<3,>=2.40; extra == "ray"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    install.cache_clear()
    assert install("ray") == 'pip install "ray<3,>=2.40"'
    assert install("wandb") == 'pip install "wandb"'
    install.cache_clear()


def merged(souping: Cli, family: Path, tmp_path: Path, out: str) -> dict[str, bytes]:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    done = souping("+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", f"out={out}")
    assert done.code == 0, done.err
    return {
        path.name: path.read_bytes()
        for path in (tmp_path / out).iterdir()
        if path.name != "README.md"
    }


def test_a_soup_without_it(family: Path, souping: Cli, tmp_path: Path) -> None:
    whole = merged(souping, family, tmp_path, "whole")
    for name in ("posix_fallocate", "posix_fadvise", "preadv", "shm"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "shm":
                patch.setattr("souping.pipeline.models.SHARED_MEMORY", tmp_path / "absent")
            else:
                patch.delattr(os, name)
            assert merged(souping, family, tmp_path, f"without-{name}") == whole, name


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (system.cores(), LocalEvaluator().resolved_threads) == (3, 3)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (system.cores(), LocalEvaluator().resolved_threads) == (64, 8)


def test_what_commands_a_terminal_is_written_out() -> None:
    assert safe("a\x1b[31m\u202eb\r\n\u00e9\U0001f372") == "a\\x1b[31m\\u202eb\\r\n\u00e9\U0001f372"


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


def test_what_a_child_sends_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MemoryError):  # as if it had sent nothing
        call(Attack, (), seconds=600)
    assert not list(tmp_path.iterdir())


def test_one_that_does_not_end_is_ended() -> None:
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
