"""Structure of the package: imports never go up; heavy packages wait, functions stay small, names are unique.

Every import of every file counts, inside functions, for type checkers and by a text too. Only the test of heavy
packages asks what runs on import.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

import pytest

from tests.conftest import ROOT
from tests.support.count import (
    Functions,
    circles,
    imported,
    imported_by_name,
    imports,
    imports_of,
    length,
    package,
    room,
    tokens,
    uses,
)

LAYERS = (
    ("core",),
    ("statistics",),
    ("checkpoints",),
    (
        *("selection", "search", "analysis", "merge", "evaluate", "logs", "report", "trackers"),
        "trajectory",
    ),
    ("answers",),
    ("soups",),
    ("runs", "demo", "paper"),
    ("plan", "comparison"),
    ("cli",),
)
"""Rooms from the ground up. A file imports from rooms of its own layer and of lower ones; the rooms of a layer make no
circle, and neither do files."""
ABOVE = {"", "__main__", "testing"}
"""The package, its entry and the checks for users stand above all rooms."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {
    "torch",
    "hydra",
    "omegaconf",
    "transformers",
    "accelerate",
    "wandb",
    "nevergrad",
    "matplotlib",
    "numba",
}
HEAVY |= {"scipy", "lm_eval", "vllm", "peft", "mergekit", "pydantic", "httpx", "httpx2"}
"""Slow to import. huggingface_hub is not: it loads its modules, and its HTTP client, when they are used."""


@cache
def package_texts() -> dict[str, str]:
    """{module: its text} of the package; read, like what follows, by the first test and not by every worker."""
    return package(ROOT)


@cache
def package_trees() -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in package_texts().items()}


@cache
def package_lines() -> list[tuple[str, str]]:
    return [(name, line) for name, text in package_texts().items() for line in text.splitlines()]


@cache
def package_nodes() -> list[tuple[str, ast.AST]]:
    return [(name, node) for name, tree in package_trees().items() for node in ast.walk(tree)]


@cache
def package_functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [(name, node) for name, node in package_nodes() if isinstance(node, Functions)]


@cache
def package_arrows() -> dict[str, set[str]]:
    """{module: modules that it imports}"""
    return imports(package_trees())


def upward(modules: Mapping[str, ast.Module]) -> list[str]:
    """Imports from a room above, of modules and of single names."""
    wrong = []
    for module, tree in modules.items():
        own = room(module)
        if own in ABOVE:
            continue
        named = imported_by_name(module, ast.walk(tree), package_trees())
        for name in imported(ast.walk(tree), package_trees()) | named:
            other = room(name) if name.split(".")[0] == "souping" else own
            if other != own and LEVEL.get(other, len(LAYERS)) > LEVEL[own]:
                wrong.append(f"{module} imports {name}")
    return wrong


