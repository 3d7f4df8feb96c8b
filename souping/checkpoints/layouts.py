"""Rules for the names and layouts of trainers' tensors: `rules/*.json` and files of users (docs/merging.md)."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypedDict

from souping.checkpoints.header import parse_json
from souping.checkpoints.views import Shape, row_major
from souping.core.fields import load, pick
from souping.core.files import expanded
from souping.core.text import shown
from souping.core.types import JsonObject, Names, UserError

SOURCE = "source"
"""Axis of the result that counts the native tensors of a rule which has several."""
SHOW_NAMES = "show"
RULES = Path(__file__).with_name("rules")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
OPTIONAL_PART = re.compile(r"\[([^\[\]]*)\]")
MAX_OPTIONAL = 6
"""Optional parts of a name: a rule is written out for every combination of them."""
AXIS = re.compile(
    r"(?P<name>[a-z_]+)(?:=(?P<size>[a-z_0-9+]+))?(?:\[(?P<start>[^:\]]*)(?P<range>:)?(?P<stop>[^\]]*)\])?"
)


@dataclass(frozen=True)
class Axis:
    """One axis of a layout. `size` and the bounds of its slice are sums of numbers and sizes of the config."""

    name: str
    size: str
    start: str
    stop: str


Dims = tuple[tuple[Axis, ...], ...]
Axes = Mapping[str, tuple[int, int, int]]
"""{axis: (size, step in a native tensor, step from native tensor to native tensor)}"""


@dataclass(frozen=True)
class Rule:
    """How one kind of tensor is called and laid out on both sides. `layout` None: as it is, whatever its shape."""

    natives: tuple[str, ...]
    name: str
    text: str
    layout: tuple[Dims, Dims] | None
    types: tuple[str, ...] = ()

    def fits(self, model_type: str) -> bool:
        wanted = [kind for kind in self.types if not kind.startswith("!")]
        return f"!{model_type}" not in self.types and (not wanted or model_type in wanted)

    @cached_property
    def indexes(self) -> Names:
        """Placeholders of the Hugging Face name."""
        return tuple(PLACEHOLDER.findall(self.name))

    @cached_property
    def stacked(self) -> Names:
        """The axes of the result that count native tensors."""
        numbers = PLACEHOLDER.findall(self.natives[0])
        return (SOURCE, *(axis for axis in numbers if axis not in self.indexes))

    @cached_property
    def unstacked(self) -> Names:
        """The axes of the native tensor that are indexes in Hugging Face names."""
        numbers = PLACEHOLDER.findall(self.natives[0])
        return tuple(axis for axis in self.indexes if axis not in numbers)

    def target(self, indexes: Mapping[str, str]) -> str:
        return PLACEHOLDER.sub(lambda found: indexes[found[1]], self.name)

    def check(self) -> None:
        """Raises ValueError if an axis of one side is not there once on the other, or a name is not a pattern."""
        for native in self.natives:
            pattern_of(native)
        sources = self.stacked if len(self.natives) > 1 else self.stacked[1:]
        before, after = self.layout or ((), ())
        have = [*(axis.name for dim in before for axis in dim), *sources]
        want = [*(axis.name for dim in after for axis in dim), *self.unstacked]
        if sorted(have) != sorted(want) or len(set(have)) < len(have):
            odd = sorted(set(have) ^ set(want)) or sorted(
                name for name in have if have.count(name) > 1
            )
            raise ValueError(
                f"{self.text!r} for {shown(self.name)} must have the axis {', '.join(odd)} once on each side"
            )


@dataclass(frozen=True)
class Family:
    """The rules of one file. `anchors` are names that show where the model begins below prefixes."""

    name: str
    anchors: tuple[str, ...]
    rules: tuple[Rule, ...]
    drop: tuple[str, ...] = ()
    prefix: str | None = None


@cache
def common() -> dict[str, Any]:
    table: dict[str, Any] = parse_json(RULES / "common.json", (RULES / "common.json").read_bytes())
    return table


def is_weight(name: str) -> bool:
    """Whether a trainer's tensor may belong to the model, by its name."""
    drop = any_of(tuple(common()["drop"]))
    return not any(drop.fullmatch(part) for part in re.split(r"[./]", name))


