"""What only some systems have, and texts for people."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from souping import LocalEvaluator
from souping.core import system
from souping.core.text import install, one_line, safe
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


def test_a_soup_without_a_function_of_the_system(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    whole = merged(souping, family, tmp_path, "whole")
    for name in ("posix_fallocate", "posix_fadvise", "preadv", "shm"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "shm":
                patch.setattr("souping.soups.serving.SHARED_MEMORY", tmp_path / "absent")
            else:
                patch.delattr(os, name)
            assert merged(souping, family, tmp_path, f"without-{name}") == whole, name


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (system.cores(), LocalEvaluator().machine.resolved_threads) == (3, 3)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (system.cores(), LocalEvaluator().machine.resolved_threads) == (64, 8)


def test_control_characters_are_written_out() -> None:
    assert safe("a\x1b[31m\u202eb\r\n\u00e9\U0001f372") == "a\\x1b[31m\\u202eb\\r\n\u00e9\U0001f372"
    assert one_line("a\x1b\r\n\t\u00e9") == "a\\x1b\\r\\n\\t\u00e9"
