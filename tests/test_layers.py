"""The house: imports never go up; heavy packages wait, files and functions stay small, names are one.

Every import of every file counts, inside functions too; only those for type checkers (`if TYPE_CHECKING:`) load nothing
and so make no circle, but they keep the layers like all others.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "souping"
LAYERS = (
    ("core",),
    ("checkpoints",),
    ("selection", "search", "analysis", "merge", "evaluate", "report", "trackers"),
    ("pipeline", "pantry", "paper"),
    ("planning",),
    ("cli",),
)
"""Rooms from the ground up. A file imports from rooms of its own layer and of lower ones, and no circle arises."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {"torch", "hydra", "omegaconf", "transformers", "accelerate", "wandb", "nevergrad", "matplotlib", "numba"}
HEAVY |= {"scipy", "lm_eval", "vllm", "peft", "mergekit", "pydantic", "huggingface_hub"}
FORBIDDEN = ("Kitchen", "Hob", "Shelf", "Table", "Larder", "Bench", "Hand", "Stand")
"""Names of classes that say nothing of what they hold."""


def sources(root: Path) -> dict[str, ast.Module]:
    """{dotted module: its syntax tree} of a package."""
    files = sorted(root.rglob("*.py"))
    return {dotted(path.relative_to(root.parent)): ast.parse(path.read_text()) for path in files}


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def walk(node: ast.AST, *, functions: bool = True, typing: bool = True) -> Iterator[ast.AST]:
    """All nodes below; without `functions` only those that run on import, without `typing` only those that ever run."""
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if (typing_only(child) and not typing) or (inner and not functions):
            continue
        yield child
        yield from walk(child, functions=functions, typing=typing)


def imported(nodes: Iterator[ast.AST], modules: Mapping[str, ast.Module]) -> Iterator[str]:
    """Modules that are imported; `from package import module` names the module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else str(node.module)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def upward(modules: Mapping[str, ast.Module]) -> list[str]:
    """Imports from a room of a higher layer."""
    wrong = []
    for module, tree in modules.items():
        own = room(module)
        if own in ("", "__main__", "testing"):  # the package, its entry and the checks for users stand above all rooms
            continue
        for name in imported(walk(tree), modules):
            other = room(name) if name.split(".")[0] == "souping" else own
            if other != own and LEVEL.get(other, len(LAYERS)) > LEVEL[own]:
                wrong.append(f"{module} imports {name}")
    return wrong


def circle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Modules that need one another to be imported, empty where there are none; a package runs before its modules."""
    needs = {module: needed(module, tree, modules) for module, tree in modules.items()}
    while True:
        free = {module for module, others in needs.items() if not others & set(needs)}
        if not free:
            return sorted(needs)
        needs = {module: others for module, others in needs.items() if module not in free}


def needed(module: str, tree: ast.Module, modules: Mapping[str, ast.Module]) -> set[str]:
    names = set(imported(walk(tree, typing=False), modules)) & set(modules)
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    outside = {parent for parent in parents if not f"{module}.".startswith(f"{parent}.")}
    return (names | outside) - {module}


MODULES = sources(PACKAGE)
FUNCTIONS = [
    (module, node)
    for module, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def test_imports_never_go_up() -> None:
    assert upward(MODULES) == []


def test_no_import_circle() -> None:
    assert circle(MODULES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("souping.core.text", "from souping.checkpoints import pool"),
        ("souping.report.plots", "def late():\n    from souping.pipeline import store"),
        ("souping.merge.plan", "if TYPE_CHECKING:\n    from souping.pipeline.settings import RunSettings"),
        ("souping.pipeline.store", "import souping.planning.planner"),
    ],
    ids=["up", "in a function", "for types", "import"],
)
def test_a_planted_import_is_found(module: str, line: str) -> None:
    planted = {**MODULES, module: ast.parse(line)}
    assert [wrong.split()[0] for wrong in upward(planted)] == [module]


