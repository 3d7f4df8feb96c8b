"""docs/your-own-models.md, followed word by word: its commands run in order, and say what the page shows of them.

The three models are of the pantry under other names. Figures are masked: they may differ in the last digit elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from souping import pantry
from souping.cli.config import compose
from souping.evaluate.benchmark import Benchmark
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "your-own-models.md").read_text()
FIRST = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()
SESSIONS = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
CATEGORIES = {"simple_python": "python", "simple_java": "java", "parallel": "parallel", "irrelevance": "refuse"}
COOKS = {"python": "python_cook", "script": "script_cook", "banquet": "banquet_cook"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page: `runs` with three models, and `items.jsonl` with 50 items a category."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "runs").mkdir()
    for name, cook in COOKS.items():
        (folder / "runs" / name).symlink_to(pantry.path(cook))
    rows = [json.loads(line) for line in pantry.path("items").read_text().splitlines()]
    chosen = [row for category in CATEGORIES for row in [r for r in rows if r["category"] == category][:50]]
    lines = [json.dumps({**row, "category": CATEGORIES[row["category"]]}) for row in chosen]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(place: Path, command: str) -> str:
    """What a command of the page prints, run by a shell in its folder with the page's own variables."""
    exports = [line for line in FIRST if line.startswith("export ")]
    python = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = "\n".join([python, *exports, command])
    done = subprocess.run(["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def masked(text: str) -> str:
    """A line without figures, signs, times and runs of white space."""
    text = re.sub(r"(\d+ h )?(\d+ min )?\d[\d.]* (s|min)\b", "TIME", text)
    return " ".join(re.sub(r"[-+\u2212]?\d[\d.,]*", "#", text).split())


def shown(page: str) -> list[str]:
    return [line for line in map(masked, page.splitlines()) if line and line != "..."]


@pytest.mark.slow
def test_from_pip_to_a_soup_in_at_most_ten_lines(place: Path) -> None:
    assert len(FIRST) <= 10
    assert FIRST[0].startswith("pip install -e . ")  # CI runs it; here souping is on the path
    for line in FIRST[1:]:
        said = run(place, line)
        if line.startswith("ls runs"):
            assert said.split() == sorted(COOKS) == line.partition("#")[2].partition(":")[0].split()
    assert {"config.json", "model.safetensors", "README.md", "recipe.json"} <= {
        p.name for p in (place / "soup").iterdir()
    }
    assert json.loads(next(place.glob("outputs/mine/*/report.json")).read_text())["verdict"]["sentence"]


@pytest.mark.parametrize(("command", "page"), SESSIONS, ids=[command.split(" -")[1][:24] for command, _ in SESSIONS])
@pytest.mark.slow
def test_a_command_says_what_the_page_shows(place: Path, command: str, page: str) -> None:
    """After the ten lines, whose answers are in the store."""
    said = [masked(line) for line in run(place, command.replace("out=soup", "out=again")).splitlines()]
    rest = iter(said)
    for line in shown(page):
        assert any(line in own for own in rest), f"{line!r} is not there, or not in this order:\n" + "\n".join(said)


def test_the_sessions_are_the_ten_lines() -> None:
    own = [line.split("  #")[0].strip() for line in FIRST]
    assert sum(command in own for command, _ in SESSIONS) == 3


def test_its_items_load_and_its_other_commands_compose(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)[0])
    assert [item.scorer for item in Benchmark(path=str(tmp_path / "items.jsonl")).items()] == [
        "contains",
        "number",
        "choice",
    ]
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)[1:] for line in block.splitlines()
    ]
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m souping ")]
    assert len(commands) == 2
    for words in commands:
        compose(words)