def rules_of(names: str | None) -> Path | None:
    """The file in `merge.names`: FILE, or show:FILE (UserError: there is none)."""
    file = (names or "").removeprefix(f"{SHOW_NAMES}:")
    if file in ("", SHOW_NAMES):
        return None
    path = expanded(file, "merge.names")
    if not path.is_file():
        raise UserError(
            f"merge.names={names}: {path} is not a file: give a file of rules, or {SHOW_NAMES}"
        )
    return path


def shows(names: str | None) -> bool:
    """Whether `merge.names` asks for a list of names in place of a merge."""
    return names is not None and names.partition(":")[0] == SHOW_NAMES


def families(rules: Path | None) -> list[Family]:
    """The user's file, then all files of the package."""
    own = [] if rules is None else [rules]
    return [
        read_rules(path)
        for path in (*own, *sorted(RULES.glob("*.json")))
        if path != RULES / "common.json"
    ]


class RuleFile(TypedDict, total=False):
    """A file of rules."""

    extends: str
    anchors: list[str]
    prefix: str
    types: dict[str, list[str]]
    drop: list[str]
    rules: list[list[str | list[str]]]


@cache
def read_rules(path: Path) -> Family:
    """The rules of a file.

    Raises:
        UserError: it is not such a file.
    """
    table: RuleFile = load(path, RuleFile)
    for key in table:
        pick(key, RuleFile.__annotations__, f"{path}: keys")
    try:
        rules = [
            rule for row in table.get("rules", []) for rule in _rules(row, table.get("types", {}))
        ]
    except (ValueError, re.error) as error:
        raise UserError(f"{path}: {error}") from None
    anchors = table.get("anchors", [])
    drop = table.get("drop", [])
    named = {rule.name for rule in rules}
    if "extends" in table:
        files = {file.stem: file for file in RULES.glob("*.json") if file.stem != "common"}
        base = read_rules(files[pick(table["extends"], sorted(files), f"{path}: extends")])
        rules += [rule for rule in base.rules if rule.name not in named]
        anchors = [*anchors, *base.anchors]
        drop = [*drop, *base.drop]
    return Family(path.stem, tuple(anchors), tuple(rules), tuple(drop), table.get("prefix"))


def _rules(
    row: Sequence[str | Sequence[str]], groups: Mapping[str, Sequence[str]]
) -> Iterator[Rule]:
    """The rules of a row: one for each way to write out the optional parts of its native names."""
    first, *texts = row if row else [""]
    name, layout, types = (
        (*texts, "") if len(texts) == 2 else texts if len(texts) == 3 else ("", "", "")
    )
    if not (
        first
        and name
        and isinstance(name, str)
        and isinstance(layout, str)
        and isinstance(types, str)
    ):
        raise ValueError(
            f"a rule is [native name, Hugging Face name, layout, model types], not {shown(str(row))}"
        )
    kinds = tuple(kind for word in types.split() for kind in groups.get(word, [word]))
    forms = [_forms(native, layout) for native in ([first] if isinstance(first, str) else first)]
    for form in zip(*forms, strict=True):
        names = tuple(native for native, _ in form)
        text = form[0][1]
        rule = Rule(names, name, text, _layout(text, name) if text else None, kinds)
        rule.check()
        yield rule


def _forms(native: str, layout: str) -> list[tuple[str, str]]:
    """`[x]` is there or not; an index that is not in the name is an axis in front of the tensor."""
    found = OPTIONAL_PART.search(native)
    if found is None:
        return [(native, layout)]
    count = len(OPTIONAL_PART.findall(native))
    if count > MAX_OPTIONAL:
        raise ValueError(
            f"{shown(native)} has {count} optional parts [x], at most {MAX_OPTIONAL} are allowed"
        )
    head = native[: found.start()]
    axis = PLACEHOLDER.search(found[1])
    tails = _forms(native[found.end() :], layout)
    numbered = [(f"{head}{found[1]}{tail}", text) for tail, text in tails]
    return numbered + [(head + tail, f"{axis[1]} {text}" if axis else text) for tail, text in tails]


