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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def executed(folder: Path) -> Any:
    """The notebook, run in an empty directory."""
    notebook = kept()
    for cell in cells(notebook):
        cell.outputs = []
    return refresh().execute(notebook, folder)


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_runs_and_leaves_its_directory_alone(executed: Any, folder: Path) -> None:
    assert list((folder / "start").iterdir()) == []
    assert [len(cell.outputs) > 0 for cell in cells(executed)] == [True] * 10
    assert [pictures(cell) for cell in cells(executed)] == [pictures(cell) for cell in cells(kept())]


def test_what_it_says_of_the_published_figures_is_what_it_carries(executed: Any) -> None:
    for cell, before in list(zip(cells(executed), cells(kept()), strict=True))[:5]:
        assert text(cell) == text(before)
    assert "ingredients: xLAM-2-8b-fc-r, ToolACE-2-8B, watt-tool-8B" in text(cells(executed)[2])
    assert "from 0.040 to 0.250; beyond, BitAgent-8B" in text(cells(executed)[3])


def test_the_run_in_it_is_a_whole_run(executed: Any, folder: Path) -> None:
    (run,) = (folder / "tmp").glob("*/run")
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"]["sentence"] in text(cells(executed)[8])
    assert report["cost"]["trials"] == 8
    assert f"recipe {report['recipe']['id']}" in text(cells(executed)[9])
    hashes = re.findall(r"^(?:soup|again) +([0-9a-f]{16})$", text(cells(executed)[9]), re.MULTILINE)
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
