"""Print docs/reference.md: `python docs/make_reference.py > docs/reference.md`.

Groups, choices, keys and remarks come from `conf/`, root keys from the configuration's dataclass, Python names from
`souping.__all__`, the keys of report.json and compare.json from the fields of their classes and the texts below them,
and other meanings from `docs/reference.yaml`. A test compares the page.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

import souping
from souping.cli.config import Config
from souping.comparison.result import CompareResult, Flip, RowVerdict
from souping.report.content import Report
from souping.statistics.comparison import VarianceParts

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
LINE = re.compile(r"^(\w+): *(.*?)(?: *(?:^|(?<=\s))# *(.*))?$")
SCALARS = ("name", "seed", "plan", "check", "margin", "gate", "allow_code", "debug")
CALLS = ("run", "soup", "select", "compare")
HEAD = """# Reference

This page is generated: `python docs/make_reference.py > docs/reference.md`. It lists every file, key and name. The
other pages explain them.

- `python -m souping help NAME` prints the keys of a group on the terminal.
- `eval "$(souping -sc install=bash)"` completes commands, groups, choices and keys in bash. In zsh, first run
  `autoload -Uz compinit bashcompinit && compinit && bashcompinit`.
- Errors are one or two lines and exit with status 2; `debug=true` shows the traceback.
- Values that contain `( ) , =` or spaces need quotes: `'merge.overrides={layers.0-7:[0.6,0.4]}'`.
"""
TERMS = """## Terms

**Candidate**: a checkpoint in the pool. **Ingredient**: a selected candidate. **Expert**: the best candidate of a
category. **Item**: one question with an id, a category and a group. **Recipe**: ingredients, weights and merge method,
identified by their content. **Soup**: the model that a recipe makes. **Trial**: one soup of a search. **Folds**: three
disjoint sets of items: `select` chooses the ingredients, `search` chooses the weights, and `report` is the held-out
test set.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


