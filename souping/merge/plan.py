"""Merge plan: plain data that says where every byte of the soup comes from and where it goes.

A saved plan holds the recipe, the folders and the sizes of their files; `stored.load_plan` works it out again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypedDict

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from souping.checkpoints import Checkpoint
from souping.checkpoints.folder import INDEX, SINGLE
from souping.checkpoints.header import header_bytes, size_of
from souping.core.fields import pick
from souping.core.text import is_user_code, safe
from souping.core.types import Recipe, UserError, Weights
from souping.merge import Format, Nonfinite, SoupPlan
from souping.merge.kernels import Combine, Float32, delta, linear

HUGE = 1e30  # no weight is larger; fp32 holds its products
MOST = 1000
"""Ingredients of one soup at most."""
MAX_RECIPE = 10_000_000
"""Bytes of a recipe.json at most."""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Operation = Literal["mix", "linear", "copy", "same"]


class PlanFile(TypedDict):
    """Saved plan. A base model is the folder that is no ingredient; `files` are {model: {file: bytes}}."""

    version: Literal[1]
    recipe: dict[str, Any]
    folders: dict[str, str]
    files: dict[str, dict[str, int]]
    carry: str
    like: str | None
    names: str | None
    format: Format
    max_shard_size: Annotated[int, Interval(ge=1, lt=2**62)]
    nonfinite: Nonfinite


@dataclass(frozen=True)
class Source:
    """Place of a piece in one ingredient: indexes into the plan's ingredients and that one's files, in bytes."""

    ingredient: int
    file: int
    offset: int
    dtype: str


@dataclass(frozen=True)
class Piece:
    """Elements `start .. start + count` of a tensor.

    `op` is mix (the plan's method), linear, copy (one source, same dtype) or
    same (not floats: all sources must agree).
    """

    op: Operation
    start: int
    count: int
    sources: tuple[Source, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class PlannedTensor:
    """Tensor of the soup: its place is `offset` bytes into the data of shard number `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Ingredient:
    """Checkpoint that is read, under its name in the recipe."""

    name: str
    checkpoint: Checkpoint

    @property
    def folder(self) -> str:
        return str(self.checkpoint.folder.resolve())

    @property
    def files(self) -> dict[str, int]:
        """{weight file: its size in bytes}"""
        return {name: self.checkpoint.stamps[name][0] for name in self.checkpoint.files}


class SoupFrame(Protocol):
    """Files around a soup's weights where they are not those of Hugging Face."""

    def prepare(self, stage: Path) -> None:
        """Make the files at their full size, with all but the weights in them."""
        ...

    def finish(self, stage: Path) -> None:
        """Write what depends on the weights, and what has to be written last."""
        ...


@dataclass(frozen=True, kw_only=True)
class MergePlan(SoupPlan):
    """Recipe worked out to the byte. With a base model, that is the last ingredient.

    With a `frame` the shards are its files, and the places of tensors count from their start.
    """

    recipe: Recipe
    method: str
    dtype: str
    nonfinite: str
    carry: int
    vocab_size: int | None
    max_shard_size: int
    ingredients: tuple[Ingredient, ...]
    shards: tuple[str, ...]
    tensors: tuple[PlannedTensor, ...]
    frame: SoupFrame | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are written."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that are read."""
        pieces = (piece for tensor in self.tensors for piece in tensor.pieces)
        return sum(piece.count * size_of(source.dtype) for piece in pieces for source in piece.sources)

    def header(self, shard: int) -> bytes:
        """The safetensors header of a shard with its length in front, padded to 8 bytes; empty in a frame."""
        if self.frame is not None:
            return b""
        return header_bytes((t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in self.tensors if t.shard == shard)

    def index(self) -> bytes | None:
        """`model.safetensors.index.json`, or None for a single file or a frame."""
        if self.shards == (SINGLE,) or self.frame is not None:
            return None
        places = {tensor.name: self.shards[tensor.shard] for tensor in sorted(self.tensors, key=lambda t: t.name)}
        return (json.dumps({"metadata": {"total_size": self.nbytes}, "weight_map": places}, indent=2) + "\n").encode()

    def check_unchanged(self) -> None:
        """Raises UserError where a file of an ingredient is not the one that the plan was made of."""
        check_ingredients(self.ingredients)

    @property
    def carrier(self) -> str:
        """The ingredient whose config and tokenizer the soup gets."""
        return self.ingredients[self.carry].name

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        lines = [f"{w:.6g} x {i.name}" for w, i in zip(self.recipe.weights, self.ingredients, strict=False)]
        place = SINGLE if len(self.shards) == 1 else f"{len(self.shards)} shards and {INDEX}"
        if self.frame is not None:
            place = f"{len(self.shards)} files in the layout of {self.carrier}"
        read, written = human(self.read_bytes), human(self.nbytes)
        return safe(
            f"{self.method} soup {self.recipe.id}: {' + '.join(lines)}\n"
            f"{len(self.tensors)} tensors, {self.dtype}, reads {read}, writes {written} to {place}"
        )

    def save(self, path: Path) -> Path:
        table: PlanFile = {
            "version": 1,
            "recipe": self.recipe.as_dict(),
            "folders": {each.name: each.folder for each in self.ingredients},
            "files": {each.name: each.files for each in self.ingredients},
            "carry": self.carrier,
            "like": next((str(one.resolve()) for each in self.ingredients if (one := each.checkpoint.like)), None),
            "names": next((str(one.resolve()) for each in self.ingredients if (one := each.checkpoint.rules)), None),
            "format": "hf" if self.frame is None else "same",
            "max_shard_size": self.max_shard_size,
            "nonfinite": "warn" if self.nonfinite == "warn" else "error",
        }
        path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        return path


def check_ingredients(ingredients: Iterable[Ingredient]) -> None:
    """Raises UserError where a file of one of them is not the one that was opened."""
    for ingredient in ingredients:
        ingredient.checkpoint.check_unchanged()


def carried(carry: str | None, recipe: Recipe) -> str | None:
    """The ingredient that `merge.carry` names, where the recipe has it."""
    return carry if carry in recipe.ingredients else None


def recipe_from_dict(table: dict[str, Any]) -> Recipe:
    """A recipe from the JSON form of `Recipe.as_dict` (its `id` is recomputed, other keys are ignored)."""
    return Recipe(
        ingredients=tuple(str(name) for name in table["ingredients"]),
        fingerprints=tuple(str(value) for value in table["fingerprints"]),
        weights=tuple(float(weight) for weight in table["weights"]),
        dtype=str(table["dtype"]),
        method=str(table.get("method", "linear")),
        settings=dict(table.get("settings", {})),
        sources={str(name): str(source) for name, source in (table.get("sources") or {}).items()},
    )


def base_name(names: Iterable[str]) -> str:
    """A name for the base model that none of the candidates has."""
    taken, name = set(names), "base"
    while name in taken:
        name += " model"
    return name


def human(nbytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def parse_size(size: int | str) -> int:
    """Bytes in a size such as 5GB, 500MB or 1GiB; a bare number is bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    unit = match.group(2).upper() if match else "?"
    unit = unit if unit in UNITS else f"{unit}B"
    value = float(match.group(1)) * UNITS[unit] if match and unit in UNITS else 0
    if not 1 <= value < 1 << 62 or (unit == "" and value % 1):
        raise UserError(f"merge.max_shard_size={size} must be a positive size such as 5GB or 500MB")
    return int(value)


# ------------------------------------------------------------ methods

Gram = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Merge method: how tensors become one.

    `function(tensors, weights)` gets the ingredients in the recipe's order; with `base=True` the base model comes
    first, with weight 0, and `coefficients` sees the Gram matrix of the differences to it.
    """

    function: Combine
    coefficients: Callable[[Gram, Weights], Weights] | None = None
    base: bool = False
    whole: bool = False
    least: int = 1
    most: int | None = None

    def __call__(self, tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        """The method on whole tensors, fp32 in and out: the plain form of what the engine streams."""
        values = tuple(weights)
        if self.coefficients is not None:
            values = self.weigh(gram(tensors, self.base), values)
        return self.function(tensors, values)

    def weigh(self, inner: Gram, weights: Weights) -> Weights:
        """The weights that `function` gets, from the weights of the recipe."""
        if self.coefficients is None:
            return weights
        if self.base:
            return (0.0, *self.coefficients(inner, weights[1:]))
        return self.coefficients(inner, weights)


def gram(tensors: Sequence[Float32], base: bool) -> Gram:
    """Inner products [K, K] in fp64 of the tensors, or with `base` of their differences to the first one."""
    wide = [tensor.astype(np.float64).ravel() for tensor in tensors]
    if base:
        wide = [tensor - wide[0] for tensor in wide[1:]]
    result = np.zeros((len(wide), len(wide)))
    for i, left in enumerate(wide):
        for j in range(i + 1):
            result[i, j] = result[j, i] = float((left * wide[j]).sum())
    return result


def slerp_weights(inner: Gram, weights: Weights) -> Weights:
    """Spherical interpolation of two tensors (Shoemake 1985) at t = w_1 / (w_0 + w_1).

    sin((1-t) a)/sin(a) and sin(t a)/sin(a) with a the angle between them; straight where |cos a| > 0.9995 or a tensor
    is zero.
    """
    t = weights[1] / (weights[0] + weights[1])
    norms = np.sqrt(np.diag(inner))
    if min(norms) <= 1e-8:
        return (1 - t, t)
    cosine = float(np.clip(inner[0, 1] / (norms[0] * norms[1]), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t, t)
    angle = np.arccos(cosine)
    return (float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle)))


def stock_weights(inner: Gram, weights: Weights) -> Weights:
    """Model Stock (arXiv 2403.19522, equation for N models): t = N c / (1 + (N-1) c).

    c is the mean cosine between the fine-tuned models' differences to the base; the soup is the base moved by t times
    their weighted mean difference (the paper's mean is the uniform one). A pole (1 + (N-1) c = 0) keeps the base.
    """
    count, norms = len(weights), np.sqrt(np.diag(inner))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = float(np.mean([inner[i, j] / max(norms[i] * norms[j], 1e-12) for i, j in pairs]))
    below = 1 + (count - 1) * cosine
    t = count * cosine / below if abs(below) > 1e-6 else 0.0
    total = sum(weights)
    return tuple(t * weight / total for weight in weights)


def source(name: str) -> str | None:
    """Digest of the file of a method that is not this package's: its code is part of what a soup is."""
    function = get_method(name).function
    if not is_user_code(function):
        return None
    return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()


METHODS: dict[str, Method] = {
    "linear": Method(function=linear),
    "task_arithmetic": Method(function=delta, base=True),
    "slerp": Method(function=linear, coefficients=slerp_weights, least=2, most=2),
    "model_stock": Method(function=delta, coefficients=stock_weights, base=True, least=2),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    return METHODS[pick(name, METHODS, "merge.method", "; others run with merge=mergekit")]


def check_count(name: str, count: int) -> None:
    """Refuse a number of ingredients that the method is not defined for."""
    method = get_method(name)
    if count < method.least or (method.most is not None and count > method.most):
        wanted = f"exactly {method.most}" if method.most == method.least else f"at least {method.least}"
        raise UserError(f"merge.method={name} needs {wanted} ingredients with a weight above zero, there are {count}")


def check_shares(name: str, weights: Weights) -> None:
    """Refuse weights that the method takes no shares of: it is defined between its ingredients alone."""
    if get_method(name).coefficients is not None and (min(weights) < 0 or not sum(weights)):
        raise UserError(f"merge.method={name} needs weights that are not negative, not {list(weights)}")
