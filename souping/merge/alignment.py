"""Alignment of checkpoints: makes a `MergePlan` of a recipe and the ingredients' headers, and reads no weight.

A plan is an alignment, which is made once for the same ingredients, and the weights of one recipe. A tensor is cut into
bands of rows that the same ingredients have (one band, unless vocabularies differ); per-layer weights come from
`merge.tensor_weights={layers.0-7:[..],*.mlp.*:[..]}`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.compatibility import AlignedTensor, align
from souping.checkpoints.folder import SINGLE
from souping.checkpoints.header import BITS, FLOATS, TORCH_NAMES, widest
from souping.core.fields import check_weights
from souping.core.text import listed
from souping.core.types import TOLERANCE, Recipe, UserError, Weights
from souping.merge import Nonfinite
from souping.merge.methods import check_method, get_method
from souping.merge.plan import (
    Ingredient,
    MergePlan,
    Operation,
    PlannedBand,
    PlannedTensor,
    Source,
    base_name,
)

DEFAULT_SHARD = 5_000_000_000
RANGE = r"(?<![^.])\d+-\d+(?![^.])"
"""Part of a pattern that stands for the numbers of layers."""
MOST_LAYOUTS = 32
"""Sets of ingredients whose layouts are kept in memory: a search goes through few."""


class Alignment:
    """Opened checkpoints side by side: tensors are compared once for the same ingredients, recipes bring weights.

    `base` is the base model of the methods that have one.
    """

    def __init__(self, checkpoints: Checkpoints, base: Checkpoint | None = None) -> None:
        self.checkpoints = dict(checkpoints)
        self.base = base
        # {(vocab, names of ingredients): layout}, the oldest first.
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def check_unchanged(self, recipe: Recipe) -> None:
        """Raises UserError if a weight file that the recipe needs is not the one that was opened."""
        for checkpoint in self._pool(recipe).values():
            checkpoint.check_unchanged(checkpoint.files)

    def plan(
        self,
        recipe: Recipe,
        *,
        shard_bytes: int = DEFAULT_SHARD,
        nonfinite: Nonfinite = "error",
        tokenizer_from: str | None = None,
    ) -> MergePlan:
        """The plan of a recipe of these checkpoints.

        Raises:
            UserError: the ingredients do not fit each other, the method or its settings.
        """
        return self.weighted_layout(recipe).plan(shard_bytes, nonfinite, tokenizer_from)

    def weighted_layout(self, recipe: Recipe) -> WeightedLayout:
        """The recipe's weights on the layout of its ingredients. Raises UserError as `plan`."""
        pool = self._pool(recipe)
        vocab = str(recipe.settings.get("vocab", "error"))
        key = (vocab, *pool)
        if key not in self._layouts:
            if len(self._layouts) == MOST_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[key] = Layout.of(pool, vocab)
        return WeightedLayout(recipe, self._layouts[key])

    def _pool(self, recipe: Recipe) -> dict[str, Checkpoint]:
        """{name: checkpoint} of the recipe's ingredients, and last of the base model, if the method needs it."""
        method = get_method(recipe.method)
        if not recipe.ingredients:
            raise UserError("the recipe has no ingredient with a weight above zero")
        pool = {name: self.checkpoints[name] for name in recipe.ingredients}
        if _alone(recipe):
            return pool
        check_method(recipe.method, recipe.weights)
        if method.base:
            if self.base is None:
                raise UserError(
                    f"merge.method={recipe.method} needs the base model: set merge.base_model=FOLDER"
                )
            pool[base_name(self.checkpoints)] = self.base
        return pool


def lone_recipe(name: str, dtype: str) -> Recipe:
    """The recipe of one opened model, as it is in `dtype`. Its fingerprint is left out: nothing is stored under it."""
    return Recipe(ingredients=(name,), fingerprints=("",), weights=(1.0,), dtype=dtype)


def _alone(recipe: Recipe) -> bool:
    """Whether the soup is its only ingredient as it is, with weight 1."""
    return len(recipe.ingredients) == 1 and _effective(recipe) == (1.0,)


