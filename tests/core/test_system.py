"""What only some systems have: with its name taken away, its work is done otherwise and a soup is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from souping import LocalEvaluator
from souping.core import system
from tests.conftest import ROOT, Cli


def merged(souping: Cli, family: Path, tmp_path: Path, out: str) -> dict[str, bytes]:
    pool = f"pool.candidates=[{family / 'ant'},{family / 'bee'}]"
    done = souping("+experiment=merge", pool, "optimiser.weights=[0.5,0.5]", f"out={out}")
    assert done.code == 0, done.err
    return {path.name: path.read_bytes() for path in (tmp_path / out).iterdir() if path.name != "README.md"}


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


def test_windows_is_told_of_wsl() -> None:
    code = "import sys; sys.platform = 'win32'; import souping"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "WSL" in done.stderr.splitlines()[-1]
