"""Trainers' tensors under the names and in the layout of Hugging Face.

Nothing here reads a weight: a tensor of the result is a list of views of the trainer's tensors.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice, product
from pathlib import Path

from souping.checkpoints.layouts import (
    RULES,
    Dims,
    Family,
    Rule,
    any_of,
    bounds,
    common,
    extents,
    families,
    pattern_of,
    read_rules,
    sizes_of,
)
from souping.checkpoints.views import Shape, View
from souping.core.text import listed, shown
from souping.core.types import Json, UserError, digest

PLAIN = "hugging_face"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MAX_VIEWS = 1_000_000
MAX_TENSORS = 300_000
SAMPLE, MAX_PARTS = 1000, 20
"""Names, and parts of each, that are looked at to find what stands before Hugging Face's."""
Headers = Mapping[str, tuple[str, Shape]]
"""{name: (dtype's tag, shape)} of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A tensor under its Hugging Face name; `views()` one after the other hold its elements."""

    dtype: str
    shape: Shape
    sources: tuple[str, ...]
    rule: Rule
    views: partial[list[View]] = field(compare=False, repr=False)


class ViewTable(Mapping[str, Sequence[View]]):
    """The views of tensors by name, made when they are needed: experts that are put together may have many."""

    def __init__(self, mapped: Mapping[str, Mapped]) -> None:
        self._mapped = mapped
        self._views = lru_cache(maxsize=8)(lambda name: mapped[name].views())

    def __getitem__(self, name: str) -> Sequence[View]:
        return self._views(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapped)

    def __len__(self) -> int:
        return len(self._mapped)

    def __repr__(self) -> str:
        """The same for the same views: digests of tensors are kept under it."""
        return repr({name: digest(list(map(str, self[name]))) for name in self})


def map_names(
    native: Headers,
    config: Mapping[str, Json],
    like: Mapping[str, Shape] | None = None,
    rules: Path | None = None,
    where: str | Path = "the checkpoint",
) -> dict[str, Mapped]:
    """The tensors of a Hugging Face model that a checkpoint holds, by name.

    Args:
        native: the headers of the checkpoint's tensors.
        config: the model's config.json.
        like: names and shapes that must come out, of a model folder.
        rules: a file of the user's own, which is tried before those of the package.
        where: the checkpoint, for messages.

    Raises:
        UserError: no rules fit, a tensor has none, or a name or shape is not what the config or `like` has.
    """
    plan = choose(native, config, like, rules, where)
    mapped = {name: plan.build(name) for name in sorted(plan.found)}
    if like is not None:
        _check_like(mapped, like, where)
    return mapped


def described(mapped: Mapping[str, Mapped], stored: Iterable[str]) -> list[str]:
    """One line for each rule: a tensor that it makes, how many more there are, and its layout."""
    kinds: dict[Rule, list[str]] = defaultdict(list)
    for name, tensor in mapped.items():
        kinds[tensor.rule].append(name)
    lines = []
    for rule, names in kinds.items():
        first = mapped[names[0]]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        layout = f": {rule.text}" if rule.text else ""
        lines.append(f"{listed(first.sources, 2)} -> {shown(names[0])} {list(first.shape)}{more}{layout}")
    used = {source for tensor in mapped.values() for source in tensor.sources}
    left = [name for name in stored if name not in used]
    return lines + ([f"left out: {listed(left, 5)}"] if left else [])


def regrouped(stored: Headers, config: Mapping[str, Json], where: str | Path) -> dict[str, Mapped] | None:
    """The tensors of a Hugging Face folder whose experts are not laid out as its model_type stores them; else None."""
    rules = [rule for rule in read_rules(RULES / f"{PLAIN}.json").rules if rule.layout is not None]
    model_type = str(config.get("model_type"))
    patterns = [pattern_of(native) for rule in rules if rule.fits(model_type) for native in rule.natives]
    if not any(pattern.fullmatch(name) for name in stored for pattern in patterns):
        return None
    return map_names(stored, config, where=where)