def _effective(recipe: Recipe) -> Weights:
    """The recipe's weights with the method's scale (of the differences to a base) in them."""
    scale = 1.0
    setting = recipe.settings.get("scale")
    if get_method(recipe.method).base and isinstance(setting, int | float):
        scale = float(setting)
    return tuple(weight * scale for weight in recipe.weights)


@dataclass(frozen=True)
class Band:
    """Elements `start .. start + count` of a tensor: rows that the same models have.

    `have` are the numbers of these models.
    """

    start: int
    count: int
    have: tuple[int, ...]


@dataclass(frozen=True)
class LaidTensor:
    """Tensor of the soup (`slot`), with a place (`sources`) and a soup dtype (`stored`) for each model, and its bands.

    A tensor that does not hold floats has no bands: its values must be equal.
    """

    slot: AlignedTensor
    sources: tuple[Source, ...]
    stored: tuple[str, ...]
    bands: tuple[Band, ...]

    @classmethod
    def of(cls, slot: AlignedTensor, files: Sequence[Mapping[str, int]]) -> LaidTensor:
        """The tensor at its places; `files` are {file: its number} of each model."""
        sources = list[Source]()
        for i, (part, numbers) in enumerate(zip(slot.parts, files, strict=True)):
            sources.append(Source(i, numbers[part.file], part.offset, part.dtype))
        stored = tuple(part.soup_dtype for part in slot.parts)
        mixable = slot.dtype in FLOATS and set(stored) <= set(FLOATS)
        return cls(slot, tuple(sources), stored, row_bands(slot) if mixable else ())


def row_bands(slot: AlignedTensor) -> tuple[Band, ...]:
    """The bands of a float tensor in row order: a model with fewer rows than the soup lacks the last ones."""
    width = math.prod(slot.shape[1:])
    # A scalar is a row.
    soup_rows = slot.shape[0] if slot.shape else 1
    model_rows = [part.shape[0] if part.shape else 1 for part in slot.parts]
    edges = [soup_rows]
    # With `vocab=intersect`, the soup has fewer rows than some models.
    if slot.uneven:
        edges = sorted({soup_rows, *(min(rows, soup_rows) for rows in model_rows)})
    bands = list[Band]()
    for start, edge in itertools.pairwise([0, *edges]):
        have = tuple(i for i, rows in enumerate(model_rows) if rows >= edge)
        bands.append(Band(start * width, (edge - start) * width, have))
    return tuple(bands)


@dataclass(frozen=True)
class Layout:
    """Ingredients side by side (a base model last): their tensors, files and places, whatever the weights."""

    pool: Checkpoints
    tensors: Mapping[str, LaidTensor]
    ingredients: tuple[Ingredient, ...]

    @classmethod
    def of(cls, pool: Checkpoints, vocab: str) -> Layout:
        """Align checkpoints. Raises UserError as `align`."""
        aligned = align(pool, vocab)
        # The numbers of files by name; tensors that are assembled from pieces have the file "".
        files = list[dict[str, int]]()
        for checkpoint in pool.values():
            numbers = {name: number for number, name in enumerate(checkpoint.files)}
            files.append({"": 0, **numbers})
        ingredients = tuple(Ingredient(name, checkpoint) for name, checkpoint in pool.items())
        tensors = {slot.name: LaidTensor.of(slot, files) for slot in aligned}
        return cls(pool, tensors, ingredients)

    @cached_property
    def uneven(self) -> list[AlignedTensor]:
        """Tensors whose numbers of rows differ between the models."""
        return [tensor.slot for tensor in self.tensors.values() if tensor.slot.uneven]

    def tokenizer_index(self, tokenizer_from: str | None) -> int:
        """The number of the ingredient whose config and tokenizer the soup gets: the first with the soup's rows.

        `tokenizer_from` names another one (UserError: it is no ingredient, or has other rows than the soup although
        some ingredient has the soup's).
        """
        names = list(self.pool)
        uneven = self.uneven
        fits = list[int]()
        for i in range(len(names)):
            if all(slot.parts[i].shape == slot.shape for slot in uneven):
                fits.append(i)
        if tokenizer_from is None:
            return fits[0] if fits else 0
        if tokenizer_from not in names:
            raise UserError(
                f"merge.tokenizer_from={tokenizer_from} is not an ingredient of this recipe: {', '.join(names)}"
            )
        chosen = names.index(tokenizer_from)
        if fits and chosen not in fits:
            soup_rows = uneven[0].shape[0]
            rows = uneven[0].parts[chosen].shape[0]
            what = f"merge.tokenizer_from={tokenizer_from} has a tokenizer for {rows} rows, the soup has {soup_rows}"
            raise UserError(f"{what}: choose {listed(names[i] for i in fits)}")
        return chosen


