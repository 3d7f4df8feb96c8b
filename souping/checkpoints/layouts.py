"""Reader of `rules/*.json` and users' rules for trainers' tensor names and shapes. A new trainer goes in `trainers`."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from souping.checkpoints.header import parse_json
from souping.checkpoints.trainers import (
    MODEL_PLACES,
    RULES,
    TRAINERS,
    WEIGHT_PLACES,
    Trainer,
    step_pattern,
)
from souping.checkpoints.views import Shape, row_major
from souping.core.fields import load_json, pick
from souping.core.files import expanded
from souping.core.installed import installed_parts
from souping.core.text import shown
from souping.core.types import JsonObject, Names, UserError

SOURCE = "source"
"""Axis of the result that counts the native tensors of a rule which has several."""
RULE_FILES = {path.stem: path for path in sorted({trainer.rules for trainer in TRAINERS})}
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
OPTIONAL_PART = re.compile(r"\[([^\[\]]*)\]")
"""`[x]` in a native name; group 1 is x."""
MAX_OPTIONAL = 6
"""Optional parts of a name at most: a rule is written out for every combination of them."""
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
"""Dimensions of a tensor, each a product of axes; `()` is one of size 1."""
Axes = Mapping[str, tuple[int, int, int]]
"""{axis: (size, step in elements within a native tensor, jump from native tensor to native tensor)}"""


@dataclass(frozen=True)
class Rule:
    """How one kind of tensor is called and laid out by a trainer (native) and by Hugging Face.

    `natives` are patterns of names of the native tensors that make up one, `name` is that of Hugging Face. `layout` are
    the native dimensions and those of Hugging Face, `text` is the layout as written; without a layout, the tensor stays
    as it is, whatever its shape. `types` are the model types that the rule is for, or with a `!`, not for; none: all.
    """

    natives: tuple[str, ...]
    name: str
    text: str
    layout: tuple[Dims, Dims] | None
    types: tuple[str, ...] = ()

    def fits(self, model_type: str) -> bool:
        """Whether the rule is for models of a type."""
        if f"!{model_type}" in self.types:
            return False
        allowed = [kind for kind in self.types if not kind.startswith("!")]
        return not allowed or model_type in allowed

    @cached_property
    def indexes(self) -> Names:
        """Placeholders of the Hugging Face name."""
        return tuple(PLACEHOLDER.findall(self.name))

    @cached_property
    def stacked(self) -> Names:
        """The axes of the Hugging Face tensor that count native tensors: SOURCE first, then indexes that only native
        names have."""
        numbers = PLACEHOLDER.findall(self.natives[0])
        return (SOURCE, *(axis for axis in numbers if axis not in self.indexes))

    @cached_property
    def unstacked(self) -> Names:
        """The axes of the native tensor that are indexes that only the Hugging Face name has."""
        numbers = PLACEHOLDER.findall(self.natives[0])
        return tuple(axis for axis in self.indexes if axis not in numbers)

    def target(self, indexes: Mapping[str, str]) -> str:
        """The Hugging Face name with these indexes in place of its placeholders."""
        return PLACEHOLDER.sub(lambda match: indexes[match[1]], self.name)

    def check(self) -> None:
        """Raises ValueError unless each axis of one side stands once on the other, and native names are patterns."""
        for native in self.natives:
            pattern_of(native)
        # SOURCE, the first entry, is an axis only of rules with several native tensors.
        sources = self.stacked if len(self.natives) > 1 else self.stacked[1:]
        native_dims, result_dims = self.layout or ((), ())
        native_axes = [*axis_names(native_dims), *sources]
        result_axes = [*axis_names(result_dims), *self.unstacked]
        once = len(set(native_axes)) == len(native_axes)
        if once and sorted(native_axes) == sorted(result_axes):
            return
        wrong = sorted(set(native_axes) ^ set(result_axes))
        if not wrong:
            wrong = sorted(name for name in native_axes if native_axes.count(name) > 1)
        raise ValueError(
            f"{self.text!r} for {shown(self.name)} must have the axis {', '.join(wrong)} once on each side"
        )


@dataclass(frozen=True)
class Family:
    """The rules of one file, for the checkpoints of one trainer.

    `anchors` are names that every model has: what comes before one is the prefix of all names, unless `prefix` is
    given. Names that match a pattern of `drop` need no rule.
    """

    name: str
    anchors: tuple[str, ...]
    rules: tuple[Rule, ...]
    drop: tuple[str, ...] = ()
    prefix: str | None = None


@cache
def common() -> dict[str, Any]:
    """The object in rules/common.json: names and sizes that all trainers share."""
    table: dict[str, Any] = parse_json(RULES / "common.json", (RULES / "common.json").read_bytes())
    return table


def is_weight(name: str) -> bool:
    """Whether a trainer's tensor may belong to the model, by its name."""
    drop = any_of(tuple(common()["drop"]))
    return not any(drop.fullmatch(part) for part in re.split(r"[./]", name))