def choose(
    native: Headers, config: Mapping[str, Json], like: Mapping[str, Shape] | None, rules: Path | None, where: str | Path
) -> Assignment:
    """The family whose rules name every tensor, with what they say of each.

    Raises:
        UserError: there is none; what the user's own rules lack comes first.
    """
    clean = _cleaned(native, where)
    plans, failures = list[Assignment](), list[UserError]()
    for family in families(rules):
        for prefix in _prefixes(family, clean, like):
            try:
                plans.append(Assignment(family, prefix, native, clean, config, like, where))
            except UserError as error:  # another trainer's rules may fit
                failures.append(error)
    if failures and all(plan.unknown for plan in plans):
        raise failures[0]
    if not plans:
        raise UserError(
            f"{where}: no trainer's rules fit its tensors ({listed(sorted(clean), 3)}). "
            "Give pool.like=HF_FOLDER if these are Hugging Face's names, or merge.names=FILE with rules"
        )
    best = min(plans, key=lambda plan: len(plan.unknown))
    if best.unknown and rules is not None:
        best = plans[0]
    best.check()
    return best


def _cleaned(native: Iterable[str], where: str | Path) -> dict[str, str]:
    """{name without wrappers: name} of what may belong to the model."""
    wrappers, table = set(common()["wrappers"]), dict[str, str]()
    drop = any_of(tuple(common()["drop"]))
    for name in native:
        parts = [part for part in re.split(r"[./]", name) if part not in wrappers]
        if any(drop.fullmatch(part) for part in parts):
            continue
        short = ".".join(parts)
        if short in table:
            raise UserError(f"{where}: {shown(name)} and {shown(table[short])} are both {shown(short)}")
        table[short] = name
    return table


def _prefixes(family: Family, names: Iterable[str], like: Mapping[str, Shape] | None) -> list[str]:
    """What may stand in front of a family's names: what is there before its anchors, or before names of `like`."""
    if family.prefix is not None or not family.anchors:
        return [family.prefix or ""]
    ends, some = tuple(f".{anchor}" for anchor in family.anchors), islice(names, SAMPLE)
    counts = Counter[str]()
    if family.name == PLAIN and like:
        starts = [(name, [0, *(found.end() for found in re.finditer(r"\.", name))][:MAX_PARTS]) for name in some]
        counts.update(name[:at] for name, places in starts for at in places if name[at:] in like)
    else:
        found = [name for name in names if f".{name}".endswith(ends)]
        counts.update(name.removesuffix(anchor) for name in found for anchor in family.anchors if name.endswith(anchor))
    return [prefix for prefix, _ in counts.most_common(2)]


@dataclass
class Found:
    """What makes one tensor: a rule, the indexes in its name, and its native tensors by their place along the axes
    that count them."""

    rule: Rule
    indexes: Mapping[str, str]
    sources: dict[tuple[int, ...], str] = field(default_factory=dict)


