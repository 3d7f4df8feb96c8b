"""Size and shape of the package: `python -m tests.support.count [--walk] [ROOT]`.

Code lines are lines without docstrings, blank lines and lines that hold only a comment. Tokens are those of `tokenize`
without comments, line breaks and indentation. A circle is a set of files that import each other, where imports inside
functions and those for type checkers count like all others. The walk of a trial is the set of files of the package
whose functions run between the third `ask` of the bundled example's search and the `tell` that answers it.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

Functions = (ast.FunctionDef, ast.AsyncFunctionDef)
Documented = (ast.Module, ast.ClassDef, *Functions)
UNCOUNTED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def package(root: Path) -> dict[str, str]:
    """{dotted module: its text} of the package below a checkout."""
    files = sorted((root / "souping").rglob("*.py"))
    return {_dotted(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def code_lines(text: str) -> int:
    docs = set[int]()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, *Functions))
            and ast.get_docstring(node, clean=False) is not None
        ):
            docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.split("\n"), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docs for n, line in lines)


def tokens(text: str) -> int:
    """Tokens of a text; a docstring is one."""
    return sum(token.type not in UNCOUNTED for token in tokenize.generate_tokens(io.StringIO(text).readline))


def imports(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """{module: modules of the package that it imports, wherever the import stands}."""
    arrows = dict[str, set[str]]()
    for name, text in modules.items():
        found = set[str]()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in modules else node.module for one in whole}
        arrows[name] = (found & modules.keys()) - {name}
    return arrows


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    index, low, stack, found = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            place = stack.index(name)
            if len(stack) - place > 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


def measure(root: Path) -> dict[str, Any]:
    """Figures of a checkout."""
    modules = package(root)
    trees = {name: ast.parse(text) for name, text in modules.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, Functions)]
    arrows = imports(modules)
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    return {
        "code_lines": sum(map(code_lines, modules.values())),
        "tokens": sum(map(tokens, modules.values())),
        "files": len(modules),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "functions": len(functions),
        "user_errors": sum(
            isinstance(node, ast.Raise) and node.exc is not None and "UserError" in ast.unparse(node.exc)[:9]
            for node in nodes
        ),
        "circles": circles(arrows),
        "longest_function": max((_length(node), f"{name}:{node.name}") for name, node in functions),
        "longest_file": max((text.count("\n"), name) for name, text in modules.items()),
        "test_lines": sum(text.count("\n") for text in tests),
    }


def _length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def walk(root: Path) -> list[str]:
    """Files of the package that the third trial of the bundled example's search runs through."""
    sys.path.insert(0, str(root))
    sys.setrecursionlimit(10_000)
    import souping
    from souping.search import adaptive

    place, seen, opened, third = str(Path(souping.__file__).parent) + "/", set[str](), list[object](), list[object]()

    def note(frame: FrameType, event: str, value: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(place):
            seen.add(file.removeprefix(place))

    def watch(profile: Callable[[FrameType, str, object], None] | None) -> None:
        threading.setprofile_all_threads(profile) if sys.version_info >= (3, 12) else threading.setprofile(profile)
        sys.setprofile(profile)

    searches = [one for one in vars(adaptive).values() if isinstance(one, type) and {"ask", "tell"} <= vars(one).keys()]
    for one in searches:
        _wrap(one, opened, third, watch, note)
    with tempfile.TemporaryDirectory() as folder:
        _example(souping, Path(folder))
    return sorted(seen)


def _wrap(
    search: Any,
    opened: list[object],
    third: list[object],
    watch: Callable[[Callable[[FrameType, str, object], None] | None], None],
    note: Callable[[FrameType, str, object], None],
) -> None:
    """Let the third `ask` begin the walk, and the `tell` of what it gave end it."""
    ask, tell = search.ask, search.tell

    def asking(self: object) -> object:
        if len(opened) == 2:
            watch(note)
        cell = ask(self)
        opened.append(cell)
        if len(opened) == 3:
            third.append(cell)
        return cell

    def telling(self: object, cell: object, result: object) -> None:
        tell(self, cell, result)
        if third and cell is third[0]:
            watch(None)

    search.ask, search.tell = asking, telling


def _example(souping: Any, folder: Path) -> None:
    from souping.cli.main import main

    sys.argv = ["souping", "+experiment=bfcl", f"hydra.run.dir={folder}/run", f"store.path={folder}/store.sqlite"]
    sys.argv += ["stop_after=search"]
    main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--walk", action="store_true", help="run the bundled example's search and list a trial's files")
    options = parser.parse_args()
    figures = measure(options.root)
    if options.walk:
        files = walk(options.root)
        figures |= {"walk": len(files), "walk_files": files}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
