"""README.md, followed: its lines of Python run in an empty folder, as after its install command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import souping
from tests.conftest import ROOT
from tests.support.pages import README, blocks

(LINES,) = blocks(README, "python")


def test_the_lines_of_python_are_few_and_use_what_the_library_promises() -> None:
    code = [line for line in LINES.splitlines() if line and "import" not in line]
    assert len(code) <= 5
    for name in ("soup", "run", "compare"):
        assert f"souping.{name}(" in LINES
        assert name in souping.__all__


@pytest.mark.slow
def test_the_lines_of_python_run_in_an_empty_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LINES], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "soup is better than python" in done.stdout
    for name in ("average/model.safetensors", "run/report.html", "run/soup/model.safetensors"):
        assert (tmp_path / name).is_file()