def rules_of(names: str | None) -> Path | None:
    """The file of rules in `merge.name_rules` (UserError: there is none)."""
    if not names:
        return None
    path = expanded(names, "merge.name_rules")
    if not path.is_file():
        raise UserError(f"merge.name_rules={names}: {path} is not a file: give a file of rules")
    return path


def families(rules: Path | None) -> Iterator[Family]:
    """The rules of the user's file, if there is one, those of each trainer, then those of installed packages."""
    paths = [] if rules is None else [rules]
    yield from map(read_rules, (*paths, *RULE_FILES.values()))
    yield from (read_rules(trainer.rules) for trainer in installed_trainers())


# Trainers of installed packages: asked for after all of souping's own, as asking imports the packages


@cache
def installed_trainers() -> tuple[Trainer, ...]:
    """The trainers that installed packages bring (entry points `souping.layouts`), with rules that can be read."""
    names = [trainer.name for trainer in TRAINERS]
    return installed_parts("souping.layouts", Trainer, names, _check_trainer)


def _check_trainer(trainer: Trainer) -> None:
    """Raise an error if the rules, or a pattern, of a trainer cannot be read."""
    read_rules(trainer.rules)
    for pattern in (step_pattern(trainer).pattern, trainer.average, trainer.average_state):
        re.compile(pattern)


def all_trainers() -> Iterator[Trainer]:
    yield from TRAINERS
    yield from installed_trainers()


def weight_places() -> Iterator[str]:
    """Places for weights in the folders of all trainers."""
    yield from WEIGHT_PLACES
    yield from chain.from_iterable(trainer.weights for trainer in installed_trainers())


def model_places() -> Iterator[str]:
    """Places for models in the folders of all trainers."""
    yield from MODEL_PLACES
    yield from chain.from_iterable(trainer.models for trainer in installed_trainers())


class RuleFile(TypedDict, total=False):
    """A file of rules; a row of `rules` is [native name or names, Hugging Face name, layout, model types]."""

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
    table: RuleFile = load_json(path, RuleFile)
    for key in table:
        pick(key, RuleFile.__annotations__, f"{path}: keys")
    rules = list[Rule]()
    try:
        for row in table.get("rules", []):
            rules.extend(_rules(row, table.get("types", {})))
    except (ValueError, re.error) as error:
        raise UserError(f"{path}: {error}") from None
    anchors = table.get("anchors", [])
    drop = table.get("drop", [])
    if "extends" in table:
        base = read_rules(RULE_FILES[pick(table["extends"], RULE_FILES, f"{path}: extends")])
        # The file's rules for a name replace all rules of the base for that name.
        names = {rule.name for rule in rules}
        rules += [rule for rule in base.rules if rule.name not in names]
        anchors = [*anchors, *base.anchors]
        drop = [*drop, *base.drop]
    return Family(path.stem, tuple(anchors), tuple(rules), tuple(drop), table.get("prefix"))


