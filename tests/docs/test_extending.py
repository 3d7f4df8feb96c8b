"""docs/extending.md, followed: its files written as it says, its commands run, its method used."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, pool_of

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = re.findall(r"```bash\npython -m souping (.*?)\n```", PAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "souping", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_selector(folder: Path) -> None:
    table = ROOT / "souping" / "examples" / "paper" / "bfcl_8b.csv"
    names = "[xLAM-2-8b-fc-r,ToolACE-2-8B,watt-tool-8B,BitAgent-8B,CoALM-8B]"
    said = run(folder, *shlex.split(COMMANDS[0]), "scores=table", f"scores.path={table}", f"pool.candidates={names}")
    assert "CoALM" not in said
    assert "BitAgent-8B" in " ".join(said.split())


def test_all_parts_together(folder: Path, family: Path) -> None:
    own = [word for word in pool_of(family) if not word.startswith("evaluator.")]
    parts = [word for word in shlex.split(COMMANDS[1]) if word != "+experiment=bfcl"]
    run(folder, *parts, *own, "hydra.run.dir=run")
    assert (folder / "run" / "report.json").exists()
    assert "my_evaluator.AnswerProbability" in (folder / "run" / "config.yaml").read_text()
    assert len((folder / "trials.jsonl").read_text().splitlines()) >= 1


def test_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    from souping.merge import methods

    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "METHODS" in b)
    exec(compile(block, "extending.md", "exec"), {})
    tensors = [np.full(4, value, np.float32) for value in (1, 2, 9)]
    assert (methods.get_method("median")(tensors, (0.2, 0.3, 0.5)) == 2).all()