class Assignment:
    """What the rules of one family say of a checkpoint: `found` tensors by Hugging Face name, and `unknown` ones."""

    def __init__(
        self,
        family: Family,
        prefix: str,
        native: Headers,
        clean: Mapping[str, str],
        config: Mapping[str, Json],
        like: Mapping[str, Shape] | None,
        where: str | Path,
    ) -> None:
        self.family, self.native, self.like, self.where = family, native, like, where
        self.sizes, self.model_type = sizes_of(config), str(config.get("model_type"))
        self.found: dict[str, Found] = {}
        self.unknown: list[str] = []
        self._tables: dict[tuple[str, str, str], dict[str, tuple[int, int]]] = {}
        tied = config.get("tie_word_embeddings") is True
        self.omits_head = tied and (like is None or HEAD not in like)
        groups, drop = self._groups(), any_of(family.drop)
        for short, name in clean.items():
            inside = short.startswith(prefix) and self._place(short.removeprefix(prefix), name, groups)
            if not inside and not drop.fullmatch(short):
                self.unknown.append(name)
        if tied and not self.omits_head and HEAD not in self.found and EMBEDDING in self.found:
            self.found[HEAD] = self.found[EMBEDDING]

    def _groups(self) -> dict[str, list[tuple[Rule, int]]]:
        """{native pattern: rules that use it, and as which of their sources}, in the file's order."""
        groups: dict[str, list[tuple[Rule, int]]] = defaultdict(list)
        for rule in self.family.rules:
            if rule.fits(self.model_type):
                for number, pattern in enumerate(rule.natives):
                    groups[pattern].append((rule, number))
        return groups

    def _place(self, short: str, name: str, groups: Mapping[str, list[tuple[Rule, int]]]) -> bool:
        """Whether rules say where a native tensor goes; those of the first pattern that matches decide."""
        for pattern, rules in groups.items():
            match = pattern_of(pattern).fullmatch(short)
            targets = self._targets(rules, name, match.groupdict()) if match else []
            if self.omits_head and [target for target, _, _ in targets] == [HEAD]:
                return True
            wanted = [target for target in targets if self.like is None or target[0] in self.like]
            for target, found, place in wanted:
                self._add(target, found, place, name)
            if wanted:
                return True
        return False

    def _targets(
        self, rules: Iterable[tuple[Rule, int]], name: str, indexes: Mapping[str, str]
    ) -> list[tuple[str, Found, tuple[int, ...]]]:
        """What comes of a native tensor: Hugging Face name, what makes it, this tensor's place in that."""
        targets = []
        for rule, number in rules:
            place = (number, *(int(indexes[axis]) for axis in rule.stacked[1:]))
            table = self._extents(rule, name) if rule.unstacked else {}
            counts = [table[axis][0] for axis in rule.unstacked]
            if math.prod(counts) > MAX_TENSORS:
                raise UserError(f"{self.where}: {shown(name)} would be {math.prod(counts)} tensors")
            for values in product(*map(range, counts)):
                every = dict(indexes) | dict(zip(rule.unstacked, map(str, values), strict=True))
                kept = {axis: every[axis] for axis in rule.indexes}
                targets.append((rule.target(kept), Found(rule, kept), place))
        return targets

    def _add(self, target: str, found: Found, place: tuple[int, ...], name: str) -> None:
        known = self.found.setdefault(target, found)
        if known.rule != found.rule or place in known.sources:
            other = next(iter(known.sources.values()))
            raise UserError(f"{self.where}: {shown(other)} and {shown(name)} would both be {shown(target)}")
        known.sources[place] = name
        if len(self.found) > MAX_TENSORS:
            raise UserError(f"{self.where}: more than {MAX_TENSORS} tensors")

    def _extents(self, rule: Rule, name: str) -> dict[str, tuple[int, int]]:
        key = (rule.name, rule.text, name)
        if key not in self._tables:
            try:
                self._tables[key] = extents(rule.layout[0], self.native[name][1], self.sizes) if rule.layout else {}
            except ValueError as error:
                raise self._misfit(name, rule, error) from None
        return self._tables[key]

    def _misfit(self, name: str, rule: Rule, error: ValueError) -> UserError:
        what = f"{shown(name)} {list(self.native[name][1])}"
        return UserError(f"{self.where}: {what} is not `{rule.text}` ({self.family.name}) by the config: {error}")

    def check(self) -> None:
        """Raises UserError where a tensor has no rule, or a layer or an expert is missing."""
        if self.unknown:
            kind = "a tensor of pool.like" if self.family.name == PLAIN else f"by the rules {self.family.name}"
            names = listed(sorted(self.unknown), 5)
            raise UserError(
                f"{self.where}: not {kind} for model_type {shown(self.model_type)}: {names}. "
                "Name them in a file of rules: merge.names=FILE"
            )
        if self.like is None:
            self._check_indexes("layer")
            self._check_indexes("expert")

    def _check_indexes(self, axis: str) -> None:
        """Of every kind of tensor that has it in its name, each index must be there."""
        present: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for found in self.found.values():
            if axis in found.indexes:
                rest = tuple(f"{key} {value}" for key, value in found.indexes.items() if key != axis)
                kind = (found.rule.name, *rest) if axis == "expert" else ()
                present[kind].add(int(found.indexes[axis]))
        for indexes in present.values():
            count = self.sizes.get(axis, max(indexes) + 1)
            most = count + (self.sizes.get("predicted", 0) if axis == "layer" else 0)
            lacking = next((index for index in range(count) if index not in indexes), None)
            if lacking is not None:
                raise UserError(f"{self.where}: there is no {axis} {lacking}, and the config has {count}")
            if max(indexes) >= most:
                raise UserError(f"{self.where}: there is a {axis} {max(indexes)}, and the config has {count}")

    def build(self, target: str) -> Mapped:
        """The tensor of a Hugging Face name.

        Raises:
            UserError: a source is missing, or shapes or dtypes do not fit.
        """
        found = self.found[target]
        rule, names = found.rule, tuple(found.sources[place] for place in sorted(found.sources))
        kinds = {self.native[name] for name in names}
        if len(kinds) > 1:
            raise UserError(f"{self.where}: the parts of {shown(target)} differ in shape or dtype ({listed(names, 3)})")
        dtype, shape = kinds.pop()
        whole = partial(_whole, names[0], shape)
        if rule.layout is None:
            return Mapped(dtype=dtype, shape=shape, sources=names, rule=rule, views=whole)
        table = self._counts(target, found) | self._extents(rule, names[0])
        try:
            sizes, views = self._arrange(found, rule.layout[1], table)
        except ValueError as error:
            raise self._misfit(names[0], rule, error) from None
        return Mapped(dtype=dtype, shape=sizes, sources=names, rule=rule, views=views)

    def _counts(self, target: str, found: Found) -> dict[str, tuple[int, int]]:
        """The axes that count a tensor's sources, all of which must be there; they have no stride."""
        counts = [len(found.rule.natives)]
        for number, axis in enumerate(found.rule.stacked[1:], 1):
            counts.append(self.sizes.get(axis, max(place[number] for place in found.sources) + 1))
        for place in product(*(range(min(count, len(found.sources) + 1)) for count in counts)):
            if place not in found.sources:
                which = ", ".join(f"{axis} {index}" for axis, index in zip(found.rule.stacked, place, strict=True))
                raise UserError(f"{self.where}: {shown(target)} lacks {which}")
        return {axis: (count, 0) for axis, count in zip(found.rule.stacked, counts, strict=True)}

    def _arrange(
        self, found: Found, dims: Dims, table: Mapping[str, tuple[int, int]]
    ) -> tuple[Shape, partial[list[View]]]:
        """Shape and views of a tensor, its axes taken from `table` (size, stride).

        Raises:
            ValueError: a slice is outside of its axis, or the pieces are too many.
        """
        shape, axes, offset = [], list[tuple[str, int, int]](), 0
        for dim in dims:
            counts = []
            for axis in dim:
                size, stride = table[axis.name]
                start, count = bounds(axis, size, self.sizes)
                offset += start * stride
                counts.append(count)
                axes.append((axis.name, count, stride))
            shape.append(math.prod(counts))
        offset += sum(int(found.indexes[axis]) * table[axis][1] for axis in found.rule.unstacked)
        pieces = math.prod(count for _, count, _ in axes[: _split(axes, found.rule.stacked)])
        if pieces > MAX_VIEWS:
            raise ValueError(f"it would be put together from {pieces} pieces")
        return tuple(shape), partial(_views, tuple(axes), offset, found.rule.stacked, found.sources)


