"""Trainers' tensors under the names and in the layout of Hugging Face.

Nothing here reads a weight: a tensor of the result is a view of the trainer's tensors.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

from souping.checkpoints.layouts import (
    RULES,
    Axes,
    Dims,
    Family,
    Rule,
    any_of,
    bounds,
    common,
    extents,
    families,
    is_weight,
    pattern_of,
    read_rules,
    sizes_of,
)
from souping.checkpoints.views import Shape, View, row_major
from souping.core.text import listed, shown
from souping.core.types import JsonObject, Names, UserError

HUGGING_FACE = "hugging_face"
HEAD_NAME, EMBEDDING_NAME = "lm_head.weight", "model.embed_tokens.weight"
MAX_TENSORS = 300_000
MAX_NAME_PARTS = 20
"""Parts of a name that are looked at to find where Hugging Face's begins."""
Headers = Mapping[str, tuple[str, Shape]]
"""{name: (dtype's tag, shape)} of a checkpoint."""


@dataclass(frozen=True)
class Mapped:
    """Tensor under its Hugging Face name, and the rule that makes it."""

    rule: Rule
    view: View


def map_names(
    native: Headers,
    config: JsonObject,
    like: Mapping[str, Shape] | None = None,
    rules: Path | None = None,
    where: str | Path = "the checkpoint",
) -> dict[str, Mapped]:
    """The tensors of a Hugging Face model that a checkpoint holds, by name, from the rules that name every tensor.

    Args:
        native: the headers of the checkpoint's tensors.
        config: the model's config.json.
        like: names and shapes that must come out, of a model folder.
        rules: a file of the user's own, which is tried before those of the package.
        where: the checkpoint, for messages.

    Raises:
        UserError: no rules fit, a tensor has none, or a name or shape is not what the config or `like` has.
    """
    clean = _cleaned(native, where)
    plans = list[Assignment]()
    failures = list[UserError]()
    for family in families(rules):
        for prefix in _prefixes(family, clean, like):
            try:
                plans.append(Assignment(family, prefix, native, clean, config, like, where))
            except UserError as error:  # another trainer's rules may fit
                failures.append(error)
    if failures and all(plan.unknown for plan in plans):
        raise failures[0]
    if not plans:
        advice = "give pool.like=HF_FOLDER if these are Hugging Face's names, or merge.names=FILE with rules"
        raise UserError(
            f"{where}: no trainer's rules fit its tensors ({listed(sorted(clean), 3)}): {advice}"
        )
    plan = min(plans, key=lambda plan: len(plan.unknown))
    # what the user's own rules lack comes first
    plan = plans[0] if plan.unknown and rules else plan
    plan.check()
    mapped = {name: plan.build(name, plan.found[name]) for name in sorted(plan.found)}
    if lacking := [name for name in like or () if name not in mapped]:
        raise UserError(f"{where} holds nothing for {listed(lacking, 5)}, which pool.like has")
    for name, tensor in mapped.items():
        if like is not None and tensor.view.shape != like[name]:
            becomes = (
                f"{shown(tensor.view.sources[0])} becomes {shown(name)} {list(tensor.view.shape)}"
            )
            raise UserError(f"{where}: {becomes}, and pool.like has {list(like[name])}")
    return mapped


def described(mapped: Mapping[str, Mapped], stored: Iterable[str]) -> list[str]:
    """One line for each rule: a tensor that it makes, how many more there are, and its layout."""
    kinds: dict[Rule, list[str]] = defaultdict(list)
    for name, tensor in mapped.items():
        kinds[tensor.rule].append(name)
    lines = []
    for rule, names in kinds.items():
        first = mapped[names[0]].view
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        layout = f": {rule.text}" if rule.text else ""
        lines.append(
            f"{listed(first.sources, 2)} -> {shown(names[0])} {list(first.shape)}{more}{layout}"
        )
    used = {source for tensor in mapped.values() for source in tensor.view.sources}
    left = [name for name in stored if name not in used]
    return lines + ([f"left out: {listed(left, 5)}"] if left else [])


def regrouped(stored: Headers, config: JsonObject, where: str | Path) -> dict[str, Mapped] | None:
    """The tensors of a Hugging Face folder whose experts are not laid out as its model_type stores them; else None."""
    rules = [
        rule for rule in read_rules(RULES / f"{HUGGING_FACE}.json").rules if rule.layout is not None
    ]
    model_type = str(config.get("model_type"))
    patterns = [
        pattern_of(native) for rule in rules if rule.fits(model_type) for native in rule.natives
    ]
    if not any(pattern.fullmatch(name) for name in stored for pattern in patterns):
        return None
    return map_names(stored, config, where=where)


