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
    RULE_FILES,
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
from souping.checkpoints.trainers import HUGGING_FACE
from souping.checkpoints.views import Shape, View, row_major
from souping.core.text import listed, shown
from souping.core.types import JsonObject, Names, UserError

HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"
MAX_TENSORS = 300_000
MAX_NAME_PARTS = 20
"""Dots in a name that are tried, at most, to find where the model's own name begins."""
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
    """{Hugging Face name: tensor} of the model that a trainer's checkpoint holds, by the rules that fit it best.

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
    # One plan for each trainer's rules and each prefix that names may have, unless the rules fail.
    plans = list[Assignment]()
    failures = list[UserError]()
    for family, prefix in _attempts(rules, clean, like):
        try:
            plans.append(Assignment(family, prefix, native, clean, config, like, where))
        except UserError as error:  # another trainer's rules may fit
            failures.append(error)
            continue
        # No rules fit better.
        if not plans[-1].unknown:
            break
    # No rules have a place for every tensor: the first failure says why.
    if failures and all(plan.unknown for plan in plans):
        raise failures[0]
    if not plans:
        advice = "for Hugging Face's names give pool.reference_model=HF_FOLDER, for others merge.name_rules=FILE"
        raise UserError(
            f"{where}: no trainer's rules fit its tensors ({listed(sorted(clean), 3)}): {advice}"
        )
    plan = min(plans, key=lambda plan: len(plan.unknown))
    # The user's own rules are the first: the error is about what they lack.
    if plan.unknown and rules:
        plan = plans[0]
    plan.check()
    mapped = {name: plan.build(name, plan.targets[name]) for name in sorted(plan.targets)}
    if like is not None:
        _check_like(mapped, like, where)
    return mapped


def _check_like(mapped: Mapping[str, Mapped], like: Mapping[str, Shape], where: str | Path) -> None:
    """Refuse tensors that are not all those of `pool.reference_model`, in the same shapes."""
    lacking = [name for name in like if name not in mapped]
    if lacking:
        raise UserError(
            f"{where} holds nothing for {listed(lacking, 5)}, which pool.reference_model has"
        )
    for name, tensor in mapped.items():
        view = tensor.view
        if view.shape != like[name]:
            becomes = f"{shown(view.sources[0])} becomes {shown(name)} {list(view.shape)}"
            raise UserError(f"{where}: {becomes}, and pool.reference_model has {list(like[name])}")


def described(mapped: Mapping[str, Mapped], stored: Iterable[str]) -> list[str]:
    """One line for each rule: a tensor that it makes, the number of others, the layout. Last, the unused tensors."""
    names_of_rule: dict[Rule, list[str]] = defaultdict(list)
    for name, tensor in mapped.items():
        names_of_rule[tensor.rule].append(name)
    lines = []
    for rule, names in names_of_rule.items():
        first = mapped[names[0]].view
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        layout = f": {rule.text}" if rule.text else ""
        lines.append(
            f"{listed(first.sources, 2)} -> {shown(names[0])} {list(first.shape)}{more}{layout}"
        )
    used = set[str]()
    for tensor in mapped.values():
        used.update(tensor.view.sources)
    unused = [name for name in stored if name not in used]
    if unused:
        lines.append(f"left out: {listed(unused, 5)}")
    return lines


def regrouped(stored: Headers, config: JsonObject, where: str | Path) -> dict[str, Mapped] | None:
    """`map_names` for a Hugging Face folder whose experts are not in the layout of its model_type.

    None for any other folder.
    """
    rules = [rule for rule in read_rules(RULE_FILES[HUGGING_FACE]).rules if rule.layout is not None]
    model_type = str(config.get("model_type"))
    # Patterns of the names that such tensors have.
    natives = list[str]()
    for rule in rules:
        if rule.fits(model_type):
            natives.extend(rule.natives)
    for pattern in map(pattern_of, natives):
        if any(map(pattern.fullmatch, stored)):
            return map_names(stored, config, where=where)
    return None


def _cleaned(native: Iterable[str], where: str | Path) -> dict[str, str]:
    """{short name: native name} of what may belong to the model. Short names lack parts of wrappers such as FSDP."""
    wrappers = set(common()["wrappers"])
    natives = dict[str, str]()
    for name in filter(is_weight, native):
        short = ".".join(part for part in re.split(r"[./]", name) if part not in wrappers)
        if short in natives:
            raise UserError(
                f"{where}: {shown(name)} and {shown(natives[short])} are both {shown(short)}"
            )
        natives[short] = name
    return natives


def _attempts(
    rules: Path | None, names: Iterable[str], like: Mapping[str, Shape] | None
) -> Iterator[tuple[Family, str]]:
    """(rules, prefix) that may fit names, the most likely first."""
    for family in families(rules):
        for prefix in _prefixes(family, names, like):
            yield family, prefix


def _prefixes(family: Family, names: Iterable[str], like: Mapping[str, Shape] | None) -> list[str]:
    """Prefixes that the names of a family may have, such as `model.`: the most frequent two in front of its anchors.

    Anchors are names that every model of the family has; for a Hugging Face model those in `like`, if it is known.
    """
    if family.prefix is not None or not family.anchors:
        return [family.prefix or ""]
    anchors = like if family.name == HUGGING_FACE and like else family.anchors
    counts = Counter[str]()
    for name in names:
        # Every place where an anchor may begin.
        dots = islice(re.finditer(r"\.", name), MAX_NAME_PARTS)
        for start in (0, *(dot.end() for dot in dots)):
            if name[start:] in anchors:
                counts[name[:start]] += 1
    return [prefix for prefix, _ in counts.most_common(2)]


@dataclass
class TargetTensor:
    """What makes one tensor of Hugging Face: a rule, the indexes in its name, and its native tensors.

    `sources` are {(index along each axis of `rule.stacked`): native name}.
    """

    rule: Rule
    indexes: Mapping[str, str]
    sources: dict[Shape, str] = field(default_factory=dict)


@dataclass
class Assignment:
    """What the rules of one family make of a checkpoint.

    `native` are its headers, `clean` {short name: native name}, `like` the names and shapes that must come out, if
    known. `targets` are {Hugging Face name: tensor}, `unknown` the native tensors that no rule has a place for.
    """

    family: Family
    prefix: str
    native: Headers
    clean: Mapping[str, str]
    config: JsonObject
    like: Mapping[str, Shape] | None
    where: str | Path

    def __post_init__(self) -> None:
        """Assign every native tensor. Raises UserError if two want one place, or a shape does not fit its layout."""
        self.sizes = sizes_of(self.config)
        self.model_type = str(self.config.get("model_type"))
        self.targets: dict[str, TargetTensor] = {}
        self.unknown: list[str] = []
        tied = self.config.get("tie_word_embeddings") is True
        # Hugging Face does not store a tied head; if `like` does all the same, it has to come out.
        self._omits_head = tied and (self.like is None or HEAD_NAME not in self.like)
        # {pattern of native names: [(rule, its number among the rule's natives)]}
        self._groups: dict[str, list[tuple[Rule, int]]] = defaultdict(list)
        for rule in self.family.rules:
            if rule.fits(self.model_type):
                for number, pattern in enumerate(rule.natives):
                    self._groups[pattern].append((rule, number))
        drop = any_of(self.family.drop)
        for short, name in self.clean.items():
            placed = False
            if short.startswith(self.prefix):
                placed = self._place(short.removeprefix(self.prefix), name)
            if not placed and not drop.fullmatch(short):
                self.unknown.append(name)
        # `like` has the tied head as a tensor of its own, the checkpoint only the embedding.
        copies_embedding = tied and not self._omits_head and HEAD_NAME not in self.targets
        if copies_embedding and EMBEDDING_NAME in self.targets:
            self.targets[HEAD_NAME] = self.targets[EMBEDDING_NAME]

    def _place(self, short: str, name: str) -> bool:
        """Add a native tensor, whose name without prefix is `short`, to its targets; False if no rule has one.

        The first pattern decides that matches and whose rules have a target in `like`.
        """
        for pattern, rules in self._groups.items():
            match = pattern_of(pattern).fullmatch(short)
            if match is None:
                continue
            placed = False
            for rule, number in rules:
                for target, indexes in self._targets(rule, name, match.groupdict()):
                    # A tied head is left out.
                    if self._omits_head and target == HEAD_NAME:
                        placed = True
                    elif self.like is None or target in self.like:
                        self._add(target, rule, number, indexes, name)
                        placed = True
            if placed:
                return True
        return False

    def _targets(
        self, rule: Rule, name: str, indexes: Mapping[str, str]
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """(Hugging Face name, {axis: index}) of each tensor that a native tensor becomes.

        `name` is the native tensor's, and `indexes` are the ones in it.
        """
        axes = self._extents(rule, name) if rule.unstacked else {}
        counts = list[int]()
        for axis in rule.unstacked:
            count, _, _ = axes[axis]
            counts.append(count)
        if math.prod(counts) > MAX_TENSORS:
            raise UserError(f"{self.where}: {shown(name)} would be {math.prod(counts)} tensors")
        for values in product(*map(range, counts)):
            all_indexes = {**indexes, **dict(zip(rule.unstacked, map(str, values), strict=True))}
            yield rule.target(all_indexes), all_indexes

    def _add(
        self, target: str, rule: Rule, number: int, indexes: Mapping[str, str], name: str
    ) -> None:
        """Note a native tensor, the rule's native with this `number`, as a source of a target.

        Raises:
            UserError: the target is of another rule, or has a source at that place, or there are too many targets.
        """
        # `number` is the index along SOURCE, the first stacked axis; the native name has the other indexes.
        place = (number, *(int(indexes[axis]) for axis in rule.stacked[1:]))
        if target not in self.targets:
            self.targets[target] = TargetTensor(
                rule, {axis: indexes[axis] for axis in rule.indexes}
            )
        tensor = self.targets[target]
        if tensor.rule != rule or place in tensor.sources:
            first = next(iter(tensor.sources.values()))
            raise UserError(
                f"{self.where}: {shown(first)} and {shown(name)} would both be {shown(target)}"
            )
        tensor.sources[place] = name
        if len(self.targets) > MAX_TENSORS:
            raise UserError(f"{self.where}: more than {MAX_TENSORS} tensors")

    def _extents(self, rule: Rule, name: str) -> Axes:
        """The axes of a native tensor by a rule's layout (UserError: the shape does not fit); {} without a layout."""
        if rule.layout is None:
            return {}
        native_dims, _ = rule.layout
        _, shape = self.native[name]
        try:
            return extents(native_dims, shape, self.sizes)
        except ValueError as error:
            raise self._misfit(name, rule, error) from None

    def _misfit(self, name: str, rule: Rule, error: ValueError) -> UserError:
        """The error for a native tensor that does not fit a rule's layout."""
        what = f"{shown(name)} {list(self.native[name][1])}"
        return UserError(
            f"{self.where}: {what} is not `{rule.text}` ({self.family.name}) by the config: {error}"
        )

    def check(self) -> None:
        """Raises UserError where a tensor has no rule, or a layer or an expert is missing."""
        if self.unknown:
            kind = f"by the rules {self.family.name}"
            if self.family.name == HUGGING_FACE:
                kind = "a tensor of pool.reference_model"
            names = listed(sorted(self.unknown), 5)
            advice = "name them in a file of rules, merge.name_rules=FILE"
            raise UserError(
                f"{self.where}: not {kind} for model_type {shown(self.model_type)}: {names}: {advice}"
            )
        if self.like is None:
            self._check_indexes("layer")
            self._check_indexes("expert")

    def _check_indexes(self, axis: str) -> None:
        """Raises UserError unless names that have the axis have all of its indexes, 0 to the config's count - 1."""
        # Every layer must have some tensor; of experts, each must have every kind of tensor in its layer.
        present: dict[Names, set[int]] = defaultdict(set)
        for target in self.targets.values():
            if axis not in target.indexes:
                continue
            group: Names = ()
            if axis == "expert":
                others = [f"{key} {value}" for key, value in target.indexes.items() if key != axis]
                group = (target.rule.name, *others)
            present[group].add(int(target.indexes[axis]))

        for indexes in present.values():
            # If the config gives no count, the largest index does.
            count = self.sizes.get(axis, max(indexes) + 1)
            # Layers that predict further tokens follow the others, and may be missing.
            limit = count
            if axis == "layer":
                limit += self.sizes.get("predicted", 0)
            lacking = next((index for index in range(count) if index not in indexes), None)
            if lacking is None and max(indexes) < limit:
                continue
            what = f"no {axis} {lacking}" if lacking is not None else f"a {axis} {max(indexes)}"
            end = f"the config has {count}" if axis in self.sizes else f"the last is {count - 1}"
            raise UserError(f"{self.where}: there is {what}, and {end}")

    def build(self, name: str, target: TargetTensor) -> Mapped:
        """The tensor of a Hugging Face name as a view of its sources.

        Raises:
            UserError: a source is missing, or shapes or dtypes do not fit.
        """
        rule = target.rule
        sources = tuple(target.sources[place] for place in sorted(target.sources))
        headers = {self.native[source] for source in sources}
        if len(headers) > 1:
            raise UserError(
                f"{self.where}: the parts of {shown(name)} differ in shape or dtype ({listed(sources, 3)})"
            )
        if rule.layout is None:
            _, shape = self.native[sources[0]]
            return Mapped(rule, View.of(sources[0], shape))
        axes = {**self._counts(name, target), **self._extents(rule, sources[0])}
        _, dims = rule.layout
        try:
            return Mapped(rule, _arranged(target, sources, dims, axes, self.sizes))
        except ValueError as error:
            raise self._misfit(sources[0], rule, error) from None

    def _counts(self, name: str, target: TargetTensor) -> Axes:
        """The axes that count the sources of a tensor (UserError: one of the sources is missing)."""
        stacked = target.rule.stacked
        # SOURCE, the first stacked axis, counts the native names of the rule.
        counts = [len(target.rule.natives)]
        for number, axis in enumerate(stacked[1:], 1):
            last = max(place[number] for place in target.sources)
            counts.append(self.sizes.get(axis, last + 1))
        # A count of the config may be huge: of one index more than there are sources, one must be missing.
        looked_at = [range(min(count, len(target.sources) + 1)) for count in counts]
        for place in product(*looked_at):
            if place not in target.sources:
                indexes = zip(stacked, place, strict=True)
                which = ", ".join(f"{axis} {index}" for axis, index in indexes)
                raise UserError(f"{self.where}: {shown(name)} lacks {which}")
        jumps = row_major(tuple(counts))
        axes = zip(stacked, counts, jumps, strict=True)
        return {axis: (count, 0, jump) for axis, count, jump in axes}


def _arranged(
    target: TargetTensor, sources: Names, dims: Dims, table: Axes, sizes: Mapping[str, int]
) -> View:
    """The view of a tensor with the dimensions `dims`, each a product of axes (ValueError: a slice does not fit).

    `table` is {axis: (size, step, jump)}: the next index of the axis is `step` elements further in the same source, or
    `jump` sources further.
    """
    shape = list[int]()
    axes = list[tuple[int, int, int]]()
    # Where the part for the indexes in the tensor's name begins in the native tensor: index times step of each.
    offset = sum(int(target.indexes[axis]) * table[axis][1] for axis in target.rule.unstacked)
    for dim in dims:
        shape.append(1)
        for axis in dim:
            size, step, jump = table[axis.name]
            start, count = bounds(axis, size, sizes)
            if jump and count < size:
                raise ValueError(f"{axis.name} counts tensors, so it cannot be cut")
            offset += start * step
            shape[-1] *= count
            # If a step of the axis before spans exactly this axis, both are one axis.
            if axes and axes[-1][1:] == (count * step, count * jump):
                axes[-1] = (axes[-1][0] * count, step, jump)
            elif count > 1:
                axes.append((count, step, jump))
    return View(tuple(shape), sources, offset, tuple(axes))
