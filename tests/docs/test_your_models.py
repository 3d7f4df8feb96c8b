"""docs/your-models.md names messages that exist, and the parts of docs/extending.md do what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from souping.evaluate.benchmark import Benchmark
from souping.evaluate.scoring import score
from tests.conftest import ROOT, pool_of

PAGE = (ROOT / "docs" / "your-models.md").read_text()


def test_the_package_has_the_messages_that_the_page_explains() -> None:
    table = PAGE.partition("## Troubleshooting")[2].partition("|---|---|")[2].partition("\n\n")[0]
    causes = "".join(re.findall(r"^\|(.*?)\|", table, flags=re.MULTILINE))
    quoted = re.findall("`([^`]+)`", causes)
    sources = [path.read_text() for path in (ROOT / "souping").rglob("*.py")]
    assert len(quoted) > 5
    for message in quoted:
        for part in message.split(" ... "):
            assert any(part in source for source in sources), message


NAMED = r"```(?:python|yaml)\n((?:# @package \S+\n)?# (\S+\.(?:py|yaml))\n.*?)```"
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
FILES = {name: text for text, name in re.findall(NAMED, EXTENDING, flags=re.DOTALL)}
"""As they are printed, with their names"""
WEIGHTS = "model.safetensors"
COMMANDS = re.findall(r"```bash\npython -m souping (.*?)\n```", EXTENDING)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run_in(folder: Path, *arguments: str, expect: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "souping", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    return done.stderr if expect else done.stdout


def command(part: str) -> list[str]:
    """The command of the page that names this part, first of several."""
    return shlex.split(next(line for line in COMMANDS if part in line))


TABLE = [
    "scores=table",
    "scores.path=${data:paper/bfcl_8b.csv}",
    "pool.candidates=[xLAM-2-8b-fc-r,ToolACE-2-8B,watt-tool-8B,BitAgent-8B,CoALM-8B]",
]
"""Selects from published scores, so that nothing is evaluated."""


def test_the_selector_of_the_page_chooses_the_models_above_the_median(folder: Path) -> None:
    said = run_in(folder, *command("selector=above_median"), *TABLE)
    assert "CoALM" not in said
    assert "BitAgent-8B" in " ".join(said.split())


@pytest.mark.slow
def test_a_scorer_and_a_judge(folder: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({**row, "scorer": "brief"}) + "\n" for row in rows)
    )
    own = [word for word in pool_of(family, "ant", "bee") if not word.startswith("benchmark.")]
    words = [word for word in command("my_scorers.brief") if not word.startswith("pool.")]
    run_in(
        folder,
        *words,
        *own,
        "selector=all",
        "optimiser=uniform",
        "stop_after=search",
        "dry_run=2",
        "hydra.run.dir=run",
    )
    assert "my_scorers.brief" in (folder / "run" / "config.yaml").read_text()
    monkeypatch.syspath_prepend(str(folder))
    assert import_module("my_judge").helpful.fingerprint
    line = next(
        block
        for block in re.findall(r"```json\n(.*?)```", EXTENDING, flags=re.DOTALL)
        if "brief" in block
    )
    (folder / "one.jsonl").write_text(line)
    (one,) = Benchmark(
        path=str(folder / "one.jsonl"), scorers={"brief": "my_scorers.brief"}
    ).items()
    assert [score(one, text) for text in ("It is Paris", "I do think it is Paris")] == [1.0, 0.0]


@pytest.mark.slow
def test_a_method_and_its_rebuild(folder: Path, family: Path) -> None:
    three = "[" + ",".join(str(family / name) for name in ("ant", "bee", "cat")) + "]"
    words = [
        f"pool.candidates={three}" if word.startswith("pool.") else word
        for word in command("merge=median")
    ]
    run_in(folder, *words)
    card = (folder / "soup" / "README.md").read_text()
    again = re.findall(r"```bash\n(.*?)```", card, flags=re.DOTALL)[-1]
    # The card's command is run as it stands, by a shell that is in another folder.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-c", f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n{again}']
    subprocess.run(shell, cwd=folder / "soup", env=environment, check=True)
    assert (folder / "rebuilt" / WEIGHTS).read_bytes() == (folder / "soup" / WEIGHTS).read_bytes()
    arguments = shlex.split(again.partition("-m souping")[2])
    other = [word for word in arguments if not word.startswith("out=")]
    without = [word for word in other if not word.startswith("merge.")]
    refused = run_in(folder, *without, "out=no", expect=2)
    assert "median is not a method of souping" in refused
    (folder / "my_merge.py").write_text(FILES["my_merge.py"] + "\n")
    assert "the file has changed" in run_in(folder, *other, "out=no", expect=2)


@pytest.mark.slow
def test_the_selector_works_from_an_installed_package(folder: Path) -> None:
    package = folder / "my_parts"
    (package / "conf" / "selector").mkdir(parents=True)
    for place in (package, package / "conf", package / "conf" / "selector"):
        (place / "__init__.py").write_text("")
    (folder / "my_parts.py").rename(package / "parts.py")
    moved = FILES["parts/selector/above_median.yaml"].replace("my_parts.", "my_parts.parts.")
    (package / "conf" / "selector" / "above_median.yaml").write_text(moved)
    words = [
        word for word in command("selector=above_median") if word not in ("--config-dir", "parts")
    ]
    (search,) = re.findall(r"`'(hydra\.searchpath=.*?)'`", EXTENDING)
    assert "BitAgent-8B" in " ".join(run_in(folder, *words, *TABLE, search).split())