def _rules(
    row: Sequence[str | Sequence[str]], groups: Mapping[str, Sequence[str]]
) -> Iterator[Rule]:
    """The rules of a row: one for each way to write out the optional parts of its native names.

    `groups` are {name: model types} that the row may name instead of types.
    """
    natives, name, layout, types = _fields(row)
    model_types = list[str]()
    for word in types.split():
        model_types.extend(groups.get(word, [word]))
    forms = [_forms(native, layout) for native in natives]
    # ValueError if the native names have different numbers of optional parts.
    for same_parts in zip(*forms, strict=True):
        names = tuple(native for native, _ in same_parts)
        # All native tensors of a rule are laid out alike.
        _, text = same_parts[0]
        rule = Rule(names, name, text, _layout(text, name) if text else None, tuple(model_types))
        rule.check()
        yield rule


def _fields(row: Sequence[str | Sequence[str]]) -> tuple[Sequence[str], str, str, str]:
    """(native names, Hugging Face name, layout, model types) of a row, which may end after the layout."""
    texts = [*row, ""] if len(row) == 3 else row
    if len(texts) == 4:
        natives, name, layout, types = texts
        if isinstance(natives, str) and natives:
            natives = [natives]
        strings = isinstance(name, str) and isinstance(layout, str) and isinstance(types, str)
        if strings and natives and name:
            return natives, str(name), str(layout), str(types)
    raise ValueError(
        f"a rule is [native name, Hugging Face name, layout, model types], not {shown(str(row))}"
    )


def _forms(native: str, layout: str) -> list[tuple[str, str]]:
    """(native name, its layout) for each way to write out the optional parts `[x]` of a native name.

    If an optional part with a placeholder is left out, the tensor holds all of its values: the placeholder is an axis
    in front of the layout. So `layers.[{layer}.]w` with layout `out in` is `layers.{layer}.w` with `out in`, and
    `layers.w` with `layer out in`.
    """
    optional = OPTIONAL_PART.search(native)
    if optional is None:
        return [(native, layout)]
    count = len(OPTIONAL_PART.findall(native))
    if count > MAX_OPTIONAL:
        raise ValueError(
            f"{shown(native)} has {count} optional parts [x], at most {MAX_OPTIONAL} are allowed"
        )
    head = native[: optional.start()]
    axis = PLACEHOLDER.search(optional[1])
    front = f"{axis[1]} " if axis else ""
    tails = _forms(native[optional.end() :], layout)
    with_part = [(f"{head}{optional[1]}{tail}", text) for tail, text in tails]
    without_part = [(head + tail, front + text) for tail, text in tails]
    return with_part + without_part


def _layout(text: str, name: str) -> tuple[Dims, Dims]:
    """(native dimensions, dimensions of Hugging Face) of a layout, `before -> after`.

    Without an arrow, the tensor only loses the dimensions that are indexes in its Hugging Face name.
    """
    before, arrow, after = text.partition("->")
    dims = _dims(before)
    if arrow:
        return dims, _dims(after)
    indexes = [(axis,) for axis in PLACEHOLDER.findall(name)]
    return dims, tuple(dim for dim in dims if axis_names([dim]) not in indexes)


def _dims(text: str) -> Dims:
    """The dimensions of one side of a layout, such as `layer (heads head_dim) hidden`; brackets join axes to one."""
    dims = re.findall(r"\([^()]*\)|[^\s()]+", text)
    return tuple(tuple(map(_axis, dim.strip("()").split())) for dim in dims)


def _axis(text: str) -> Axis:
    """The axis in a text: name, name=size, name[index] or name[start:stop]."""
    match = AXIS.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{shown(text)} is not an axis: write name, name=size, name[index] or name[start:stop]"
        )
    start = match["start"] or ""
    stop = match["stop"] or ""
    # An index is the range of one.
    if start and not match["range"]:
        stop = f"{start}+1"
    return Axis(match["name"], match["size"] or "", start, stop)


def axis_names(dims: Sequence[Sequence[Axis]]) -> Names:
    """The names of all axes of some dimensions, in order."""
    return tuple(axis.name for axis in chain.from_iterable(dims))


