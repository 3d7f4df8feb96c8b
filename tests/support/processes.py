"""What tests of processes ask: who lives in a group, whether it is gone, and what a file says once it is there."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import ROOT


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def gone(group: int, seconds: float = 600.0) -> bool:
    end = time.monotonic() + seconds
    while members(group) and time.monotonic() < end:
        time.sleep(0.05)
    return not members(group)


def wait_for(path: Path, seconds: float = 600.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text().strip()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    differing = ("cost", "provenance", "rebuild")
    return {key: value for key, value in report.items() if key not in differing}


def rows_in(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT COUNT(*) FROM scores").fetchone()[0])
    except sqlite3.Error:
        return 0


def killed_at(rows: int, words: Sequence[str], folder: Path) -> int:
    victim = subprocess.Popen(
        [sys.executable, "-m", "souping", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = folder / "outputs/store.sqlite"
    while victim.poll() is None and rows_in(store) < rows:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    kept = rows_in(store)
    assert kept >= rows
    return kept
