"""benchmarks/real.py with tiny models from the local Hub: every step is a row, whatever becomes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.hub import Hub, files_of, serving

STEPS = ["download", "check", "plan", "run", "merge", "load", "upload"]


@pytest.fixture
def hub(tmp_path: Path, family: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        for name in ("ant", "bee"):
            server.add(f"org/{name}", files_of(family / name))
        yield server


def measured(place: Path, hub: Hub, *words: str) -> tuple[int, dict[str, str], str]:
    """Exit status, {step: outcome} and the page."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place / "home"),
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "real.py"), *words]
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True)
    page = (place / "real" / "page.md").read_text()
    rows = re.findall(r"^\| (\w+) \|.*\| (.+?) \|$", page, re.MULTILINE)
    return done.returncode, dict(rows[1:]), page


@pytest.mark.slow
def test_every_step_is_a_row_of_the_page(hub: Hub, family: Path, tmp_path: Path) -> None:
    items = str(family / "items.jsonl")
    status, rows, page = measured(
        tmp_path, hub, "--models", "org/ant", "org/bee", "--items", items, "selector=all"
    )
    assert list(rows) == STEPS
    assert status == 0, page
    assert rows["run"] == "done"
    assert "load on" in rows["load"]
    assert "org/ant, org/bee" in page
    assert str(tmp_path) not in page
    assert not [path for method, path, _ in hub.log if method != "GET" and "/commit/" in path]


@pytest.mark.slow
def test_a_step_that_fails_is_a_row_and_the_next_one_starts(
    hub: Hub, family: Path, tmp_path: Path
) -> None:
    items = str(family / "items.jsonl")
    status, rows, page = measured(
        tmp_path, hub, "--models", "org/ant", "org/none", "--items", items, "--hours", "0.01"
    )
    assert status == 1
    assert list(rows) == STEPS
    assert rows["run"].startswith("failed (2)")
    assert str(tmp_path) not in page
