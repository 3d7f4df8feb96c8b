"""The tour runs from any directory with the package alone, and the outputs it carries are its own."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
TOUR = ROOT / "notebooks" / "tour.ipynb"


def refresh() -> ModuleType:
    found = importlib.util.spec_from_file_location("refresh", ROOT / "notebooks" / "refresh.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def kept() -> Any:
    return nbformat.read(TOUR, as_version=4)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.slow
def test_it_runs_and_says_what_it_carries(tmp_path: Path) -> None:
    """One test, not three on one fixture: parallel workers would each run the notebook."""
    before, notebook = cells(kept()), kept()
    for cell in cells(notebook):
        cell.outputs = []
    after = cells(refresh().execute(notebook, tmp_path))
    assert list((tmp_path / "start").iterdir()) == []
    assert all(cell.outputs for cell in after)
    assert [pictures(cell) for cell in after] == [pictures(cell) for cell in before]
    assert [text(cell) for cell in after[:5]] == [text(cell) for cell in before[:5]]  # the published figures
    assert "ingredients: xLAM-2-8b-fc-r, ToolACE-2-8B, watt-tool-8B" in text(after[2])
    assert "from 0.040 to 0.250; beyond, BitAgent-8B" in text(after[3])
    check_run(tmp_path, after)


def check_run(folder: Path, after: list[Any]) -> None:
    """The run that the notebook made is whole, and its soup came out again from the recipe."""
    (run,) = (folder / "tmp").glob("*/run")
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"]["sentence"] in text(after[8])
    assert report["cost"]["trials"] == 8
    assert f"recipe {report['recipe']['id']}" in text(after[9])
    hashes = re.findall(r"^(?:soup|again) +([0-9a-f]{16})$", text(after[9]), re.MULTILINE)
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_its_outputs_are_kept_small_and_belong_to_these_models() -> None:
    notebook, raw = kept(), TOUR.read_text()
    assert len(cells(notebook)) == 10
    assert all(cell.outputs for cell in cells(notebook))
    assert not any(output.output_type == "error" for cell in cells(notebook) for output in cell.outputs)
    assert len(raw) < 250_000
    assert notebook.metadata["souping"]["models"] == refresh().models_digest(), "run: python notebooks/refresh.py"


def test_it_names_no_machine_and_no_repository() -> None:
    raw = re.sub(r'"image/png": "[^"]*"', "", TOUR.read_text())
    for trace in ("/" + "work", "/tmp", "/home", "/root", "site-packages", "../"):
        assert trace not in raw
    assert not any("execution_count" in cell and cell.execution_count for cell in cells(kept()))


@pytest.mark.slow
def test_own_models_run_without_a_shell(tmp_path: Path) -> None:
    """The short one: a run and a merge by the library alone, as it stands in the file."""
    path = ROOT / "notebooks" / "own_models.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.outputs or cell.source.startswith(("!", "%")) for cell in cells(notebook))
    after = cells(refresh().execute(notebook, tmp_path))
    assert "RunResult(" in str(after[1].outputs)
    assert "model.safetensors" in str(after[-1].outputs)


@pytest.mark.parametrize("name", ["paper", pytest.param("reading", marks=pytest.mark.slow)])
def test_another_runs_and_says_what_it_carries(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    before = [(text(cell), pictures(cell)) for cell in cells(notebook)]
    for cell in cells(notebook):
        cell.outputs = []
    after = cells(refresh().execute(notebook, tmp_path))
    assert list((tmp_path / "start").iterdir()) == []
    assert [pictures(cell) for cell in after] == [shown for _, shown in before]
    if name == "paper":  # published figures are the same everywhere
        assert [text(cell) for cell in after] == [told for told, _ in before]
    else:
        (line,) = re.findall(r"sum ([\d.]+) = v\(all\) - v\(nobody\) ([\d.]+)", text(after[2]))
        assert line[0] == line[1]


@pytest.mark.parametrize("name", ["paper", "reading"])
def test_another_is_small_and_names_no_machine(name: str) -> None:
    raw = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    assert len(raw) < 250_000
    plain = re.sub(r'"image/png": "[^"]*"', "", raw)
    for trace in ("/" + "work", "/tmp", "/home", "/root", "site-packages", "../"):
        assert trace not in plain
    notebook = nbformat.reads(raw, as_version=4)
    assert all(cell.outputs for cell in cells(notebook))
    assert not any(output.output_type == "error" for cell in cells(notebook) for output in cell.outputs)