def _cleaned(native: Iterable[str], where: str | Path) -> dict[str, str]:
    """{name without wrappers: name} of what may belong to the model."""
    wrappers = set(common()["wrappers"])
    table = dict[str, str]()
    for name in filter(is_weight, native):
        short = ".".join(part for part in re.split(r"[./]", name) if part not in wrappers)
        if short in table:
            raise UserError(
                f"{where}: {shown(name)} and {shown(table[short])} are both {shown(short)}"
            )
        table[short] = name
    return table


def _prefixes(family: Family, names: Iterable[str], like: Mapping[str, Shape] | None) -> list[str]:
    """What may be in front of a family's names: what is there before its anchors, or before names of `like`."""
    if family.prefix is not None or not family.anchors:
        return [family.prefix or ""]
    anchors = like if family.name == HUGGING_FACE and like else family.anchors
    starts = (
        (name, at)
        for name in names
        for at in (0, *(m.end() for m in islice(re.finditer(r"\.", name), MAX_NAME_PARTS)))
    )
    return [
        prefix
        for prefix, _ in Counter(n[:at] for n, at in starts if n[at:] in anchors).most_common(2)
    ]


@dataclass
class Found:
    """What makes one tensor: a rule, the indexes in its name, and its native tensors by their place along the axes
    that count them."""

    rule: Rule
    indexes: Mapping[str, str]
    sources: dict[Shape, str] = field(default_factory=dict)


