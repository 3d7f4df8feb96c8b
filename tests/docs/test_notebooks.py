"""The notebooks run, and print what they carry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.scripts import script

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOKS = ("tour", "own_models", "paper", "reading")


def kept(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def check(name: str, folder: Path, before: list[Any], after: list[Any]) -> None:
    """Published figures are as they are kept; a run is whole, and its soup came out again from the recipe."""
    count = {"paper": len(after), "tour": 5}.get(name, 0)
    assert [text(cell) for cell in after[:count]] == [text(cell) for cell in before[:count]]
    if name == "tour":
        (run,) = (folder / "tmp").glob("*/run")
        assert json.loads((run / "report.json").read_text())["verdict"]["sentence"] in text(
            after[8]
        )
        first, again = re.findall(r"^(?:soup|again) +([0-9a-f]{16})$", text(after[9]), re.MULTILINE)
        assert first == again
    if name == "reading":
        (line,) = re.findall(r"sum ([\d.]+) = v\(all\) - baseline ([\d.]+)", text(after[2]))
        assert line[0] == line[1]
    if name == "own_models":
        assert not any(cell.outputs or cell.source.startswith(("!", "%")) for cell in before)
        assert "model.safetensors" in str(after[-1].outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_prints_what_it_carries(name: str, tmp_path: Path) -> None:
    before = cells(kept(name))
    notebook = kept(name)
    for cell in cells(notebook):
        cell.outputs = []
    after = cells(script(ROOT / "notebooks" / "refresh.py").execute(notebook, tmp_path))
    assert list((tmp_path / "start").iterdir()) == []
    if name != "own_models":
        assert [pictures(cell) for cell in after] == [pictures(cell) for cell in before]
    check(name, tmp_path, before, after)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_names_no_machine(name: str) -> None:
    notebook = kept(name)
    raw = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    assert len(raw) < 250_000
    plain = re.sub(r'"image/png": "[^"]*"', "", raw)
    assert [
        trace
        for trace in ("/" + "work", "/tmp", "/home", "/root", "site-packages", "../")
        if trace in plain
    ] == []
    assert not any("execution_count" in cell and cell.execution_count for cell in cells(notebook))
    assert not any(
        output.output_type == "error" for cell in cells(notebook) for output in cell.outputs
    )
    assert all(cell.outputs for cell in cells(notebook)) == (name != "own_models")
    if name == "tour":
        digest = script(ROOT / "notebooks" / "refresh.py").models_digest()
        assert notebook.metadata["souping"]["models"] == digest, "run: python notebooks/refresh.py"