def test_a_planted_circle_is_found() -> None:
    back = ast.parse("def late():\n    import souping.merge.writer")
    assert "souping.merge.plan" in circle({**MODULES, "souping.merge.plan": back})


def test_paths_are_expanded_in_one_place() -> None:
    """`Path.expanduser` raises a RuntimeError that nobody expects: `core.files.expanded` names the path and its key."""
    there = [p.name for p in PACKAGE.rglob("*.py") if ".expanduser()" in p.read_text()]
    assert sorted(there) == ["files.py", "flores36.py"]  # the latter is a task of lm_eval and imports nothing of ours


def test_the_tree_is_small() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "conf")]
    assert len(entries) <= 18, entries  # `testing.py` is for users
    outside = {"__init__.py", "__main__.py", "__pycache__", "conf", "py.typed", "testing.py"}
    assert set(LEVEL) == {path.stem for path in PACKAGE.iterdir() if path.name not in outside}  # one may be a file
    assert len(MODULES) <= 213


def test_files_and_functions_stay_small() -> None:
    assert {str(p): n for p in PACKAGE.rglob("*.py") if (n := p.read_text().count("\n")) > 500} == {}
    lengths = {f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1 for module, node in FUNCTIONS}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median((node.end_lineno or 0) - node.lineno + 1 for _, node in FUNCTIONS) <= 8


def test_everything_is_annotated_and_takes_no_leftovers() -> None:
    assert [f"{module}.{node.name}" for module, node in FUNCTIONS if node.returns is None] == []
    assert [f"{m}.{n.name}" for m, n in FUNCTIONS if n.args.kwarg is not None and room(m) != "cli"] == []


def test_names_are_one() -> None:
    names = [(node.name, m) for m, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    count = Counter(name for name, _ in names)
    assert {name: [m for n, m in names if n == name] for name, number in count.items() if number > 1} == {}
    assert [name for name in count if name in FORBIDDEN] == []


def test_members_are_named_by_protocols_not_guessed() -> None:
    """`getattr` and `hasattr` with a literal name are for objects that are not ours, and say whose they are."""
    guess = re.compile(r"\b(getattr|hasattr)\([^,]+, \"\w+\"")
    lines = [(path, line) for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()]
    assert [f"{path.name}: {line.strip()}" for path, line in lines if guess.search(line) and "#" not in line] == []
    dispatch = re.compile(r"__name__ (==|in) |_target_\W+ (==|!=)")
    assert [line for _, line in lines if dispatch.search(line) and "#" not in line and "__main__" not in line] == []


def test_types_are_said() -> None:
    """Fewer than 60 places where a type is left open, by any of the ways there are."""
    open_ended = re.compile(r": Any\b|: object\b|\bcast\(|type: ignore")
    count = sum(len(open_ended.findall(path.read_text())) for path in PACKAGE.rglob("*.py"))
    assert count < 60


def test_no_alias_tells_homonyms_apart() -> None:
    aliases = [
        f"{module}: {alias.name} as {alias.asname}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("souping")
        for alias in node.names
        if alias.asname
    ]
    assert aliases == []


@pytest.mark.parametrize("module", MODULES)
class TestEveryFile:
    def test_heavy_packages_wait(self, module: str) -> None:
        if room(module) == "cli" or module.endswith("__main__"):
            return
        nodes = walk(MODULES[module], functions=False, typing=False)
        assert not {name.split(".")[0] for name in imported(nodes, MODULES)} & HEAVY

    def test_hydra_lives_at_the_door(self, module: str) -> None:
        roots = {name.split(".")[0] for name in imported(walk(MODULES[module]), MODULES)}
        assert room(module) == "cli" or not roots & {"hydra", "omegaconf"}

    def test_no_trace_of_a_machine(self, module: str) -> None:
        path = ROOT / Path(*module.split("."))
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert not re.search(r"TODO|FIXME", text)
        assert "/" + "work/" not in text


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import souping", HEAVY),
        ("import souping.pipeline.run, souping.pantry, souping.trackers", HEAVY - {"pydantic"}),
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
