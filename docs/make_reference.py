"""Write docs/reference.md and docs/reference-files.md: `python docs/make_reference.py`.

Commands come from `souping.cli.commands`, groups, choices, keys and remarks from `conf/`, root keys from the
configuration's dataclass, Python names from `souping.__all__`, the keys of report.json and compare.json from the fields
of their classes and the texts below them, and other meanings from `docs/reference.yaml`. A test compares the pages.
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
from operator import itemgetter
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

import souping
from souping.cli.commands import COMMANDS
from souping.cli.config import Config
from souping.comparison.result import CompareResult, Flip, RowVerdict
from souping.report.content import Report
from souping.statistics.comparison import VarianceParts

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
LINE = re.compile(r"^(\w+): *(.*?)(?: *(?:^|(?<=\s))# *(.*))?$")
SCALARS = (
    "name",
    "seed",
    "min_gain",
    "expected_mismatch",
    "store",
)
CALLS = ("run", "soup", "select", "compare")
HEAD = """# Reference

This page is generated: `python docs/make_reference.py`. It lists every command, key and Python name. The other pages
explain them. The files of a run, report.json and compare.json: [reference-files.md](reference-files.md).

- `souping help NAME` prints the keys of a group, or the help of a command.
- Commands with `KEY=VALUE` also take `-m` (a job for each combination), `--cfg job` (show the configuration and stop)
  and `--config-dir DIR` (choices of your own).
- `eval "$(souping -sc install=bash)"` completes commands, groups, choices and keys in bash. In zsh, first run
  `autoload -Uz compinit bashcompinit && compinit && bashcompinit`.
- Errors are one or two lines and exit with status 2; `SOUPING_DEBUG=1` shows the traceback.
- Values that contain `( ) , =` or spaces need quotes: `'merge.tensor_weights={layers.0-7:[0.6,0.4]}'`.
"""
FILES_HEAD = """# Reference of files

This page is generated: `python docs/make_reference.py`. Commands, keys and Python names:
[reference.md](reference.md).

## Files of a run

A run writes to `outputs/NAME/DATE_TIME/`.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        cells = [cell.replace("|", r"\|") for cell in row]
        yield f"| {' | '.join(cells)} |"
    yield ""


def commands() -> Iterator[str]:
    yield "## Commands\n"
    rows = [(f"`souping {name} {each.usage}`", each.does) for name, each in COMMANDS.items()]
    yield from table(("command", "does"), rows)


def choice(path: Path) -> tuple[str, str, dict[str, tuple[str, str]]]:
    """(opening comment, where its keys are, {key: (default, remark)}) of a choice's file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    packages = [line.removeprefix("# @package ") for line in lines if line.startswith("# @package")]
    opening = " ".join(
        line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("# @")
    )
    place = path.parent.name
    if packages:
        place = packages[0]
    if place == "_global_":  # its keys are indented, below the name of the choice
        place = path.stem
        lines = [line[2:] for line in lines if line.startswith("  ")]
    keys = {}
    for match in filter(None, map(LINE.match, lines)):
        key, default, remark = match.groups(default="")
        is_reference = default == f"${{{key}}}"
        if not key.startswith("_") and key != "defaults" and not is_reference:
            keys[key] = (default, remark)
    return opening, place, keys


def group(name: str) -> Iterator[str]:
    """Choices of a group, and one table of their keys: a row for each key, default and meaning."""
    yield f"### {name}\n"
    rows: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted((CONF / name).glob("*.yaml")):
        opening, place, keys = choice(path)
        yield f"- `{name}={path.stem}`{': ' if opening else ''}{opening}"
        for key, (default, remark) in keys.items():
            rows.setdefault((f"{place}.{key}", default, remark), []).append(path.stem)
    yield ""
    if rows:
        lines = (
            (f"`{key}`", f"`{default}`", ", ".join(rows[key, default, remark]), remark)
            for key, default, remark in sorted(rows, key=itemgetter(0))
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
        default = json.dumps(value) if key in SCALARS else ""
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
    """docs/reference.md"""
    known = yaml.safe_load((DOCS / "reference.yaml").read_text(encoding="utf-8"))
    lines = [HEAD, *commands(), *root(known["root"])]
    lines += ["## Groups\n", "Choose with `GROUP=CHOICE`, set keys with `KEY=VALUE`.\n"]
    folders = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    folders.remove("experiment")
    for folder in folders:
        lines += group(folder)
    lines += [*experiments(), *python(known["python"])]
    return "\n".join(lines).rstrip() + "\n"


def files_page() -> str:
    """docs/reference-files.md"""
    known = yaml.safe_load((DOCS / "reference.yaml").read_text(encoding="utf-8"))
    files = ((f"`{name}`", content) for name, content in known["files"].items())
    lines = [FILES_HEAD, *table(("file", "content"), files)]
    lines += [*report(known["analyses"]), *schema()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / "reference.md").write_text(page(), encoding="utf-8")
    (DOCS / "reference-files.md").write_text(files_page(), encoding="utf-8")
