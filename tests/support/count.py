"""Size and shape of the package: `python -m tests.support.count [--walk] [ROOT]`.

Code lines are lines without docstrings, blank lines and lines that hold only a comment. Tokens are those of `tokenize`
without comments, line breaks and indentation. A circle is a set of files that import each other, where imports inside
functions, those for type checkers and those by a text count like all others. The walk of a trial is the set of files
of the package whose functions run between the third `ask` of the bundled example's search and the `tell` that
answers it.

Signs of dense sentences, for the package and for each room: packed assignments, ternaries, comprehensions and comments
per 1,000 code lines; how many comprehensions hold another one (`nested`) or several `for` (`several_for`); and the
functions above 400 tokens.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tempfile
import textwrap
import threading
import tokenize
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set as AbstractSet
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)
Comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LONG_FUNCTION = 400
"""Tokens above which a function is named."""
DOTTED_NAME = re.compile(r"souping(\.\w+)+(:\w+)?")
UNCOUNTED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def package(root: Path) -> dict[str, str]:
    """{dotted module: its text} of the package below a checkout."""
    files = sorted((root / "souping").rglob("*.py"))
    return {_dotted(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def code_lines(text: str) -> int:
    """Lines of code: without blank lines, comments and docstrings."""
    docs = set[int]()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, *Functions)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            docs |= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    lines = enumerate(text.split("\n"), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and n not in docs
        for n, line in lines
    )


def tokens(text: str) -> int:
    """Tokens of a text; a docstring is one, and an f-string too, as Python 3.11 has it."""
    count = 0
    open_strings = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            open_strings += 1
        elif kind == "FSTRING_END":
            open_strings -= 1
            count += open_strings == 0
        elif open_strings == 0:
            count += token.type not in UNCOUNTED
    return count


def room(module: str) -> str:
    """The folder or file of the package that a module is part of; empty for the package's own `__init__`."""
    return "".join(module.split(".")[1:2])


def is_packed(node: ast.AST) -> bool:
    """Whether it assigns several values at once: `a, b = x, y` or `a, b = (f(p) for p in pair)`.

    Unpacking what a call returns is not packed.
    """
    if not isinstance(node, ast.Assign) or not isinstance(
        node.value, ast.Tuple | ast.List | ast.GeneratorExp
    ):
        return False
    targets = [target for target in node.targets if isinstance(target, ast.Tuple | ast.List)]
    return any(len(target.elts) > 1 for target in targets)


def is_nested(node: ast.AST) -> bool:
    """Whether a comprehension holds another one."""
    return any(isinstance(inner, Comprehensions) for inner in ast.walk(node) if inner is not node)


def long_functions(text: str) -> list[str]:
    """Names of the functions of a text that have more than LONG_FUNCTION tokens."""
    lines = text.split("\n")
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Functions):
            source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if tokens(source) > LONG_FUNCTION:
                names.append(node.name)
    return names


def signs(modules: Mapping[str, str]) -> dict[str, Any]:
    """Signs of dense sentences in {dotted module: its text}."""
    texts = modules.values()
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    comprehensions = [node for node in nodes if isinstance(node, Comprehensions)]
    comments = 0
    for text in texts:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            comments += token.type == tokenize.COMMENT
    per_thousand = {
        "packed": sum(map(is_packed, nodes)),
        "ternaries": sum(isinstance(node, ast.IfExp) for node in nodes),
        "comprehensions": len(comprehensions),
        "comments": comments,
    }
    thousands = max(1, sum(map(code_lines, texts))) / 1000
    long = [
        f"{name}:{function}" for name, text in modules.items() for function in long_functions(text)
    ]
    return {
        **{name: round(count / thousands, 1) for name, count in per_thousand.items()},
        "nested": sum(map(is_nested, comprehensions)),
        "several_for": sum(len(node.generators) > 1 for node in comprehensions),
        "long_functions": long,
    }


def signs_by_room(modules: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{room: its signs}; those of the package come first, as `souping`."""
    rooms = dict[str, dict[str, str]]()
    for name, text in modules.items():
        rooms.setdefault(room(name), {})[name] = text
    by_room = {name: signs(texts) for name, texts in sorted(rooms.items()) if name}
    return {"souping": signs(modules), **by_room}


@cache
def origins(tree: ast.Module) -> dict[str, str]:
    """{name in a module: the dotted name that it was imported from}"""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                bound[alias.asname or first] = alias.name if alias.asname else first
    return bound


@cache
def named_sources(tree: ast.Module) -> Counter[str]:
    """{dotted name that was imported: how often a module says it}; an import alone does not count."""
    bound = origins(tree)
    dotted = Counter(_dotted_source(node, bound) for node in ast.walk(tree))
    del dotted[""]
    return dotted


def uses(trees: Mapping[str, ast.Module], home: str, names: Collection[str]) -> dict[str, int]:
    """{module: uses of these names of the module `home` elsewhere}, whatever they are called there.

    A name counts if it is called or passed on, and also if a third module hands it on. An import alone is not a use.
    """
    wanted = {f"{home}.{name}" for name in names}
    bound = {module: origins(tree) for module, tree in trees.items()}
    counts = Counter[str]()
    for module, tree in trees.items():
        for dotted, number in named_sources(tree).items():
            counts[module] += number * (_followed(dotted, bound) in wanted)
    return {module: count for module, count in counts.items() if count}


def _dotted_source(node: ast.AST, bound: Mapping[str, str]) -> str:
    """Where `name` or `name.attribute` was imported from; empty for everything else."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, "")
    if isinstance(node, ast.Attribute):
        source = _dotted_source(node.value, bound)
        return f"{source}.{node.attr}" if source else ""
    return ""


def _followed(dotted: str, bound: Mapping[str, Mapping[str, str]]) -> str:
    """Where a dotted name comes from, through the modules that hand it on."""
    seen = set[str]()
    while dotted not in seen:
        seen.add(dotted)
        module, _, name = dotted.rpartition(".")
        dotted = bound.get(module, {}).get(name, dotted)
    return dotted


def imported(nodes: Iterable[ast.AST], modules: Iterable[str]) -> set[str]:
    """Modules that import statements name; `from package import module` names the module."""
    found = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"  # noqa: PT018
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in modules else node.module for one in whole}
    return found


