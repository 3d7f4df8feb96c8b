"""The layers hold: imports go down only, heavy packages are imported at call time, files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "souping").rglob("*.py"))
LEVEL = {"core": 0, "protocols": 0, "simplex": 0, "bfcl_tree": 1, "linked": 1}
LEVEL |= dict.fromkeys(
    [
        "scores",
        "correlation",
        "benchmark",
        "objective",
        "scorers",
        "calls",
        "matching",
        "syntax",
        "values",
        "names",
        "arguments",
    ],
    1,
)
LEVEL |= dict.fromkeys(
    ["selection", "optimise", "merge", "evaluate", "analysis", "report", "track", "store", "folds", "pantry"], 2
)
LEVEL["smollm"] = 2
LEVEL |= dict.fromkeys(["evaluation", "evidence", "kitchen", "merging", "search", "serving", "session", "pipeline"], 3)
LEVEL |= dict.fromkeys(["supply", "upload"], 3)
LEVEL |= dict.fromkeys(["adopting", "also", "gate", "planning", "records", "run"], 3)
LEVEL |= {"cli": 4, "config": 4, "__main__": 4}
HEAVY = {"torch", "hydra", "omegaconf", "transformers", "accelerate", "wandb", "nevergrad", "matplotlib", "numba"}
HEAVY |= {"scipy", "lm_eval", "vllm", "peft", "mergekit", "tree_sitter", "pydantic", "huggingface_hub"}
DOORS = {"souping/cli/import_results.py"}
"""Entries of their own that compose a run as `cli` does: they stand above everything."""
ENTRY = {"souping/merge/__main__.py", "souping/examples/pantry/__main__.py"}


def module(path: Path) -> str:
    if str(path.relative_to(ROOT)) in DOORS:
        return "__main__"
    return path.relative_to(ROOT / "souping").parts[0].removesuffix(".py")


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def walk(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """Nodes that run: all of them, or those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if typing_only(child) or (inner and not into_functions):
            continue
        yield child
        yield from walk(child, into_functions)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "souping":
            yield from (f"souping.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
class TestEveryFile:
    def test_imports_go_down(self, path: Path) -> None:
        own = module(path)
        if own == "__init__":
            return
        for name in imported(walk(ast.parse(path.read_text()), into_functions=True)):
            if not name.startswith("souping."):
                continue
            other = name.split(".")[1]
            sibling = LEVEL[own] == 2 and LEVEL[other] == 2 and own != other and (own, other) != ("report", "analysis")
            assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which lies above"
            assert not sibling, f"{own} imports its sibling {other}"

    def test_heavy_packages_wait(self, path: Path) -> None:
        if module(path) in ("cli", "config") or str(path.relative_to(ROOT)) in ENTRY:
            return
        roots = {name.split(".")[0] for name in imported(walk(ast.parse(path.read_text()), into_functions=False))}
        assert not roots & HEAVY

    def test_hydra_lives_at_the_door(self, path: Path) -> None:
        roots = {name.split(".")[0] for name in imported(walk(ast.parse(path.read_text()), into_functions=True))}
        assert module(path) in ("cli", "config") or not roots & {"hydra", "omegaconf"}

    def test_files_and_functions_stay_small(self, path: Path) -> None:
        text = path.read_text()
        assert text.count("\n") <= 250
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, node.name
                assert node.returns is not None, node.name
                assert node.args.kwarg is None or module(path) == "cli", f"{node.name} takes **"

    def test_no_trace_of_a_machine(self, path: Path) -> None:
        text = path.read_text()
        assert "TODO" not in text
        assert "/" + "work/" not in text


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import souping", HEAVY),
        ("import souping.pipeline.run, souping.examples.pantry, souping.trackers", HEAVY - {"pydantic"}),
        (
            "import sys; sys.argv=['souping','--help']\n"
            "try:\n  import souping.cli.main; souping.cli.main.main()\nexcept SystemExit: pass",
            HEAVY - {"hydra", "omegaconf"},
        ),
    ],
    ids=["import", "pipeline", "help"],
)
def test_importing_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    check = f"{code}\nimport sys; print('|'.join(sorted(set(sys.modules) & {absent!r})))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == ""
