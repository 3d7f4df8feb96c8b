"""The README keeps its word: its items load, its Python runs, its commands compose. Its links: test_docs.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from souping.evaluate.benchmark import Benchmark
from tests.conftest import ROOT, Cli

TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    plain = [re.sub(r"\s#.*", "", line).split("&&")[-1].strip() for line in lines]
    return [line for line in plain if line.startswith("python -m souping ")]


def test_the_two_commands_open_the_readme() -> None:
    first, second = blocks("bash")[0].strip().splitlines()
    assert first.startswith("pip install -e . && python -m souping +experiment=bfcl")
    assert second.startswith('pip install -e ".[dev]" && pytest')


def test_the_readmes_items_load(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(blocks("json")[0])
    items = Benchmark(path=str(tmp_path / "items.jsonl")).items()
    assert [item.scorer for item in items] == ["exact", "number", "call"]


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command: str, souping: Cli) -> None:
    words = [
        re.sub(r"(?<=\]),\[.*|(?<=\w),\w[^\]]*$", "", w) for w in shlex.split(command)[3:] if w != "-m"
    ]  # first of a sweep
    done = souping(*words, "--cfg", "job")
    assert done.code == 0, done.err
    assert "_target_" in done.out


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "xLAM-2-8b-fc-r" in capsys.readouterr().out


def test_the_table_command_picks_what_the_readme_says(souping: Cli) -> None:
    words = next(shlex.split(c)[3:] for c in commands() if "bfcl_8b.csv" in c)
    done = souping(*words)
    assert done.code == 0, done.err
    assert "selected xLAM-2-8b-fc-r, ToolACE-2-8B, watt-tool-8B" in done.out + done.err