@dataclass(frozen=True)
class Mix:
    """Rule of a band: the operation, the numbers of the models `used`, and the `weights` of these.

    `dtype` is that of the soup's tensor.
    """

    op: Operation
    used: tuple[int, ...]
    dtype: str
    weights: Weights

    def op_on(self, tensor: LaidTensor) -> Operation:
        """The operation on a tensor: what is rounded when it is written cannot be copied."""
        if self.op == "copy" and tensor.sources[self.used[0]].dtype != self.dtype:
            return "linear"
        return self.op


class WeightedLayout:
    """Recipe's weights on a layout. Each kind of band is worked out once, however many tensors are of it.

    Raises:
        UserError: `tensor_weights` that do not fit the recipe or match no tensor.
    """

    def __init__(self, recipe: Recipe, layout: Layout) -> None:
        """Work out the weights; they are numbered, by the patterns of `tensor_weights` and last those of the recipe."""
        self.recipe = recipe
        self.layout = layout
        self.method = "linear" if _alone(recipe) else recipe.method
        self._based = get_method(recipe.method).base
        self._weights, self._number = _weights_by_tensor(recipe, list(layout.tensors))
        # The last weights, at -1, are for tensors that no pattern matches.
        self._weights.append(_effective(recipe))
        self._mix = cache(self._mix_of)

    def plan(self, limit: int, nonfinite: Nonfinite, tokenizer_from: str | None) -> MergePlan:
        """The plan with shards of at most `limit` bytes."""
        unplaced = [self._tensor(tensor) for tensor in self.layout.tensors.values()]
        tensors, shards = place_tensors(unplaced, limit)
        dtypes = {tensor.dtype for tensor in tensors}
        uneven = self.layout.uneven
        return MergePlan(
            recipe=self.recipe,
            method=self.method,
            dtype="+".join(name for name, tag in TORCH_NAMES.items() if tag in dtypes),
            nonfinite=nonfinite,
            tokenizer_from=self.layout.tokenizer_index(tokenizer_from),
            vocab_size=uneven[0].shape[0] if uneven else None,
            max_shard_size=limit,
            ingredients=self.layout.ingredients,
            shards=shards,
            tensors=tensors,
        )

    def _mix_of(self, have: tuple[int, ...], stored: tuple[str, ...], number: int) -> Mix:
        """The rule of a band: `have` are the numbers of the models that have its rows, `stored` the dtypes of all
        models, and `number` is the place of the band's weights in `self._weights`.

        If a model lacks the rows, the other weights are scaled to the same sum.
        """
        all_weights = self._weights[number]
        # A base model, the last in `stored`, has a dtype but no weight.
        used = [tag for tag, weight in zip(stored, all_weights, strict=False) if weight != 0]
        dtype = TORCH_NAMES.get(self.recipe.dtype) or widest(used)
        # The base model comes after the ingredients.
        base = len(all_weights) if self._based and len(all_weights) in have else None
        weights = {i: all_weights[i] for i in have if i != base and all_weights[i] != 0}

        # Rows that no weighted model has: as the base, or the first that has them, stores them.
        if not weights:
            owner = min(have) if base is None else base
            weights = {owner: 1.0}
            base = None  # its rows are copied: there are no differences to it
        elif len(weights) < sum(weight != 0 for weight in all_weights):
            scale = sum(all_weights) / _total(weights.values())
            weights = {i: weight * scale for i, weight in weights.items()}

        models = tuple(weights)
        values = tuple(weights.values())
        if values == (1.0,):
            op: Operation = "copy" if stored[models[0]] == dtype else "linear"
            return Mix(op, models, dtype, values)
        if base is not None:
            return Mix("mix", (base, *models), dtype, (0.0, *values))
        if not self._based:
            return Mix("mix", models, dtype, values)
        # Without the rows of the base there are no differences: the weighted mean of the models that have the rows.
        total = _total(values)
        return Mix("linear", models, dtype, tuple(value / total for value in values))

    def _tensor(self, tensor: LaidTensor) -> PlannedTensor:
        """A tensor of the soup, not yet placed in a shard."""
        slot = tensor.slot
        if tensor.bands:
            # The number of the pattern in `merge.tensor_weights` that matches the name; -1 for the recipe's weights.
            number = self._number(slot.name)
            mixes = [self._mix(band.have, tensor.stored, number) for band in tensor.bands]
            # The dtype follows from the weights and stored dtypes of the tensor, so all of its bands have the same.
            dtype = mixes[0].dtype
            bands = list[PlannedBand]()
            for band, mix in zip(tensor.bands, mixes, strict=True):
                sources = _at(tensor.sources, mix.used, band.start)
                bands.append(
                    PlannedBand(mix.op_on(tensor), band.start, band.count, sources, mix.weights)
                )
        else:
            # Not floats: merging checks that the ingredients have the same bytes.
            first = slot.parts[0]
            dtype = first.dtype
            weights = (1.0,) * len(tensor.sources)
            bands = [PlannedBand("same", 0, first.count, tensor.sources, weights)]
        return PlannedTensor(
            name=slot.name,
            dtype=dtype,
            shape=slot.shape,
            shard=0,
            offset=0,
            nbytes=math.prod(slot.shape) * BITS[dtype] // 8,
            bands=tuple(bands),
        )


