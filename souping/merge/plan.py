"""From a recipe and the ingredients' headers to a `MergePlan`. Reads no weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from souping.core import Recipe, UserError
from souping.merge.bands import Mix, bands
from souping.merge.checkpoint import TORCH_NAMES, Checkpoint
from souping.merge.header import Tensor
from souping.merge.layout import Ingredient, MergePlan, Piece, Source, recipe_from_dict
from souping.merge.methods import Method, check_count, get_method
from souping.merge.patterns import overridden
from souping.merge.shards import Draft, place
from souping.merge.slots import FLOATS, Slot, slots, widest

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
    found = slots(pool, vocab)
    weigh = overridden(recipe, [slot.name for slot in found], _effective(recipe, method))
    files = [{name: i for i, name in enumerate(checkpoint.files)} for checkpoint in pool.values()]
    drafts = [_draft(slot, weigh(slot.name), method, files, recipe) for slot in found]
    tensors, shards = place(drafts, limit)
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
    slot: Slot, weights: tuple[float, ...], method: Method, files: Sequence[Mapping[str, int]], recipe: Recipe
) -> Draft:
    sources = [_source(i, part, files) for i, part in enumerate(slot.parts)]
    if slot.dtype not in FLOATS or any(part.dtype not in FLOATS for part in slot.parts):
        piece = Piece("same", 0, slot.parts[0].count, tuple(sources), (1.0,) * len(sources))
        return Draft(slot, slot.parts[0].dtype, (piece,))
    used = [part.dtype for part, weight in zip(slot.parts, weights, strict=False) if weight != 0]
    dtype = TORCH_NAMES.get(recipe.dtype) or widest(used)
    return Draft(slot, dtype, bands(slot, sources, Mix(method, weights, dtype, _divisor(recipe))))


def _source(ingredient: int, part: Tensor, files: Sequence[Mapping[str, int]]) -> Source:
    return Source(ingredient, files[ingredient][part.file], part.offset, part.dtype)


def _carrier(pool: Mapping[str, Checkpoint], uneven: Sequence[Slot], carry: str | None) -> int:
    """The ingredient whose config and tokenizer the soup gets: one that has the soup's vocabulary."""
    names = list(pool)
    if carry is not None:
        if carry not in names:
            raise UserError(f"merge.carry={carry} is not an ingredient of this recipe: {', '.join(names)}")
        return names.index(carry)
    fits = [i for i in range(len(names)) if all(slot.parts[i].shape == slot.shape for slot in uneven)]
    return fits[0] if fits else 0


def _notes(pool: Mapping[str, Checkpoint], found: Sequence[Slot], recipe: Recipe) -> tuple[str, ...]:
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