def imported_by_name(own: str, nodes: Iterable[ast.AST], modules: Collection[str]) -> set[str]:
    """Modules that a text of the module `own` names: `import_module("souping.x")`, `"souping.x:Y"`, `"souping.x.Y"`.

    The packages that it is part of do not count: loggers have their names.
    """
    found = set[str]()
    for node in nodes:
        text = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(text, str) or not DOTTED_NAME.fullmatch(text):
            continue
        parts = text.split(":")[0].split(".")
        names = [".".join(parts[:size]) for size in range(len(parts), 1, -1)]
        name = next((name for name in names if name in modules), own)
        if not own.startswith(f"{name}."):
            found.add(name)
    return found - {own}


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """{module: modules that it imports or names, and the packages around those that it is not part of}."""
    return {name: imports_of(name, tree, trees.keys()) for name, tree in trees.items()}


def imports_of(module: str, tree: ast.Module, modules: AbstractSet[str]) -> set[str]:
    """The same of one module."""
    found = imported(ast.walk(tree), modules) & modules
    found |= imported_by_name(module, ast.walk(tree), modules)
    parents = {
        other.rsplit(".", depth)[0] for other in found for depth in range(1, other.count("."))
    }
    outside = {parent for parent in parents if not f"{module}.".startswith(f"{parent}.")}
    return (found | outside) - {module}


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """Modules on a circle of imports or between two circles: what is left when one drops those that need no other or
    that no other needs, over and over."""
    rest = set(arrows)
    while True:
        needed = set[str]().union(*(arrows[name] for name in rest))
        kept = {name for name in rest if arrows[name] & rest and name in needed}
        if kept == rest:
            return sorted(rest)
        rest = kept


def measure(root: Path) -> dict[str, Any]:
    """Figures of a checkout."""
    modules = package(root)
    trees = {name: ast.parse(text) for name, text in modules.items()}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    functions = [(name, node) for name, node in nodes if isinstance(node, Functions)]
    raised = [node.exc for _, node in nodes if isinstance(node, ast.Raise) and node.exc is not None]
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    return {
        "code_lines": sum(map(code_lines, modules.values())),
        "tokens": sum(map(tokens, modules.values())),
        "files": len(modules),
        "classes": sum(isinstance(node, ast.ClassDef) for _, node in nodes),
        "functions": len(functions),
        "user_errors": sum(ast.unparse(error).startswith("UserError") for error in raised),
        "circles": circles(imports(trees)),
        "longest_function": max((length(node), f"{name}:{node.name}") for name, node in functions),
        "signs": signs_by_room(modules),
        "longest_file": max((tokens(text), name) for name, text in modules.items()),
        "test_lines": sum(text.count("\n") for text in tests),
    }


def length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


class Walk:
    """Profile function that keeps the files of the package between the third `ask` and the `tell` of what it gave."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.files = set[str]()
        self.asked = 0
        self.third: object = None
        self.ended = False

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        code = frame.f_code
        if (
            self.ended
            or event not in ("call", "return")
            or not code.co_filename.startswith(self.place)
        ):
            return
        file = code.co_filename.removeprefix(self.place)
        # The search's own `ask` and `tell`: other files have functions of these names.
        step = code.co_name if file == "search/adaptive.py" else ""
        self.asked += (step, event) == ("ask", "call")
        if self.asked >= 3 and event == "call":
            self.files.add(file)
        if (step, event, self.asked) == ("ask", "return", 3) and self.third is None:
            self.third = value
        # tell(self, query, result): the answer to the third query ends the walk.
        query = code.co_varnames[1] if step == "tell" else ""
        if query and event == "return" and frame.f_locals[query] is self.third:
            self.ended = True


def walk(root: Path) -> list[str]:
    """Files of the package that the third trial of the bundled example's search runs through."""
    sys.path.insert(0, str(root))
    from souping.cli.main import main

    trial = Walk(f"{root / 'souping'}/")
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [
            "souping",
            "+experiment=bfcl",
            f"hydra.run.dir={folder}/run",
            f"store={folder}/store.sqlite",
        ]
        sys.argv += ["stop_after=search"]
        threading.setprofile(trial)
        sys.setprofile(trial)
        main()
    sys.setprofile(None)
    return sorted(trial.files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument(
        "--walk",
        action="store_true",
        help="run the bundled example's search and list a trial's files",
    )
    options = parser.parse_args()
    figures = measure(options.root)
    if options.walk:
        files = walk(options.root.resolve())
        figures |= {"walk": len(files), "walk_files": files}
    # One line per room.
    for name, row in figures["signs"].items():
        figures["signs"][name] = ", ".join(f"{sign} {value}" for sign, value in row.items())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
