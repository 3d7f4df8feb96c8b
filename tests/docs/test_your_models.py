"""docs/your-models.md, followed word by word: its commands run in order, and print what the page shows.

The three models are bundled ones under other names. Numbers are masked: their last digits may differ elsewhere.
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
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "your-models.md").read_text()
FIRST = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()
SESSIONS = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
CATEGORIES = {"simple_python": "python", "simple_java": "java", "parallel": "parallel", "irrelevance": "refuse"}
MODELS = {"python": "python_cook", "script": "script_cook", "banquet": "banquet_cook"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page: `runs` with three models, and `items.jsonl` with 50 items per category."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "runs").mkdir()
    for name, model in MODELS.items():
        (folder / "runs" / name).symlink_to(pantry.path(model))
    rows = [json.loads(line) for line in pantry.path("items").read_text().splitlines()]
    chosen = [row for category in CATEGORIES for row in [r for r in rows if r["category"] == category][:50]]
    lines = [json.dumps({**row, "category": CATEGORIES[row["category"]]}) for row in chosen]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(place: Path, command: str) -> str:
    """What a command of the page prints, run by a shell in its folder with the page's own variables."""
    exports = [line for line in FIRST if line.startswith("export ")]
    script = "\n".join([f'python() {{ {shlex.quote(sys.executable)} "$@"; }}', *exports, command])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def masked(text: str) -> list[str]:
    """Lines without numbers, times and runs of white space; without empty lines and dots."""
    times = re.sub(r"(\d+ h )?(\d+ min )?\d[\d.]* (s|min)\b", "TIME", text)
    plain = [" ".join(re.sub(r"[-+\u2212]?\d[\d.,]*", "#", line).split()) for line in times.splitlines()]
    return [line for line in plain if line and line != "..."]


@pytest.mark.slow
def test_the_ten_lines_run_and_print_what_the_page_shows(place: Path) -> None:
    assert len(FIRST) <= 10
    shown = {command: masked(text) for command, text in SESSIONS}
    own = [line.split("  #")[0].strip() for line in FIRST]
    assert set(shown) <= {*own}
    for line in own[1:]:  # CI runs the first, pip install; here souping is on the path
        printed = run(place, line)
        rest = iter(masked(printed))
        for expected in shown.get(line, []):
            assert any(expected in one for one in rest), f"{expected!r} is missing or out of order:\n{printed}"
    names = {path.name for path in (place / "soup").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "recipe.json"} <= names
    assert json.loads(next(place.glob("outputs/mine/*/report.json")).read_text())["verdict"]["sentence"]