def _total(weights: Collection[float]) -> float:
    """The sum of the weights of the models that have a row, to divide by (UserError: the sum is zero)."""
    if _cancel(weights):
        raise UserError(
            "weights of the models that have a row sum to zero: vocabularies that differ need others"
        )
    return sum(weights)


def _cancel(weights: Collection[float]) -> bool:
    """Whether weights sum to zero but for their rounding: nothing can be divided by their sum."""
    return abs(sum(weights)) <= TOLERANCE * sum(map(abs, weights))


def _at(sources: Sequence[Source], used: Sequence[int], elements: int) -> tuple[Source, ...]:
    """The sources of the models `used`, moved by a number of elements."""
    chosen = tuple(sources[i] for i in used)
    if not elements:
        return chosen
    return tuple(replace(s, offset=s.offset + elements * BITS[s.dtype] // 8) for s in chosen)


def place_tensors(
    tensors: Sequence[PlannedTensor], limit: int
) -> tuple[tuple[PlannedTensor, ...], tuple[str, ...]]:
    """(tensors with their places, names of the shards): shards are filled in order up to `limit` bytes.

    Inside a shard wide dtypes come first, so that all stay aligned.
    """
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    count = len(groups)
    names: tuple[str, ...] = (SINGLE,)
    if count > 1:
        names = tuple(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count))
    placed = []
    for shard, group in enumerate(groups):
        offset = 0
        for tensor in sorted(group, key=lambda tensor: -BITS[tensor.dtype]):
            placed.append(replace(tensor, shard=shard, offset=offset))
            offset += tensor.nbytes
    return tuple(placed), names


def matcher(pattern: str) -> Callable[[str], bool]:
    """A test on tensor names.

    Without `*` or `?` the pattern is a run of dotted parts anywhere in the name; with them it has to match the whole
    name. A part `3-7` is a range of numbers, ends included. `layers.0-7` is the first eight layers.
    """
    # Wildcards and ranges become regular expressions, the text between them stands for itself.
    text = "".join(map(_token, re.split(rf"(\*|\?|{RANGE})", pattern)))
    if "*" not in pattern and "?" not in pattern:
        text = rf"(?:.*\.)?{text}(?:\..*)?"
    regex = re.compile(text, re.DOTALL)
    return lambda name: regex.fullmatch(name) is not None


def _token(token: str) -> str:
    """The regular expression of a piece of a pattern: `*`, `?`, a range of numbers, or text."""
    if token == "*":
        return ".*"
    if token == "?":
        return "."
    if re.fullmatch(r"\d+-\d+", token):
        low, high = map(int, token.split("-"))
        numbers = "|".join(map(str, range(low, high + 1)))
        return f"(?:{numbers})"
    return re.escape(token)


def check_tensor_weights(
    tensor_weights: Mapping[str, Sequence[float]],
) -> tuple[tuple[str, Weights], ...]:
    """(pattern, weights) pairs in the written order.

    Raises:
        UserError: an empty pattern or range, or weights that do not sum to one.
    """
    pairs = []
    for pattern, values in tensor_weights.items():
        if not pattern:
            raise UserError("merge.tensor_weights has an empty pattern: name tensors")
        for layers in re.findall(RANGE, pattern):
            low, high = layers.split("-")
            # `matcher` lists all numbers of a range.
            if not int(low) <= int(high) < 10_000:
                raise UserError(
                    f"merge.tensor_weights.{pattern}: the range {low}-{high} must be ascending and below 10000"
                )
        pairs.append((pattern, check_weights(values, f"merge.tensor_weights.{pattern}")))
    return tuple(pairs)


def fitted(
    tensor_weights: Mapping[str, Sequence[float]], pool: Sequence[str], used: Sequence[str]
) -> list[list[str | list[float]]]:
    """[pattern, weights of the ingredients `used`] pairs of lists that are in the order of `pool`.

    A list, because the order of patterns decides, and a recipe's hash sorts the keys of a mapping. A soup of a part of
    the pool takes the weights of that part, scaled to sum to one. If these sum to 0, the pattern is left out.

    Raises:
        UserError: a list has another length than the pool.
    """
    pairs: list[list[str | list[float]]] = []
    for pattern, values in check_tensor_weights(tensor_weights):
        if len(values) != len(pool):
            raise UserError(
                f"merge.tensor_weights.{pattern} has {len(values)} weights for {len(pool)} candidates"
            )
        weights = [values[pool.index(name)] for name in used]
        if _cancel(weights):
            continue
        total = sum(weights)
        if len(weights) < len(pool):
            weights = [weight / total for weight in weights]
        pairs.append([pattern, weights])
    return pairs


def _weights_by_tensor(
    recipe: Recipe, names: Sequence[str]
) -> tuple[list[Weights], Callable[[str], int]]:
    """(weights of each pattern in the recipe's `overrides`, function from a tensor's name to its pattern's number).

    The first pattern that matches counts; without one, the number is -1.

    Raises:
        UserError: the method is not linear, a list has another length than the recipe, or a pattern matches nothing.
    """
    overrides = recipe.settings.get("overrides") or ()
    pairs = [(str(pattern), tuple(map(float, weights))) for pattern, weights in overrides]
    if not pairs:
        return [], lambda name: -1
    if recipe.method != "linear":
        raise UserError(
            f"merge.tensor_weights works with merge.method=linear only, not {recipe.method}"
        )
    for pattern, weights in pairs:
        if len(weights) != len(recipe.weights):
            raise UserError(
                f"merge.tensor_weights.{pattern} needs {len(recipe.weights)} weights, not {len(weights)}"
            )
    tests = [(pattern, matcher(pattern)) for pattern, _ in pairs]
    for pattern, test in tests:
        if not any(test(name) for name in names):
            raise UserError(
                f"merge.tensor_weights.{pattern} matches no tensor; a tensor's name is {names[0]}"
            )
    numbers = dict[str, int]()
    for name in names:
        matching = (i for i, (_, test) in enumerate(tests) if test(name))
        numbers[name] = next(matching, -1)
    return [weights for _, weights in pairs], numbers.__getitem__
