"""Merge plan: plain data that says where every byte of the soup comes from and where it goes.

A plan from a file is checked for everything that is relied on, before anything is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from souping.checkpoints.checkpoint import INDEX, SINGLE, Stamp, check_stamps, inside, small
from souping.checkpoints.dtypes import BITS, FLOATS, size_of
from souping.checkpoints.header import MAX_RANK, header_bytes
from souping.core.text import read_json, safe, shown
from souping.core.types import Json, Recipe, UserError, Weights
from souping.merge import SoupPlan
from souping.merge.methods import check_count, check_shares, get_method

VERSION = 1
HUGE = 1e30  # no weight is larger; fp32 holds its products
MOST = 1000
"""Ingredients of one soup at most."""
MAX_RECIPE = 10_000_000
"""Bytes of a recipe.json at most."""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Operation = Literal["mix", "linear", "copy", "same"]
SHARD = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")


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
    """Folder that is read: `files` are (name, size in bytes).

    `stamps` are those of its files and side files when it was opened; a plan from a file has none.
    """

    name: str
    folder: str
    files: tuple[tuple[str, int], ...]
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class MergePlan(SoupPlan):
    """Recipe worked out to the byte. With a base model, that is the last ingredient."""

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
    notes: tuple[str, ...] = ()

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
        """The safetensors header of a shard with its length in front, padded to 8 bytes."""
        return header_bytes((t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in self.tensors if t.shard == shard)

    def index(self) -> bytes | None:
        """`model.safetensors.index.json`, or None for a single file."""
        if self.shards == (SINGLE,):
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
        read, written = human(self.read_bytes), human(self.nbytes)
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return safe(
            f"{self.method} soup {self.recipe.id}: {' + '.join(lines)}\n"
            f"{len(self.tensors)} tensors, {self.dtype}, reads {read}, writes {written} to {place}{notes}"
        )

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal plan."""
        table = {"version": VERSION, **{k: v for k, v in vars(self).items() if k not in ("recipe", "tensors")}}
        table["recipe"] = self.recipe.as_dict()
        table["ingredients"] = [{"name": i.name, "folder": i.folder, "files": i.files} for i in self.ingredients]
        table["tensors"] = [_dump(tensor) for tensor in self.tensors]
        return json.dumps(table, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> MergePlan:
        """The plan of `to_json`.

        Raises:
            UserError: the text is not a plan of this version.
        """
        try:
            plan = _load(read_json(text))
            check_plan(plan)
            return plan
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"not a merge plan of version {VERSION}: {shown(str(error))}") from None

    def save(self, path: Path) -> Path:
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> MergePlan:
        """Raises UserError where the file is missing or no plan."""
        try:
            return cls.from_json(small(Path(path)).decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"the plan {path} cannot be read: it is no text") from None


def check_ingredients(ingredients: Iterable[Ingredient]) -> None:
    """Raises UserError where a file of one of them is not the one that was opened."""
    for ingredient in ingredients:
        check_stamps(Path(ingredient.folder), ingredient.stamps)


def _dump(tensor: PlannedTensor) -> list[Any]:
    pieces = [
        [p.op, p.start, p.count, [[s.ingredient, s.file, s.offset, s.dtype] for s in p.sources], list(p.weights)]
        for p in tensor.pieces
    ]
    return [tensor.name, tensor.dtype, list(tensor.shape), tensor.shard, tensor.offset, tensor.nbytes, pieces]


def _piece(row: list[Any]) -> Piece:
    op, start, count, sources, weights = row
    if op not in ("mix", "linear", "copy", "same"):
        raise ValueError(f"unknown operation {op}")
    return Piece(op, int(start), int(count), tuple(Source(*s) for s in sources), tuple(float(w) for w in weights))


def _load(table: dict[str, Any]) -> MergePlan:
    if table.pop("version") != VERSION:
        raise ValueError("another version")
    table["recipe"] = recipe_from_dict(table["recipe"])
    table["ingredients"] = tuple(
        Ingredient(i["name"], i["folder"], tuple((str(n), int(s)) for n, s in i["files"])) for i in table["ingredients"]
    )
    table["tensors"] = tuple(
        PlannedTensor(name, dtype, tuple(shape), shard, offset, nbytes, tuple(_piece(row) for row in pieces))
        for name, dtype, shape, shard, offset, nbytes, pieces in table["tensors"]
    )
    table["shards"], table["notes"] = tuple(table["shards"]), tuple(table["notes"])
    return MergePlan(**table)


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