def on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported: not those in functions and `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not typing and not isinstance(child, (*Functions, ast.Lambda)):
            yield child
            yield from on_import(child)


def with_planted(module: str, line: str) -> dict[str, set[str]]:
    """{module: modules that it imports}, where one module has this text."""
    return {**package_arrows(), module: imports_of(module, ast.parse(line), package_trees().keys())}


def between_rooms(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """{room: other rooms that it imports}, of {module: modules that it imports}."""
    rooms: dict[str, set[str]] = {name: set() for name in LEVEL}
    for module, targets in arrows.items():
        own = room(module)
        if own in LEVEL:
            rooms[own] |= {room(target) for target in targets} & LEVEL.keys() - {own}
    return rooms


def test_every_room_has_a_layer() -> None:
    rooms = {room(name) for name in package_trees()}
    assert rooms - ABOVE == LEVEL.keys()


def test_imports_never_go_up_and_make_no_circle() -> None:
    assert upward(package_trees()) == []
    assert circles(package_arrows()) == []
    assert circles(between_rooms(package_arrows())) == []


def test_a_planted_circle_of_rooms_is_found() -> None:
    arrows = with_planted("souping.report.planted", "def late():\n    import souping.trackers")
    assert circles(arrows) == []
    assert circles(between_rooms(arrows)) == ["report", "trackers"]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("souping.core.text", "from souping.checkpoints import pool"),
        ("souping.report.plots", "def late():\n    from souping.answers import store"),
        ("souping.report.plots", 'def late():\n    import_module("souping.answers.store")'),
        ("souping.report.tables", 'LATER = "souping.cli.job:run"'),
        ("souping.merge.name_rules", 'LATER = ("souping.plan.planner.plan",)'),
        (
            "souping.merge.plan",
            "if TYPE_CHECKING:\n    from souping.runs.settings import RunSettings",
        ),
    ],
    ids=["up", "in a function", "by a text", "of a name", "of a dotted name", "for types"],
)
def test_a_planted_import_is_found(module: str, line: str) -> None:
    assert [wrong.split()[0] for wrong in upward({module: ast.parse(line)})] == [module]


@pytest.mark.parametrize(
    "line", ["def late():\n    import souping.merge.writer", 'LATER = "souping.merge.writer"']
)
def test_a_planted_circle_is_found(line: str) -> None:
    assert "souping.merge.plan" in circles(with_planted("souping.merge.plan", line))


def test_json_is_read_into_values_outside_logs_and_checkpoints() -> None:
    """Everywhere else `core.reading.read` makes a dataclass of a file or a reply."""
    helpers = ("part", "entries", "list_at", "texts", "finite_number")
    elsewhere = uses(package_trees(), "souping.core.json_fields", helpers).keys()
    assert {module for module in elsewhere if room(module) not in ("logs", "checkpoints")} == set()


@pytest.mark.parametrize(
    "line",
    [
        "from souping.core.json_fields import part\npart({}, 'key')",
        "def late():\n    from souping.core.json_fields import finite_number as finite\n    finite(1)",
        "from souping.core import json_fields\njson_fields.texts({}, 'key')",
        "import souping.core.json_fields\nsouping.core.json_fields.entries({}, 'key')",
        "from souping.logs.records import finite_number\nfinite_number(1)",
        "from souping.core.json_fields import list_at\nmap(list_at, [])",
    ],
    ids=["by name", "renamed", "of a module", "dotted", "handed on", "passed on"],
)
def test_a_planted_use_is_found(line: str) -> None:
    planted = {**package_trees(), "souping.plan.planner": ast.parse(line)}
    names = ("part", "entries", "list_at", "texts", "finite_number")
    assert uses(planted, "souping.core.json_fields", names)["souping.plan.planner"] == 1


def test_p_values_are_corrected_inside_statistics() -> None:
    """Elsewhere what a look costs is only told in words."""
    used = uses(package_trees(), "souping.statistics.corrections", ("penalty",))
    assert used.keys() == {"souping.answers.claims", "souping.comparison.counted_claims"}


def splats(tree: ast.AST) -> Iterator[int]:
    """Lines that hand on the fields of a value by `**`, from `vars(x)`, `asdict(x)`, a method, or to `replace`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg is not None:
                continue
            names = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
            is_method = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
            is_replaced = isinstance(node.func, ast.Name) and node.func.id == "replace"
            if is_method or is_replaced or names & {"vars", "asdict"}:
                yield node.lineno


def test_values_travel_by_name_between_statistics_and_report() -> None:
    """mypy does not see which fields a `**` has."""
    rooms = ("statistics", "analysis", "report", "runs", "comparison")
    found = {module for module, tree in package_trees().items() if any(splats(tree))}
    # An evaluator's settings, of which a class takes its own.
    assert {module for module in found if room(module) in rooms} == {"souping.runs.steps"}


@pytest.mark.parametrize(
    "line", ["A(**vars(x), b=1)", "A(**x.raw(unit))", "A(**asdict(x))", "replace(x, **y)"]
)
def test_a_planted_splat_is_found(line: str) -> None:
    assert list(splats(ast.parse(line))) == [1]


def test_paths_are_expanded_in_one_place() -> None:
    """`Path.expanduser` raises a RuntimeError that nobody expects: `core.files.expanded` names the path and its key."""
    there = {name.rsplit(".", 1)[-1] for name, line in package_lines() if ".expanduser()" in line}
    # the latter is a task of lm_eval and imports nothing of ours
    assert there == {"files", "flores36"}


MUTATING = {
    "add",
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "setdefault",
    "update",
}


def written(tree: ast.Module) -> list[int]:
    """Lines that write into a frozen object outside its `__post_init__`, or let one hold what is written later."""
    found = []
    for node in outside_of(tree, "__post_init__"):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        base, _, method = name.rpartition(".")
        # object.__setattr__(x, ...), vars(x).update(...)
        forced = method in ("__setattr__", "__delattr__")
        if isinstance(node, ast.Call) and (
            forced or (base.startswith("vars(") and method in MUTATING)
        ):
            found.append(node.lineno)
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            target = ast.unparse(node.value)
            if target.startswith("vars(") or target.endswith("__dict__"):
                found.append(node.lineno)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and is_frozen(node):
            found += written_by(node)
    return sorted(found)


def is_frozen(node: ast.ClassDef) -> bool:
    texts = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(text in ("frozen", "component") or "frozen=True" in text for text in texts)


def written_by(kind: ast.ClassDef) -> Iterator[int]:
    """Lines at which a frozen class has a field for what it changes, or a method changes what a field holds."""
    for statement in kind.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            mutable = re.match(r"(dict|list|set)\b", ast.unparse(statement.annotation))
            if mutable and "init=False" in ast.unparse(statement.value):
                yield statement.lineno
    for node in outside_of(kind, "__post_init__"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            held = re.fullmatch(r"self\.\w+", ast.unparse(node.func.value))
            if held and node.func.attr in MUTATING:
                yield node.lineno
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from [node.lineno] * bool(re.fullmatch(r"self\.\w+", ast.unparse(node.value)))


def outside_of(node: ast.AST, name: str) -> Iterator[ast.AST]:
    """Nodes below this one that are in no function of this name."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.FunctionDef) and child.name == name):
            yield child
            yield from outside_of(child, name)


def test_nothing_writes_into_a_frozen_object() -> None:
    """A component is a value; what changes has a life of its own, as a session that the component holds."""
    assert {name: lines for name, tree in package_trees().items() if (lines := written(tree))} == {}


@pytest.mark.parametrize(
    "lines",
    [
        "def copy(x):\n    object.__setattr__(x, 'name', 1)",
        "def copy(x):\n    super(X, x).__setattr__('name', 1)",
        "def copy(x):\n    vars(x).update(name=1)",
        "def copy(x):\n    vars(x)['name'] = 1",
        "def copy(x):\n    del x.__dict__['name']",
        "def copy(x):\n    x.__dict__.name = 1",
        "@component\nclass X:\n    held: dict[str, int] = field(default_factory=dict, init=False)",
        "@dataclass(frozen=True)\nclass X:\n    def f(self):\n        self.held['name'] = 1",
        "@frozen\nclass X:\n    def f(self):\n        self.held.setdefault('name', 1)",
    ],
)
def test_a_planted_write_is_found(lines: str) -> None:
    assert len(written(ast.parse(lines))) == 1
    assert written(ast.parse(lines.replace("def copy(", "def __post_init__(", 1))) == (
        [] if "def copy(" in lines else written(ast.parse(lines))
    )


CHANGING = {
    "ListSearch", "SearchCost", "SearchedSoup", "RunningServer", "Plan", "Pending", "TargetTensor", "Assignment",
    "Made", "GuardedTracker", "Session", "Action", "SharedKeys", "RunKeys",
}  # fmt: skip
"""Dataclasses that are changed after they were made: sessions, and what is collected step by step."""


def test_data_cannot_change_after_it_was_checked() -> None:
    open_to_change = set()
    for _, node in package_nodes():
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if any(text.startswith("dataclass") for text in decorators) and not is_frozen(node):
                open_to_change.add(node.name)
    assert open_to_change == CHANGING


def lenient_zips(text: str, tree: ast.Module) -> list[int]:
    """Lines with a `zip` of lists that may differ in length, and no comment above that says why."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            is_strict = any(ast.unparse(keyword) == "strict=True" for keyword in node.keywords)
            above = lines[max(0, node.lineno - 2)].strip()
            if not is_strict and not above.startswith("#"):
                found.append(node.lineno)
    return found


def test_lists_that_are_paired_have_one_length_or_a_comment() -> None:
    """`zip` drops what is left of the longer list."""
    trees = package_trees()
    lines = {name: lenient_zips(text, trees[name]) for name, text in package_texts().items()}
    assert {name: found for name, found in lines.items() if found} == {}
    planted = "# why\nzip(a, b, strict=False)\nzip(a, b)\nzip(a, b, strict=True)"
    assert lenient_zips(planted, ast.parse(planted)) == [3]


def test_files_and_functions_stay_small() -> None:
    assert {name: n for name, text in package_texts().items() if (n := tokens(text)) > 4500} == {}
    lengths = {f"{module}.{node.name}": length(node) for module, node in package_functions()}
    # CONTRIBUTING.md asks for about 60. A function that needs 63 lines has 63: this stops those that nobody looked at.
    assert {name: lines for name, lines in lengths.items() if lines > 75} == {}


def test_everything_is_annotated_and_takes_no_leftovers() -> None:
    assert [
        f"{module}.{node.name}" for module, node in package_functions() if node.returns is None
    ] == []
    assert [
        f"{m}.{n.name}"
        for m, n in package_functions()
        if n.args.kwarg is not None and room(m) != "cli"
    ] == []


def assigned(body: list[ast.stmt]) -> Iterator[str]:
    """Names that these statements bind: in branches too, but not in functions and classes."""
    for statement in body:
        if isinstance(statement, (*Functions, ast.ClassDef)):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


@cache
def definitions(tree: ast.Module) -> set[str]:
    """Public classes, and constants of the module and of its functions.

    A constant of a module is not in lower case (`log` is its logger), one of a function is in capitals.
    """
    names = {name for name in assigned(tree.body) if not name.islower()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, Functions):
            # a letter is a matrix of the docstring
            names |= {name for name in assigned(node.body) if name.isupper() and len(name) > 1}
    return {name for name in names if not name.startswith("_")}


def named_twice(modules: Mapping[str, ast.Module]) -> list[str]:
    count = Counter(name for tree in modules.values() for name in definitions(tree))
    return sorted(name for name, number in count.items() if number > 1)


def test_a_class_or_constant_has_one_module() -> None:
    assert named_twice(package_trees()) == []


@pytest.mark.parametrize(
    "text",
    [
        "class Unit:\n    pass",
        "def late():\n    class Unit:\n        pass",
        "Unit = dict[str, str]",
        "Unit: type = dict",
        "if True:\n    Other, Unit = 1, 2",
        "def late():\n    UNSAFE = 3",
    ],
    ids=["class", "local class", "alias", "annotated", "in a branch", "in a function"],
)
def test_a_second_definition_is_found(text: str) -> None:
    planted = {**package_trees(), "souping.merge.planted": ast.parse(text)}
    assert named_twice(planted) == ["UNSAFE" if "UNSAFE" in text else "Unit"]


def public_functions(tree: ast.Module) -> set[str]:
    """Functions of a module that other modules may import."""
    functions = [node.name for node in tree.body if isinstance(node, Functions)]
    return {name for name in functions if not name.startswith("_")}


def functions_named_twice(modules: Mapping[str, ast.Module]) -> list[str]:
    count = Counter(name for tree in modules.values() for name in public_functions(tree))
    return sorted(name for name, number in count.items() if number > 1)


def test_a_public_function_has_one_module() -> None:
    assert functions_named_twice(package_trees()) == []
    planted = ast.parse("def component(cls):\n    pass\ndef _pairs():\n    pass")
    assert functions_named_twice({**package_trees(), "souping.merge.planted": planted}) == [
        "component"
    ]


def collected(modules: Mapping[str, ast.Module]) -> list[str]:
    """Classes and functions that pytest would take for tests if a test module imported them."""
    names = list[str]()
    for tree in modules.values():
        named = [node for node in tree.body if isinstance(node, (*Functions, ast.ClassDef))]
        names.extend(node.name for node in named if node.name.startswith(("Test", "test_")))
    return names


def test_pytest_takes_nothing_of_the_package_for_a_test() -> None:
    assert collected(package_trees()) == []
    assert collected({"planted": ast.parse("class TestSplit:\n    pass")}) == ["TestSplit"]


def test_no_test_imports_another_test_module() -> None:
    """What two of them need is in tests/support."""
    of_tests = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_", re.MULTILINE)
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [path for path in paths if of_tests.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_names_keep_their_spelling() -> None:
    aliases = [
        f"{module}: {alias.name} as {alias.asname}"
        for module, node in package_nodes()
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("souping")
        for alias in node.names
        if alias.asname not in (None, alias.name)
    ]
    assert aliases == []


@cache
def members(tree: ast.Module) -> set[str]:
    """Methods and fields of the classes of a module, without names such as `__init__`."""
    names = set[str]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for part in node.body:
            if isinstance(part, Functions):
                names.add(part.name)
            if isinstance(part, ast.AnnAssign):
                names.add(ast.unparse(part.target))
        for inner in ast.walk(node):
            if not isinstance(inner, ast.Attribute) or not isinstance(inner.ctx, ast.Store):
                continue
            if ast.unparse(inner.value) == "self":
                names.add(inner.attr)
    return {name for name in names if not name.startswith("__")}


@cache
def guesses(tree: ast.Module) -> dict[str, str]:
    """{call of `getattr` or `hasattr` with a literal name: that name} of a module."""
    names = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in GUESSES and isinstance(node.args[1], ast.Constant):
            names[ast.unparse(node)] = str(node.args[1].value)
    return names


GUESSES = ("getattr", "hasattr")
FOREIGN_MEMBERS = {"message", "weight"}
"""Members of openai's replies and of torch's modules that classes of the package have too."""


def guessed_members(modules: Mapping[str, ast.Module]) -> list[str]:
    """Members of the package's classes that `getattr` or `hasattr` asks for by a literal name."""
    ours = set[str]().union(*map(members, modules.values())) - FOREIGN_MEMBERS
    found = []
    for module, tree in modules.items():
        found += [f"{module}: {call}" for call, name in guesses(tree).items() if name in ours]
    return found


def test_members_are_named_by_protocols_not_guessed() -> None:
    assert guessed_members(package_trees()) == []
    dispatch = re.compile(r"__name__ (==|in) |_target_\W+ (==|!=)")
    dispatches = [line for _, line in package_lines() if dispatch.search(line)]
    assert [line for line in dispatches if "__main__" not in line] == []


def test_a_planted_guess_is_found() -> None:
    text = "def unit(part):\n    return getattr(part, 'higher_is_better', True)"
    planted = {**package_trees(), "souping.merge.planted": ast.parse(text)}
    assert [guess.split(":")[0] for guess in guessed_members(planted)] == ["souping.merge.planted"]


@cache
def concrete_parts() -> frozenset[str]:
    """Classes that a choice of a config group names, and the results of analyses."""
    names = set[str]()
    for path in (ROOT / "conf").rglob("*.yaml"):
        names |= set(re.findall(r"_target_: [\w.]*\.([A-Z]\w+)", path.read_text(encoding="utf-8")))
    for _, node in package_nodes():
        if isinstance(node, ast.ClassDef) and "AnalysisResult" in map(ast.unparse, node.bases):
            names.add(node.name)
    return frozenset(names)


def class_questions(modules: Mapping[str, ast.Module]) -> list[str]:
    """Lines that ask, outside of its own file, whether something is a concrete part."""
    found = []
    for module, tree in modules.items():
        foreign = concrete_parts() - definitions(tree)
        for node in ast.walk(tree):
            asked = list[ast.AST]()
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                asked = list(node.args[1:])
            if isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
                asked = list(node.comparators)
            if isinstance(node, ast.MatchClass):
                asked = [node.cls]
            names = {part for kind in asked for part in re.findall(r"\w+", ast.unparse(kind))}
            found += [f"{module} asks for {name}" for name in sorted(names & foreign)]
    return found


def test_no_room_asks_which_class_a_part_is() -> None:
    """A part declares what may be asked of it, on the base class of its group."""
    assert {"FilesExecutor", "MergekitMerge", "CommandEvaluator", "FrontResult"} <= concrete_parts()
    assert class_questions(package_trees()) == []


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(part, FilesExecutor)",
        "isinstance(part, asking.FilesExecutor | int)",
        "issubclass(part, (int, FilesExecutor))",
        "type(part) is FilesExecutor",
        "match part:\n    case FilesExecutor():\n        pass",
    ],
)
def test_a_planted_question_is_found(line: str) -> None:
    planted = {"souping.plan.planted": ast.parse(line)}
    assert class_questions(planted) == ["souping.plan.planted asks for FilesExecutor"]
    assert class_questions({"planted": ast.parse(f"class FilesExecutor:\n    pass\n{line}")}) == []


def test_rooms_of_runs_do_not_know_training_runs() -> None:
    """A pool, an optimiser, an analysis and their part of the report do; a merge names the optimiser in an error."""
    texts = package_texts().items()
    named = {name for name, text in texts if re.search("trajectory|TrainingRun", text, re.I)}
    assert {name for name in named if room(name) in ("runs", "plan", "answers", "cli")} == set()
    assert len(named) <= 8


def importers(packages: set[str], nodes: Callable[[ast.AST], Iterable[ast.AST]]) -> list[str]:
    """Modules outside of `cli` that import one of the packages in these nodes of theirs."""
    found = []
    for name, tree in package_trees().items():
        roots = {module.split(".")[0] for module in imported(nodes(tree), package_trees())}
        if room(name) != "cli" and roots & packages:
            found.append(name)
    return found


def test_heavy_packages_wait() -> None:
    found = importers(HEAVY, on_import)
    assert [name for name in found if not name.endswith("__main__")] == []


def test_hydra_lives_at_the_door() -> None:
    assert importers({"hydra", "omegaconf"}, ast.walk) == []


def test_no_trace_of_a_machine() -> None:
    assert [
        name for name, text in package_texts().items() if re.search(r"TODO|FIXME|/" + "work/", text)
    ] == []


def loaded(code: str) -> set[str]:
    """Modules that a process of its own has loaded after this code."""
    check = f"{code}\nimport sys; print('|'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import souping; souping.run, souping.soup, souping.select", HEAVY),
        ("import souping.runs.run, souping.demo, souping.trackers", HEAVY - {"pydantic"}),
        (
            "import sys; sys.argv=['souping','--help']\n"
            "try:\n  import souping.cli.main; souping.cli.main.main()\nexcept SystemExit: pass",
            HEAVY - {"hydra", "omegaconf"},
        ),
    ],
    ids=["library", "runs", "help"],
)
def test_importing_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    assert loaded(code) & absent == set()


def test_importing_the_package_loads_no_room() -> None:
    assert {name for name in loaded("import souping") if name.startswith("souping.")} == set()