def _layout(text: str, name: str) -> tuple[Dims, Dims]:
    """Axes of the native tensor and of the Hugging Face tensor; these are the same but for indexes in its name."""
    before, arrow, after = text.partition("->")
    dims = _dims(before)
    if arrow:
        return dims, _dims(after)
    indexes = PLACEHOLDER.findall(name)
    return dims, tuple(dim for dim in dims if not (len(dim) == 1 and dim[0].name in indexes))


def _dims(text: str) -> Dims:
    return tuple(
        tuple(map(_axis, dim.strip("()").split()))
        for dim in re.findall(r"\([^()]*\)|[^\s()]+", text)
    )


def _axis(text: str) -> Axis:
    found = AXIS.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{shown(text)} is not an axis: write name, name=size, name[index] or name[start:stop]"
        )
    start = found["start"] or ""
    stop = found["stop"] or ""
    return Axis(
        found["name"],
        found["size"] or "",
        start,
        stop if found["range"] or not start else f"{start}+1",
    )


@cache
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


@cache
def pattern_of(native: str) -> re.Pattern[str]:
    parts = PLACEHOLDER.split(native)
    groups = [
        "(?P<rest>.+)" if part == "rest" else f"(?P<{part}>0|[1-9][0-9]{{0,5}})"
        for part in parts[1::2]
    ]
    return re.compile(
        "".join(
            re.escape(text) + group for text, group in zip(parts[::2], [*groups, ""], strict=True)
        )
    )


# Sizes and shapes


def sizes_of(config: JsonObject) -> dict[str, int]:
    """The sizes that layouts may name, as far as a config has them."""
    inner = config.get("text_config")
    tables = [inner, config] if isinstance(inner, dict) else [config]
    known = {
        key: value
        for table in tables
        for key, value in table.items()
        if type(value) is int and value > 0
    }
    sizes = {
        name: next((known[key] for key in keys if key in known), 0)
        for name, keys in common()["sizes"].items()
    }
    if sizes["heads"]:
        sizes["head_dim"] = sizes["head_dim"] or sizes["hidden"] // sizes["heads"]
    sizes["half"], sizes["queries"] = (
        sizes["head_dim"] // 2,
        sizes["heads"] // (sizes["kv_heads"] or 1),
    )
    return {name: size for name, size in sizes.items() if size}


def _value(text: str, sizes: Mapping[str, int]) -> int:
    """The sum of numbers and sizes that a text names."""
    terms = text.split("+")
    if odd := [
        term for term in terms if term not in sizes and not re.fullmatch(r"-?\d{1,9}", term)
    ]:
        raise ValueError(f"the config does not define {shown(odd[0])}")
    return sum(sizes[term] if term in sizes else int(term) for term in terms)


def extents(dims: Dims, shape: Shape, sizes: Mapping[str, int]) -> Axes:
    """The axes of a native tensor (ValueError: its shape is another)."""
    if len(dims) != len(shape):
        raise ValueError(f"it should have {len(dims)} dimensions")
    axes = [axis.name for dim in dims for axis in dim]
    counts = [
        size
        for dim, length in zip(dims, shape, strict=True)
        for size in _factors(dim, length, sizes)
    ]
    return {
        axis: (n, step, 0)
        for axis, n, step in zip(axes, counts, row_major(tuple(counts)), strict=True)
    }


def _factors(dim: Sequence[Axis], length: int, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of the axes that make up a dimension; at most one follows from its length."""
    known = [_value(axis.size, sizes) if axis.size else sizes.get(axis.name, 0) for axis in dim]
    rest = math.prod(size for size in known if size)
    if known.count(0) > 1 or rest < 1:
        raise ValueError(
            f"the config has too few of the sizes {', '.join(axis.name for axis in dim)}"
        )
    if length % rest or (0 not in known and length != rest):
        text = " x ".join(
            f"{axis.name} {size or '?'}" for axis, size in zip(dim, known, strict=True)
        )
        raise ValueError(f"{length} is not {text}")
    return [size or length // rest for size in known]


def bounds(axis: Axis, size: int, sizes: Mapping[str, int]) -> tuple[int, int]:
    """First index and number of indexes of an axis that a layout takes (ValueError: there are not so many)."""
    start = _value(axis.start or "0", sizes)
    stop = _value(axis.stop, sizes) if axis.stop else size
    if not 0 <= start < stop <= size:
        raise ValueError(f"{axis.name} has {size} of the {stop} that are needed")
    return start, stop - start