def check_plan(plan: MergePlan) -> None:
    """Refuse a plan whose places do not tile its shards, or that reads or writes elsewhere.

    Raises:
        ValueError: what is wrong. UserError: a method or a file name that cannot be.
    """
    texts = [plan.dtype, plan.method, *plan.notes, *(part for i in plan.ingredients for part in (i.name, i.folder))]
    _need(all(isinstance(text, str) and "\0" not in text for text in texts), "a name")
    get_method(plan.method)
    _need(plan.nonfinite in ("error", "warn"), "nonfinite")
    _need(_whole(plan.carry) and plan.carry < len(plan.ingredients), "carry")
    _need(plan.vocab_size is None or _whole(plan.vocab_size), "vocab_size")
    _need(_whole(plan.max_shard_size), "max_shard_size")
    names = plan.shards
    _need(all(isinstance(n, str) and SHARD.fullmatch(n) for n in names) and len(set(names)) == len(names), "shards")
    for ingredient in plan.ingredients:
        for name, _ in ingredient.files:
            inside(Path(ingredient.folder), name)
    _tensors(plan)


def _tensors(plan: MergePlan) -> None:
    ends = [0] * len(plan.shards)
    for tensor in plan.tensors:
        _need(isinstance(tensor.name, str) and BITS.get(tensor.dtype, 0) >= 8, "a tensor's name or dtype")
        _need(len(tensor.shape) <= MAX_RANK, f"the shape of {tensor.name}")
        _need(all(map(_whole, tensor.shape)) and _whole(tensor.offset) and _whole(tensor.nbytes), f"{tensor.name}")
        _need(_whole(tensor.shard) and tensor.shard < len(ends), f"the shard of {tensor.name}")
        _need(tensor.offset == ends[tensor.shard], f"the place of {tensor.name}")
        ends[tensor.shard] += tensor.nbytes
        _pieces(plan, tensor)
    _need(len({tensor.name for tensor in plan.tensors}) == len(plan.tensors), "tensor names")


def _pieces(plan: MergePlan, tensor: PlannedTensor) -> None:
    count = math.prod(tensor.shape)
    _need(count * BITS[tensor.dtype] == tensor.nbytes * 8, f"the size of {tensor.name}")
    start = 0
    for piece in tensor.pieces:
        _need(piece.start == start and _whole(piece.count), f"the pieces of {tensor.name}")
        start += piece.count
        _need(len(piece.sources) == len(piece.weights) > 0, f"the sources of {tensor.name}")
        _need(all(map(math.isfinite, piece.weights)), f"the weights of {tensor.name}")
        _sources(plan, tensor, piece)
        if piece.op == "mix":
            _shares(plan.method, piece.weights)
    _need(start == count, f"the pieces of {tensor.name}")


def _shares(name: str, weights: Weights) -> None:
    """Numbers of sources and weights that the plan's method is defined for; a base comes first."""
    own = weights[get_method(name).base :]
    _need(len(own) > 0, "the sources of a mix")
    check_count(name, len(own))
    check_shares(name, own)


def _sources(plan: MergePlan, tensor: PlannedTensor, piece: Piece) -> None:
    mixed = piece.op in ("mix", "linear")
    _need(not mixed or tensor.dtype in FLOATS, f"the dtype of {tensor.name}")
    _need(piece.op != "copy" or (len(piece.sources) == 1 and tensor.dtype in FLOATS), f"the copy of {tensor.name}")
    for source in piece.sources:
        numbers = (source.ingredient, source.file, source.offset)
        _need(all(map(_whole, numbers)) and source.ingredient < len(plan.ingredients), f"a source of {tensor.name}")
        files = plan.ingredients[source.ingredient].files
        _need(source.file < len(files), f"a source of {tensor.name}")
        _need(source.dtype in FLOATS if mixed else source.dtype == tensor.dtype, f"a source's dtype of {tensor.name}")
        end = source.offset + piece.count * size_of(source.dtype)
        _need(end <= files[source.file][1], f"a source of {tensor.name}")


def _whole(value: Json) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _need(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be")