@dataclass
class Assignment:
    """What the rules of one family say of a checkpoint: `found` tensors by Hugging Face name, and `unknown` ones."""

    family: Family
    prefix: str
    native: Headers
    clean: Mapping[str, str]
    config: JsonObject
    like: Mapping[str, Shape] | None
    where: str | Path

    def __post_init__(self) -> None:
        self.sizes, self.model_type = sizes_of(self.config), str(self.config.get("model_type"))
        self.found: dict[str, Found] = {}
        self.unknown: list[str] = []
        tied = self.config.get("tie_word_embeddings") is True
        self._omits_head = tied and (self.like is None or HEAD_NAME not in self.like)
        self._groups: dict[str, list[tuple[Rule, int]]] = defaultdict(list)
        for rule in self.family.rules:
            if rule.fits(self.model_type):
                for number, pattern in enumerate(rule.natives):
                    self._groups[pattern].append((rule, number))
        drop = any_of(self.family.drop)
        for short, name in self.clean.items():
            inside = short.startswith(self.prefix) and self._place(
                short.removeprefix(self.prefix), name
            )
            if not inside and not drop.fullmatch(short):
                self.unknown.append(name)
        if (
            tied
            and not self._omits_head
            and HEAD_NAME not in self.found
            and EMBEDDING_NAME in self.found
        ):
            self.found[HEAD_NAME] = self.found[EMBEDDING_NAME]

    def _place(self, short: str, name: str) -> bool:
        """Whether rules say where a native tensor goes; those of the first pattern that matches decide."""
        for pattern, rules in self._groups.items():
            match = pattern_of(pattern).fullmatch(short)
            wanted = False
            for rule, number in rules if match else ():
                for target, indexes in self._targets(
                    rule, name, match.groupdict() if match else {}
                ):
                    left_out = self._omits_head and target == HEAD_NAME
                    if not left_out and (self.like is None or target in self.like):
                        self._add(target, rule, number, indexes, name)
                        wanted = True
                    wanted |= left_out
            if wanted:
                return True
        return False

    def _targets(
        self, rule: Rule, name: str, indexes: Mapping[str, str]
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """What comes of a native tensor: Hugging Face names, and the indexes of all axes."""
        table = self._extents(rule, name) if rule.unstacked else {}
        counts = [table[axis][0] for axis in rule.unstacked]
        if math.prod(counts) > MAX_TENSORS:
            raise UserError(f"{self.where}: {shown(name)} would be {math.prod(counts)} tensors")
        for values in product(*map(range, counts)):
            every = {**indexes, **dict(zip(rule.unstacked, map(str, values), strict=True))}
            yield rule.target(every), every

    def _add(
        self, target: str, rule: Rule, number: int, indexes: Mapping[str, str], name: str
    ) -> None:
        place = (number, *(int(indexes[axis]) for axis in rule.stacked[1:]))
        known = self.found.setdefault(
            target, Found(rule, {axis: indexes[axis] for axis in rule.indexes})
        )
        if known.rule != rule or place in known.sources:
            other = next(iter(known.sources.values()))
            raise UserError(
                f"{self.where}: {shown(other)} and {shown(name)} would both be {shown(target)}"
            )
        known.sources[place] = name
        if len(self.found) > MAX_TENSORS:
            raise UserError(f"{self.where}: more than {MAX_TENSORS} tensors")

    def _extents(self, rule: Rule, name: str) -> Axes:
        try:
            return extents(rule.layout[0], self.native[name][1], self.sizes) if rule.layout else {}
        except ValueError as error:
            raise self._misfit(name, rule, error) from None

    def _misfit(self, name: str, rule: Rule, error: ValueError) -> UserError:
        what = f"{shown(name)} {list(self.native[name][1])}"
        return UserError(
            f"{self.where}: {what} is not `{rule.text}` ({self.family.name}) by the config: {error}"
        )

    def check(self) -> None:
        """Raises UserError where a tensor has no rule, or a layer or an expert is missing."""
        if self.unknown:
            kind = (
                "a tensor of pool.like"
                if self.family.name == HUGGING_FACE
                else f"by the rules {self.family.name}"
            )
            names = listed(sorted(self.unknown), 5)
            advice = "name them in a file of rules, merge.names=FILE"
            raise UserError(
                f"{self.where}: not {kind} for model_type {shown(self.model_type)}: {names}: {advice}"
            )
        if self.like is None:
            self._check_indexes("layer")
            self._check_indexes("expert")

    def _check_indexes(self, axis: str) -> None:
        """Of every kind of tensor that has it in its name, each index must be there."""
        present: dict[Names, set[int]] = defaultdict(set)
        for found in self.found.values():
            if axis in found.indexes:
                rest = tuple(
                    f"{key} {value}" for key, value in found.indexes.items() if key != axis
                )
                present[(found.rule.name, *rest) if axis == "expert" else ()].add(
                    int(found.indexes[axis])
                )
        for indexes in present.values():
            count = self.sizes.get(axis, max(indexes) + 1)
            most = count + (self.sizes.get("predicted", 0) if axis == "layer" else 0)
            lacking = next((index for index in range(count) if index not in indexes), None)
            if lacking is not None or max(indexes) >= most:
                what = f"no {axis} {lacking}" if lacking is not None else f"a {axis} {max(indexes)}"
                raise UserError(f"{self.where}: there is {what}, and the config has {count}")

    def build(self, target: str, found: Found) -> Mapped:
        """The tensor of a Hugging Face name.

        Raises:
            UserError: a source is missing, or shapes or dtypes do not fit.
        """
        rule = found.rule
        names = tuple(found.sources[place] for place in sorted(found.sources))
        kinds = {self.native[name] for name in names}
        if len(kinds) > 1:
            raise UserError(
                f"{self.where}: the parts of {shown(target)} differ in shape or dtype ({listed(names, 3)})"
            )
        if rule.layout is None:
            return Mapped(rule, View.of(names[0], self.native[names[0]][1]))
        table = {**self._counts(target, found), **self._extents(rule, names[0])}
        try:
            return Mapped(rule, _arranged(found, names, rule.layout[1], table, self.sizes))
        except ValueError as error:
            raise self._misfit(names[0], rule, error) from None

    def _counts(self, target: str, found: Found) -> Axes:
        """The axes that count a tensor's sources, all of which must be there."""
        counts = [len(found.rule.natives)]
        for number, axis in enumerate(found.rule.stacked[1:], 1):
            counts.append(self.sizes.get(axis, max(place[number] for place in found.sources) + 1))
        for place in product(*(range(min(count, len(found.sources) + 1)) for count in counts)):
            if place not in found.sources:
                which = ", ".join(
                    f"{axis} {index}" for axis, index in zip(found.rule.stacked, place, strict=True)
                )
                raise UserError(f"{self.where}: {shown(target)} lacks {which}")
        jumps = row_major(tuple(counts))
        return {
            axis: (n, 0, jump)
            for axis, n, jump in zip(found.rule.stacked, counts, jumps, strict=True)
        }


def _arranged(
    found: Found, names: Names, dims: Dims, table: Axes, sizes: Mapping[str, int]
) -> View:
    """The view of a tensor whose axes are in `table` (ValueError: a slice is outside of its axis)."""
    shape = list[int]()
    axes = list[tuple[int, int, int]]()
    offset = sum(int(found.indexes[axis]) * table[axis][1] for axis in found.rule.unstacked)
    for dim in dims:
        shape.append(1)
        for axis in dim:
            size, step, jump = table[axis.name]
            start, count = bounds(axis, size, sizes)
            if jump and count < size:
                raise ValueError(f"{axis.name} counts tensors, so it cannot be cut")
            offset += start * step
            shape[-1] *= count
            # one run with the axis before
            if axes and axes[-1][1:] == (count * step, count * jump):
                axes[-1] = (axes[-1][0] * count, step, jump)
            elif count > 1:
                axes.append((count, step, jump))
    return View(tuple(shape), names, offset, tuple(axes))