def choice(path: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """(opening comment, {key: (default, remark)}) of a choice's file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("# @")]
    opening = " ".join(line.lstrip("# ") for line in body if line.startswith("#"))
    if "# @package _global_" in lines:  # its keys are indented
        body = [line[2:] for line in body if line.startswith("  ")]
    keys = {m[1]: (m[2], m[3] or "") for m in map(LINE.match, body) if m}
    return opening, {
        k: v
        for k, v in keys.items()
        if not k.startswith("_") and k != "defaults" and v[0] != f"${{{k}}}"
    }


def group(name: str) -> Iterator[str]:
    """Choices of a group, and one table of their keys."""
    yield f"### {name}\n"
    rows: dict[tuple[str, str], tuple[list[str], str]] = {}
    for path in sorted((CONF / name).glob("*.yaml")):
        opening, keys = choice(path)
        yield f"- `{name}={path.stem}`{': ' if opening else ''}{opening}"
        for key, (default, remark) in keys.items():
            names, kept = rows.get((key, default), ([], ""))
            rows[key, default] = ([*names, path.stem], kept or remark)
    yield ""
    if rows:
        lines = (
            (f"`{k}`", f"`{d}`", ", ".join(names), remark)
            for (k, d), (names, remark) in rows.items()
        )
        yield from table(("key", "default", "of", "meaning"), lines)


def experiments() -> Iterator[str]:
    yield "### experiment\n\nOverlays: `+experiment=NAME`.\n"
    rows = []
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        rows.append(
            (f"`{path.stem}`", path.read_text(encoding="utf-8").splitlines()[1].lstrip("# "))
        )
    yield from table(("name", "meaning"), rows)


def root(meanings: Mapping[str, str]) -> Iterator[str]:
    yield "## Root keys\n"
    defaults = {each.name: each.default for each in fields(Config)}
    rows = []
    for key, meaning in meanings.items():
        value = defaults.get(key)
        default = (
            "outputs/store.sqlite"
            if key == "store.path"
            else json.dumps(value)
            if key in SCALARS
            else ""
        )
        rows.append((f"`{key}`", default, meaning))
    yield from table(("key", "default", "meaning"), rows)


def python(meanings: Mapping[str, str]) -> Iterator[str]:
    yield "## Python\n\nNames of `import souping`. Each is loaded when you first use it.\n"
    rows = []
    for name in sorted(souping.__all__, key=str.lower):
        value = getattr(souping, name)
        meaning = meanings.get(name) or (inspect.getdoc(value) or "").split("\n\n")[0].replace(
            "\n", " "
        )
        arguments = f"({', '.join(inspect.signature(value).parameters)})" if name in CALLS else ""
        rows.append((f"`{name}{arguments}`", meaning))
    yield from table(("name", "meaning"), rows)


@cache
def field_docs(kind: type) -> dict[str, str]:
    """{field that a class adds to its bases: the text below it}"""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, below in pairwise(tree.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(below, ast.Expr):
            continue
        assert isinstance(statement.target, ast.Name)
        assert isinstance(below.value, ast.Constant)
        docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs


def report_rows(kind: type, above: str, shown: set[type]) -> Iterator[tuple[str, str]]:
    """(key, meaning) of the fields of a class, and of the classes in them. Classes in `shown` have been listed."""
    hints = get_type_hints(kind)
    for base in reversed(kind.__mro__):
        if base in shown or not is_dataclass(base):
            continue
        shown.add(base)
        for name, meaning in field_docs(base).items():
            key = f"{above}{name}"
            yield key, meaning
            place, inner = content_of(hints[name], meaning)
            if inner is not None:
                yield from report_rows(inner, f"{key}{place}.", shown)


def content_of(hint: Any, meaning: str) -> tuple[str, type | None]:
    """The class of the objects in a field, and how a key names one of them: nothing, `[]` or `.MODEL`."""
    arguments = get_args(hint)
    if isinstance(hint, UnionType):
        return content_of(arguments[0], meaning)
    if is_dataclass(hint):
        return "", hint
    if get_origin(hint) is tuple and is_dataclass(arguments[0]):
        return "[]", arguments[0]
    if get_origin(hint) is Mapping and is_dataclass(arguments[1]):
        word = re.match(r"\{(\w+):", meaning)
        assert word, f"{meaning!r} must begin with what the keys are"
        return f".{word[1].upper()}", arguments[1]
    return "", None


def report(analyses: Mapping[str, str]) -> Iterator[str]:
    """The keys of report.json. Analyses have no types: `analyses` are {key: meaning} of theirs."""
    yield "## report.json\n"
    yield "Scores are fractions of 1, or in the `unit` of the run. A number that cannot be computed is `null`.\n"
    rows = []
    for key, meaning in report_rows(Report, "", set()):
        rows.append((f"`{key}`", meaning))
        if key == "analyses":
            rows += [(f"`{name}`", text) for name, text in analyses.items()]
    yield from table(("key", "meaning"), rows)


def schema() -> Iterator[str]:
    """The fields of compare.json, from its dataclasses and the texts below them."""
    yield "## compare.json\n\nWhat `souping compare --json` prints, and `CompareResult.to_json()` returns.\n"
    inner = {"verdicts[]": RowVerdict, "variance.MODEL": VarianceParts, "flips[]": Flip}
    rows = [(f"`{key}`", meaning) for key, meaning in field_docs(CompareResult).items()]
    for name, kind in inner.items():
        rows += [(f"`{name}.{key}`", meaning) for key, meaning in field_docs(kind).items()]
    yield from table(("key", "meaning"), rows)


def page() -> str:
    known = yaml.safe_load((DOCS / "reference.yaml").read_text(encoding="utf-8"))
    lines = [HEAD, TERMS, "## Files of a run\n", "A run writes to `outputs/NAME/DATE_TIME/`.\n"]
    lines += table(
        ("file", "content"), ((f"`{name}`", what) for name, what in known["files"].items())
    )
    lines += root(known["root"])
    lines += ["## Groups\n", "Choose with `GROUP=CHOICE`, set keys with `GROUP.KEY=VALUE`.\n"]
    for folder in sorted(
        path for path in CONF.iterdir() if path.is_dir() and path.name != "experiment"
    ):
        lines += group(folder.name)
    lines += [*experiments(), *python(known["python"]), *report(known["analyses"]), *schema()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