@cache
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """What matches one of these patterns of the shell, or nothing if there are none."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


@cache
def pattern_of(native: str) -> re.Pattern[str]:
    """What matches native names, with a group for each {placeholder} of them: `rest` is any text, others numbers."""
    # The split alternates between texts and placeholders, and begins and ends with a text.
    text, *pieces = PLACEHOLDER.split(native)
    pattern = re.escape(text)
    for placeholder, text in zip(pieces[::2], pieces[1::2], strict=True):
        values = ".+" if placeholder == "rest" else "0|[1-9][0-9]{0,5}"
        pattern += f"(?P<{placeholder}>{values}){re.escape(text)}"
    return re.compile(pattern)


# Sizes and shapes


def sizes_of(config: JsonObject) -> dict[str, int]:
    """{name in layouts: size} of the sizes that a config has or that follow from others; unknown ones are left out."""
    # The config itself overrides the config of the text model in it.
    settings = dict[str, int]()
    for table in (config.get("text_config"), config):
        if isinstance(table, Mapping):
            settings |= {k: v for k, v in table.items() if type(v) is int and v > 0}

    sizes = dict[str, int]()
    for name, keys in common()["sizes"].items():
        sizes[name] = next((settings[key] for key in keys if key in settings), 0)
    if sizes["heads"] and not sizes["head_dim"]:
        sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
    # Half a head (rotary embeddings), and the query heads for each key and value head.
    sizes["half"] = sizes["head_dim"] // 2
    sizes["queries"] = sizes["heads"] // (sizes["kv_heads"] or 1)
    return {name: size for name, size in sizes.items() if size}


def _value(text: str, sizes: Mapping[str, int]) -> int:
    """The sum of a text such as `heads+2`, of numbers and names of sizes."""
    total = 0
    for term in text.split("+"):
        if term in sizes:
            total += sizes[term]
        elif re.fullmatch(r"-?\d{1,9}", term):
            total += int(term)
        else:
            raise ValueError(f"the config does not define {shown(term)}")
    return total


def extents(dims: Dims, shape: Shape, sizes: Mapping[str, int]) -> Axes:
    """The axes of a native tensor, from its dimensions in a layout and its shape (ValueError: they do not fit)."""
    if len(dims) != len(shape):
        raise ValueError(f"it should have {len(dims)} dimensions")
    counts = list[int]()
    for dim, length in zip(dims, shape, strict=True):
        counts.extend(_factors(dim, length, sizes))
    steps = row_major(tuple(counts))
    axes = zip(axis_names(dims), counts, steps, strict=True)
    # All elements are in one tensor: no axis jumps to another.
    return {name: (count, step, 0) for name, count, step in axes}


def _factors(dim: Sequence[Axis], length: int, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of the axes whose product is a dimension of this `length`; one may be unknown, and follows from it."""
    names = axis_names([dim])
    # 0 stands for a size that the config does not give. No size is negative.
    known = [_value(axis.size, sizes) if axis.size else sizes.get(axis.name, 0) for axis in dim]
    product = math.prod(size for size in known if size)
    if known.count(0) > 1:
        raise ValueError(f"the config has too few of the sizes {', '.join(names)}")
    if length % product or (0 not in known and length != product):
        factors = [f"{name} {size or '?'}" for name, size in zip(names, known, strict=True)]
        raise ValueError(f"{length} is not {' x '.join(factors)}")
    return [size or length // product for size in known]


def bounds(axis: Axis, size: int, sizes: Mapping[str, int]) -> tuple[int, int]:
    """(first index, number of indexes) of an axis's slice in a layout.

    Raises:
        ValueError: the slice is empty, or reaches beyond the axis.
    """
    start = _value(axis.start or "0", sizes)
    stop = _value(axis.stop, sizes) if axis.stop else size
    if not 0 <= start < stop <= size:
        raise ValueError(f"{axis.name} has {size} of the {stop} that are needed")
    return start, stop - start
