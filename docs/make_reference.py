"""Write docs/reference.md, docs/reference-files.md and the JSON schema of settings files, conf/settings.schema.json:
`python docs/make_reference.py`.

Commands come from `souping.cli.commands`, groups, choices, keys and remarks from `conf/`, root keys from the
configuration's dataclass, Python names from `souping.__all__`, the keys of report.json and compare.json from the fields
of their classes and the texts below them, and other meanings from `docs/reference.yaml`. Types in the schema are the
annotations of the components. A test compares the files.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.utils import get_object

import souping
from souping.cli.commands import COMMANDS
from souping.cli.config_keys import CHOICES, GROUPS, SETTABLE, Config, RunKeys
from souping.comparison.result import CompareResult, Flip, RowVerdict
from souping.core.fields import Bounds, Form, hints_of
from souping.core.types import JsonObject
from souping.report.content import Report
from souping.statistics.comparison import VarianceParts

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
SCHEMA = CONF / "settings.schema.json"
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


# JSON schema of settings files

JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
REFERENCE = {"$ref": "#/definitions/interpolation"}
"""A text with `${name}`, which stands for the value of another key."""
UNCHECKED_KEYS = {
    "upload": str | Mapping[str, str | bool] | None,
    "expected": Mapping[str, float | Mapping[str, float]] | None,
    "guard": float | Mapping[str, float | str] | None,
}
"""Annotations of root keys whose readers check them."""
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def typed(hint: Any) -> JsonObject:
    """The JSON schema of an annotation. A `${name}` fits all of them."""
    kind = get_origin(hint)
    arguments = get_args(hint)
    if hint is str:
        return {"type": "string"}
    if kind in (Union, UnionType):
        return {"anyOf": list(map(typed, arguments))}
    if kind is Annotated:
        return or_reference(JSON_TYPES[arguments[0]], *arguments[1:])
    if hint in JSON_TYPES:
        return or_reference(JSON_TYPES[hint])
    if kind is Literal:
        return {"anyOf": [{"enum": list(arguments)}, REFERENCE]}
    if kind in (list, tuple, Sequence):
        return {"anyOf": [{"type": "array", "items": typed(arguments[0])}, REFERENCE]}
    if kind in (dict, Mapping):
        content = {"type": "object", "additionalProperties": typed(arguments[1])}
        return {"anyOf": [content, REFERENCE]}
    assert hint is Any, hint
    return {}


def or_reference(kind: str, *bounds: Any) -> JsonObject:
    """The schema of a plain value within bounds."""
    schema: JsonObject = {"type": kind}
    for bound in bounds:
        if isinstance(bound, Bounds):
            limits = ((word, getattr(bound, side)) for side, word in LIMITS.items())
            schema |= {word: limit for word, limit in limits if limit is not None}
        # Editors know \w in ASCII only, and no flags.
        elif isinstance(bound, Form) and not re.search(r"\\w|\(\?s\)", bound.pattern):
            schema |= {
                "pattern": f"^(?:{bound.pattern})$",
                "patternErrorMessage": f"must be {bound.words}",
            }
    return {"anyOf": [schema, REFERENCE]}


def choice_keys(folder: str) -> dict[str, JsonObject]:
    """{key: schema} of a group: its choices, and each key of theirs."""
    files = sorted((CONF / folder).glob("*.yaml"))
    chosen: JsonObject = {
        "enum": [path.stem for path in files],
        "enumDescriptions": [choice(path)[0] for path in files],
    }
    if folder == "analysis":
        chosen = {"type": "array", "items": chosen}
    # {key: [(choice, default, remark, annotation)]}
    rows: dict[str, list[tuple[str, str, str, Any]]] = {}
    for path in files:
        _, place, keys = choice(path)
        target = re.search(r"_target_: (\S+)", path.read_text(encoding="utf-8"))
        assert target, path
        hints = hints_of(get_object(target[1]))
        for key, (default, remark) in keys.items():
            row = (path.stem, default, remark, hints[key])
            rows.setdefault(f"{place}.{key}", []).append(row)
    schemas = {folder: chosen}
    for key, of_choices in rows.items():
        schemas[key] = merged(of_choices, of_all=len(of_choices) == len(files))
    return schemas


def merged(rows: Sequence[tuple[str, str, str, Any]], of_all: bool) -> JsonObject:
    """The schema of a key that choices have: (choice, default, remark, annotation) of each."""
    options = list[JsonObject]()
    for option in chain.from_iterable(flat(typed(hint)) for *_, hint in rows):
        if option not in options:
            options.append(option)
    remarks = dict[str, list[str]]()
    for name, _, remark, _ in rows:
        remarks.setdefault(remark, []).append(name)
    texts = [f"{text} ({', '.join(names)})" for text, names in remarks.items()]
    if of_all and len(remarks) == 1:
        texts = list(remarks)
    schema: JsonObject = {"description": "; ".join(texts), "anyOf": options}
    defaults = {default for _, default, _, _ in rows}
    if len(defaults) == 1 and not re.search(r"\?\?\?|\$\{", *defaults):
        schema["default"] = yaml.safe_load(*defaults)
    return schema


def flat(schema: JsonObject) -> Iterator[JsonObject]:
    """The options of a schema, without options of options."""
    if "anyOf" not in schema:
        yield schema
        return
    for option in schema["anyOf"]:
        yield from flat(option)


def mapping(keys: Mapping[str, JsonObject], above: str = "") -> JsonObject:
    """The schema of settings whose keys are nested or dotted: `keys` that begin with `above`, without it."""
    properties: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    names = [key.removeprefix(above) for key in keys if key.startswith(above)]
    for name in dict.fromkeys(each.partition(".")[0] for each in names):
        key = f"{above}{name}"
        options: list[JsonObject] = []
        if key in keys:
            options.append({"$ref": f"#/definitions/{key}"})
            tables = [option for option in flat(keys[key]) if option.get("type") == "object"]
            # Keys of a value that is a mapping: `guard.safety`. Without a type, it may be one.
            if tables or {} in flat(keys[key]):
                patterns[rf"^{name}\."] = {}
            for table in tables:
                patterns[rf"^{name}\."] = table["additionalProperties"]
        if any(each.startswith(f"{key}.") for each in keys):
            inner = mapping(keys, f"{key}.")
            options.append(inner)
            properties |= {f"{name}.{each}": part for each, part in inner["properties"].items()}
            for pattern, part in inner["patternProperties"].items():
                patterns[rf"^{name}\.{pattern[1:]}"] = part
        properties[name] = options[0] if len(options) == 1 else {"anyOf": options}
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }


def settings_schema() -> str:
    """conf/settings.schema.json, in the draft that editors read best."""
    known = yaml.safe_load((DOCS / "reference.yaml").read_text(encoding="utf-8"))
    hints = {**hints_of(RunKeys), **CHOICES, **UNCHECKED_KEYS}
    keys = dict[str, JsonObject]()
    for key in SETTABLE:
        if key in (*GROUPS, "analysis"):
            keys |= choice_keys(key)
        else:
            keys[key] = {
                "description": known["root"][key],
                "anyOf": list(flat(typed(hints[key]))),
            }
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of souping (souping FILE.yaml)",
        **mapping(keys),
        "definitions": {"interpolation": {"type": "string", "pattern": r"\$\{"}, **keys},
    }
    experiments = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
    schema["properties"] = {"+experiment": {"enum": experiments}, **schema["properties"]}
    return json.dumps(schema, indent=1) + "\n"


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
    SCHEMA.write_text(settings_schema(), encoding="utf-8")
