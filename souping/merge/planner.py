"""From a recipe and the ingredients' headers to a `MergePlan`. Reads no weight.

Pieces of a tensor: bands of rows that the same ingredients have (one band, unless vocabularies differ).

Places in the output: which shard a tensor goes to, and where in it.

Per-layer and per-pattern weights: `merge.overrides={layers.0-7:[..],*.mlp.*:[..]}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from souping.checkpoints.checkpoint import SINGLE, TORCH_NAMES, Checkpoint
from souping.checkpoints.compatibility import FLOATS, AlignedTensor, align, widest
from souping.checkpoints.header import BITS, Tensor
from souping.core.simplex import check_weights
from souping.core.types import Recipe, UserError, Weights
from souping.merge.methods import Method, check_count, get_method
from souping.merge.plan import Ingredient, MergePlan, Piece, PlannedTensor, Source, recipe_from_dict

__all__ = ["MergePlan", "Source", "parse_size", "plan", "plan_opened", "recipe_from_dict"]
DEFAULT_SHARD = 5_000_000_000
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def plan(
    recipe: Recipe,
    folders: Mapping[str, Path],
    *,
    base: Path | None = None,
    max_shard_size: int | str = DEFAULT_SHARD,
    nonfinite: str = "error",
    allow_pickle: bool = False,
    carry: str | None = None,
) -> MergePlan:
    """Plan a recipe whose ingredients lie in `folders` (others in the mapping are not opened).

    `base` is the base model's folder for the methods that have one; `carry` names the ingredient whose config and
    tokenizer the soup gets (default: the first, or with `vocab` settings the first that has the soup's vocabulary).

    Raises:
        UserError: an ingredient has no folder, or folders do not fit together.
    """
    missing = [name for name in recipe.ingredients if name not in folders]
    if missing:
        raise UserError(f"the recipe's ingredient {missing[0]} has no folder: the pool has {', '.join(folders)}")
    opened = {name: Checkpoint.open(folders[name], allow_pickle) for name in recipe.ingredients}
    foundation = Checkpoint.open(base, allow_pickle) if base is not None else None
    return plan_opened(recipe, opened, base=foundation, max_shard_size=max_shard_size, nonfinite=nonfinite, carry=carry)


def plan_opened(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    *,
    base: Checkpoint | None = None,
    max_shard_size: int | str = DEFAULT_SHARD,
    nonfinite: str = "error",
    carry: str | None = None,
) -> MergePlan:
    """`plan` for checkpoints that are open already; each recipe of a search costs microseconds a tensor."""
    method = get_method(recipe.method)
    if not recipe.ingredients:
        raise UserError("the recipe has no ingredient with a weight above zero")
    pool = {name: checkpoints[name] for name in recipe.ingredients}
    lone = len(pool) == 1 and _effective(recipe, method) == (1.0,)
    if not lone:
        check_count(recipe.method, len(pool))
        if method.base:
            if base is None:
                raise UserError(f"merge.method={recipe.method} needs the base model: set merge.base=FOLDER")
            pool[base_name(checkpoints)] = base
    return _assemble(recipe, pool, method, lone, parse_size(max_shard_size), nonfinite, carry)


def base_name(names: Iterable[str]) -> str:
    """What the base model is called in a plan beside candidates of these names."""
    taken, name = set(names), "base"
    while name in taken:
        name += " model"
    return name


def parse_size(size: int | str) -> int:
    """Bytes in a size such as 5GB, 500MB or 1GiB; a bare number is bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    unit = match.group(2).upper() if match else "?"
    unit = unit if unit in UNITS else f"{unit}B"
    value = int(float(match.group(1)) * UNITS[unit]) if match and unit in UNITS else 0
    if value < 1:
        raise UserError(f"merge.max_shard_size={size} must be a positive size such as 5GB or 500MB")
    return value


def _assemble(
    recipe: Recipe,
    pool: Mapping[str, Checkpoint],
    method: Method,
    lone: bool,
    limit: int,
    nonfinite: str,
    carry: str | None,
) -> MergePlan:
    vocab = str(recipe.settings.get("vocab", "error"))
    found = align(pool, vocab)
    weigh = overridden(recipe, [slot.name for slot in found], _effective(recipe, method))
    files = [{name: i for i, name in enumerate(checkpoint.files)} for checkpoint in pool.values()]
    drafts = [_draft(slot, weigh(slot.name), method, files, recipe) for slot in found]
    tensors, shards = place_tensors(drafts, limit)
    uneven = [slot for slot in found if slot.uneven]
    return MergePlan(
        recipe=recipe,
        method="linear" if lone else recipe.method,
        dtype="+".join(name for name, tag in TORCH_NAMES.items() if any(d.dtype == tag for d in drafts)),
        divisor=_divisor(recipe),
        nonfinite=nonfinite,
        carry=_carrier(pool, uneven, carry),
        vocab_size=uneven[0].shape[0] if uneven else None,
        max_shard_size=limit,
        ingredients=tuple(_ingredient(name, checkpoint) for name, checkpoint in pool.items()),
        shards=shards,
        tensors=tensors,
        notes=_notes(pool, found, recipe),
    )


def _effective(recipe: Recipe, method: Method) -> tuple[float, ...]:
    """The recipe's weights with the method's scale (of the differences to a base) in them."""
    scale = float(recipe.settings.get("scale", 1.0)) if method.base else 1.0
    return tuple(weight * scale for weight in recipe.weights)


def _divisor(recipe: Recipe) -> float | None:
    value = recipe.settings.get("divisor")
    return None if value is None else float(value)


def _ingredient(name: str, checkpoint: Checkpoint) -> Ingredient:
    files = tuple((file, (checkpoint.folder / file).stat().st_size) for file in checkpoint.files)
    return Ingredient(name, str(checkpoint.folder.resolve()), files)


def _draft(
    slot: AlignedTensor, weights: tuple[float, ...], method: Method, files: Sequence[Mapping[str, int]], recipe: Recipe
) -> UnplacedTensor:
    sources = [_source(i, part, files) for i, part in enumerate(slot.parts)]
    if slot.dtype not in FLOATS or any(part.dtype not in FLOATS for part in slot.parts):
        piece = Piece("same", 0, slot.parts[0].count, tuple(sources), (1.0,) * len(sources))
        return UnplacedTensor(slot, slot.parts[0].dtype, (piece,))
    used = [part.dtype for part, weight in zip(slot.parts, weights, strict=False) if weight != 0]
    dtype = TORCH_NAMES.get(recipe.dtype) or widest(used)
    return UnplacedTensor(slot, dtype, row_segments(slot, sources, MixRule(method, weights, dtype, _divisor(recipe))))


def _source(ingredient: int, part: Tensor, files: Sequence[Mapping[str, int]]) -> Source:
    return Source(ingredient, files[ingredient][part.file], part.offset, part.dtype)


def _carrier(pool: Mapping[str, Checkpoint], uneven: Sequence[AlignedTensor], carry: str | None) -> int:
    """The ingredient whose config and tokenizer the soup gets: one that has the soup's vocabulary."""
    names = list(pool)
    if carry is not None:
        if carry not in names:
            raise UserError(f"merge.carry={carry} is not an ingredient of this recipe: {', '.join(names)}")
        return names.index(carry)
    fits = [i for i in range(len(names)) if all(slot.parts[i].shape == slot.shape for slot in uneven)]
    return fits[0] if fits else 0


def _notes(pool: Mapping[str, Checkpoint], found: Sequence[AlignedTensor], recipe: Recipe) -> tuple[str, ...]:
    """What the user should hear of: dtypes that differ, rows that some lack."""
    notes = []
    mixed = [slot for slot in found if len({part.dtype for part in slot.parts}) > 1]
    if mixed and recipe.dtype not in TORCH_NAMES:
        stored = ", ".join(f"{name} {checkpoint.dtype}" for name, checkpoint in pool.items())
        notes.append(f"ingredients differ in dtype ({stored}): the widest is written")
    uneven = [slot for slot in found if slot.uneven]
    if uneven:
        rows = ", ".join(f"{name} {part.shape[0]}" for name, part in zip(pool, uneven[0].parts, strict=True))
        notes.append(f"vocabularies differ ({rows}): the soup has {uneven[0].shape[0]} rows")
    return tuple(notes)


@dataclass(frozen=True)
class MixRule:
    """How this tensor is mixed: `weights` are the models' (a base model is one more source, the last, without one)."""

    method: Method
    weights: tuple[float, ...]
    dtype: str
    divisor: float | None


def row_segments(slot: AlignedTensor, sources: Sequence[Source], mix: MixRule) -> tuple[Piece, ...]:
    """The pieces of a float tensor in row order."""
    width = 1
    for size in slot.shape[1:]:
        width *= size
    rows = [part.shape[0] if part.shape else 1 for part in slot.parts]
    top = slot.shape[0] if slot.shape else 1
    edges = sorted({min(r, top) for r in rows} | {top}) if slot.uneven else [top]
    pieces, start = [], 0
    for edge in edges:
        have = [i for i, r in enumerate(rows) if r >= edge]
        moved = {i: _shift(sources[i], start * width) for i in have}
        pieces.append(_band(start * width, (edge - start) * width, moved, mix))
        start = edge
    return tuple(pieces)


def _band(start: int, count: int, have: dict[int, Source], mix: MixRule) -> Piece:
    """The piece of the ingredients in `have`. Where a model lacks these rows the others' weights keep the same sum."""
    base = len(mix.weights) if mix.method.base and len(mix.weights) in have else None
    weights = {i: mix.weights[i] for i in have if i != base and mix.weights[i] != 0}
    if not weights:  # rows that no weighted model has: as the base, or the first that has them, stores them
        weights = {base if base is not None else min(have): 1.0}
        base = None
    elif len(weights) < sum(w != 0 for w in mix.weights):
        scale = sum(mix.weights) / sum(weights.values())
        weights = {i: w * scale for i, w in weights.items()}
    parts, values = [have[i] for i in weights], tuple(weights.values())
    if values == (1.0,) and mix.divisor is None:
        same = parts[0].dtype == mix.dtype
        return Piece("copy" if same else "linear", start, count, tuple(parts), values)
    if mix.method.base and base is None:
        total = sum(values)
        return Piece("linear", start, count, tuple(parts), tuple(v / total for v in values))
    if base is not None:
        parts, values = [have[base], *parts], (0.0, *values)
    return Piece("mix", start, count, tuple(parts), values)


def _shift(source: Source, elements: int) -> Source:
    return replace(source, offset=source.offset + elements * BITS[source.dtype] // 8) if elements else source


@dataclass(frozen=True)
class UnplacedTensor:
    """A tensor of the soup before it has a place."""

    slot: AlignedTensor
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.slot.shape:
            count *= size
        return count * BITS[self.dtype] // 8


def place_tensors(drafts: Sequence[UnplacedTensor], limit: int) -> tuple[tuple[PlannedTensor, ...], tuple[str, ...]]:
    """Fill shards in order up to `limit` bytes; inside a shard wide dtypes come first, so that all stay aligned."""
    groups: list[list[UnplacedTensor]] = [[]]
    filled = 0
    for draft in drafts:
        if groups[-1] and filled + draft.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(draft)
        filled += draft.nbytes
    count = len(groups)
    names = (SINGLE,) if count == 1 else tuple(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count))
    placed = []
    for shard, group in enumerate(groups):
        offset = 0
        for draft in sorted(group, key=lambda d: -BITS[d.dtype]):
            placed.append(
                PlannedTensor(draft.slot.name, draft.dtype, draft.slot.shape, shard, offset, draft.nbytes, draft.pieces)
            )
            offset += draft.nbytes
    return tuple(placed), names


def matcher(pattern: str) -> Callable[[str], bool]:
    """A test on tensor names.

    Without `*` or `?` the pattern is a run of dotted parts anywhere in the name; with them it has to match the whole
    name. A part `3-7` is a range of numbers, ends included. `layers.0-7` is the first eight layers.
    """
    wild = "*" in pattern or "?" in pattern
    ranges: list[range] = []
    text = "".join(_token(token, ranges) for token in re.split(r"(\*|\?|(?<![^.])\d+-\d+(?![^.]))", pattern))
    regex = re.compile(text if wild else rf"(?:.*\.)?{text}(?:\..*)?", re.DOTALL)

    def matches(name: str) -> bool:
        found = regex.fullmatch(name)
        return found is not None and all(int(n) in r for n, r in zip(found.groups(), ranges, strict=True))

    return matches


def _token(token: str, ranges: list[range]) -> str:
    if token in ("*", "?"):
        return ".*" if token == "*" else "."
    if re.fullmatch(r"\d+-\d+", token):
        low, high = token.split("-")
        ranges.append(range(int(low), int(high) + 1))
        return r"(\d{1,9})"
    return re.escape(token)


def check_overrides(overrides: Mapping[str, Sequence[float]]) -> tuple[tuple[str, Weights], ...]:
    """(pattern, weights) pairs in the written order; each list is a point of the simplex.

    Raises:
        UserError: an empty pattern or range, or weights that are negative or do not sum to one.
    """
    if not isinstance(overrides, Mapping):
        raise UserError(f"merge.overrides={overrides} must be a table of patterns and lists of weights")
    pairs = []
    for pattern, values in overrides.items():
        if not str(pattern) or isinstance(values, str) or not isinstance(values, Sequence):
            raise UserError(f"merge.overrides: {pattern!r} must be a pattern with a list of weights")
        if any(int(low) > int(high) for low, high in re.findall(r"(?<![^.])(\d+)-(\d+)(?![^.])", str(pattern))):
            raise UserError(f"merge.overrides.{pattern}: the range ends before it starts")
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise UserError(f"merge.overrides.{pattern}={list(values)} must be numbers")
        pairs.append((str(pattern), check_weights(values, f"merge.overrides.{pattern}")))
    return tuple(pairs)


def fitted(
    overrides: Mapping[str, Sequence[float]], pool: Sequence[str], used: Sequence[str]
) -> list[list[str | list[float]]]:
    """[pattern, weights of the ingredients `used`] pairs of lists that are in the order of `pool`.

    A list (a mapping would not do: the order of patterns decides, and a recipe's hash sorts keys). A soup of a part of
    the pool takes that part's weights, scaled to sum to one; a pattern that gives them none leaves their own.

    Raises:
        UserError: a list has another length than the pool.
    """
    pairs: list[list[str | list[float]]] = []
    for pattern, values in check_overrides(overrides):
        if len(values) != len(pool):
            raise UserError(
                f"merge.overrides.{pattern} has {len(values)} weights for {len(pool)} candidates ({', '.join(pool)})"
            )
        kept = [values[pool.index(name)] for name in used]
        total = sum(kept)
        if total:
            pairs.append([pattern, kept if len(kept) == len(pool) else [value / total for value in kept]])
    return pairs


def overridden(recipe: Recipe, names: Sequence[str], default: Weights) -> Callable[[str], Weights]:
    """The weights of each tensor: of the first pattern in the recipe's `overrides` that matches, else `default`.

    Raises:
        UserError: the method is not linear, a list has another length than the recipe, or a pattern matches nothing.
    """
    pairs = [
        (str(pattern), tuple(float(w) for w in weights)) for pattern, weights in recipe.settings.get("overrides", [])
    ]
    if pairs and recipe.method != "linear":
        raise UserError(f"merge.overrides works with merge.method=linear only, not {recipe.method}")
    for pattern, weights in pairs:
        if len(weights) != len(recipe.weights):
            raise UserError(
                f"merge.overrides.{pattern} has {len(weights)} weights for {len(recipe.weights)} ingredients "
                f"({', '.join(recipe.ingredients)})"
            )
    tests = [(pattern, matcher(pattern), weights) for pattern, weights in pairs]
    for pattern, test, _ in tests:
        if not any(test(name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"; a tensor's name is {near[0] if near else names[0]}"
            raise UserError(f"merge.overrides.{pattern} matches no tensor{hint}")
    return lambda name: next((weights for _, test, weights in tests if test(name)), default)