def _whole(name: str, shape: Shape) -> list[View]:
    return [View.of(name, shape)]


def _split(axes: Sequence[tuple[str, int, int]], stacks: Sequence[str]) -> int:
    """How many axes are walked one by one: those up to the last that counts sources."""
    return max((number for number, (name, _, _) in enumerate(axes, 1) if name in stacks), default=0)


def _views(
    axes: Sequence[tuple[str, int, int]], offset: int, stacks: Sequence[str], sources: Mapping[tuple[int, ...], str]
) -> list[View]:
    """The views of a tensor whose axes are (name, size, stride), outermost first."""
    split = _split(axes, stacks)
    outer = axes[:split]
    shape, strides = _merged([(size, stride) for _, size, stride in axes[split:]])
    views = []
    for indexes in product(*(range(size) for _, size, _ in outer)):
        at = {name: index for (name, _, _), index in zip(outer, indexes, strict=True)}
        begin = offset + sum(index * stride for index, (_, _, stride) in zip(indexes, outer, strict=True))
        source = sources[tuple(at.get(name, 0) for name in stacks)]
        views.append(View(source, begin, shape, strides))
    return views


def _merged(axes: Iterable[tuple[int, int]]) -> tuple[Shape, Shape]:
    """Shape and strides with neighbours that are one run made one."""
    merged = list[tuple[int, int]]()
    for size, stride in axes:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(size for size, _ in merged), tuple(stride for _, stride in merged)


def _check_like(mapped: Mapping[str, Mapped], like: Mapping[str, Shape], where: str | Path) -> None:
    lacking = [name for name in like if name not in mapped]
    if lacking:
        raise UserError(f"{where} holds nothing for {listed(lacking, 5)}, which pool.like has")
    for name, tensor in mapped.items():
        if tensor.shape != like[name]:
            have, want = list(tensor.shape), list(like[name])
            raise UserError(
                f"{where}: {shown(tensor.sources[0])} becomes {shown(name)} {have}, and pool.like has {want}"
            )
