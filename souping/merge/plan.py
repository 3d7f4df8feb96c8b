"""Merge plan: plain data that says where every byte of a soup is read and where it will be written.

    recipe   weights of ingredients
      |      `alignment` compares their headers and reads no weight
    plan     shards of the soup, each a run of tensors:     [ embed           | norm | up_proj | .. ]
      |
    tensor   bands of rows that the same ingredients have:  [ rows of a and b | rows of b ]
      |      (one band, unless vocabularies differ)
    band     an operation, weights, and a source (file, offset, dtype) in each ingredient that counts
      |      `mixing.chunks` joins bands that follow each other in all files
    chunk    contiguous bytes in every file; ranks share the chunks of a plan
      |      `mixing.blocks` cuts it, unless the method needs all of it at once
    block    what a thread holds: `writer` reads a row of each source, `mixing` makes one of them by the kernels,
             and `writer` puts it at its place in the shard

A saved plan holds the recipe, the folders and the sizes of their files; `stored.load_plan` works it out again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypedDict

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import INDEX, SINGLE
from souping.checkpoints.header import header_bytes, size_of
from souping.core.fields import Bounds
from souping.core.reading import to_json
from souping.core.text import human, one_line, safe
from souping.core.types import Json, Names, Recipe, frozen
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import Format, Nonfinite, SoupPlan

HUGE = 1e30  # no weight is larger; fp32 holds its products
MOST_INGREDIENTS = 1000
"""Ingredients of one soup at most."""
Operation = Literal["mix", "linear", "copy", "same"]


class PlanFile(TypedDict):
    """Saved plan. A base model is the folder that is not an ingredient; `files` are {model: {file: bytes}}."""

    version: Literal[1]
    recipe: dict[str, Any]
    folders: dict[str, str]
    files: dict[str, dict[str, int]]
    tokenizer_from: str
    reference_model: str | None
    name_rules: str | None
    format: Format
    max_shard_size: Annotated[int, Bounds(ge=1, lt=2**62)]
    nonfinite: Nonfinite


class PlanContent(PlanFile, total=False):
    """Saved plan with `weights`, the similarity of the candidates' weights, which a merge does not need."""

    weights: Json


@dataclass(frozen=True)
class Source:
    """Place of a band in one ingredient: `ingredient` is an index into the plan's ingredients, `file` an index into
    the files of that ingredient, and `offset` is in bytes.
    """

    ingredient: int
    file: int
    offset: int
    dtype: str


@dataclass(frozen=True)
class PlannedBand:
    """Elements `start .. start + count` of a tensor, made of `sources` with these `weights`.

    `op` is mix (the plan's method), linear, copy (one source, same dtype) or same (not floats: all sources must agree).
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
    bands: tuple[PlannedBand, ...]


@dataclass(frozen=True)
class Ingredient:
    """Checkpoint that is read, under its name in the recipe."""

    name: str
    checkpoint: Checkpoint

    @property
    def folder(self) -> str:
        return str(self.checkpoint.source.resolve())

    @property
    def files(self) -> dict[str, int]:
        """{weight file: its size in bytes}"""
        return {name: self.checkpoint.stamps[name].size for name in self.checkpoint.files}


class SoupFiles(Protocol):
    """Files around a soup's weights in a layout other than that of Hugging Face."""

    def prepare(self, stage: Path) -> None:
        """Make the files at their full size, with all but the weights in them."""
        ...

    def finish(self, stage: Path) -> None:
        """Write what depends on the weights, and what has to be written last."""
        ...


@frozen
class MergePlan(SoupPlan):
    """Recipe worked out to the byte. A base model is the last ingredient.

    `tokenizer_from` is the number of the ingredient whose config and tokenizer the soup gets. `vocab_size` is the
    soup's number of rows if vocabularies differ, else None. With a `frame` the shards are its files, and the places of
    tensors count from their start.
    """

    recipe: Recipe
    method: str
    dtype: str
    nonfinite: Nonfinite
    tokenizer_from: int
    vocab_size: int | None
    max_shard_size: int
    ingredients: tuple[Ingredient, ...]
    shards: Names
    tensors: tuple[PlannedTensor, ...]
    frame: SoupFiles | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are written."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that are read."""
        total = 0
        for tensor in self.tensors:
            for band in tensor.bands:
                total += band.count * sum(size_of(source.dtype) for source in band.sources)
        return total

    def header(self, shard: int) -> bytes:
        """The safetensors header of a shard with its length in front, padded to 8 bytes.

        It is empty in a frame: the files of a trainer's layout are copied with the headers that they have.
        """
        if self.frame is not None:
            return b""
        tensors = [tensor for tensor in self.tensors if tensor.shard == shard]
        return header_bytes((t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in tensors)

    def shard_bytes(self, shard: int) -> int:
        """Bytes of a shard's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor.shard == shard)

    def index(self) -> bytes | None:
        """`model.safetensors.index.json`, or None for a single file or a frame."""
        if self.shards == (SINGLE,) or self.frame is not None:
            return None
        tensors = sorted(self.tensors, key=lambda tensor: tensor.name)
        places = {tensor.name: self.shards[tensor.shard] for tensor in tensors}
        table = {"metadata": {"total_size": self.nbytes}, "weight_map": places}
        return (json.dumps(table, indent=2) + "\n").encode()

    @property
    def tokenizer_source(self) -> str:
        """The ingredient whose config and tokenizer the soup gets."""
        return self.ingredients[self.tokenizer_from].name

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        parts = list[str]()
        # A base model, the last ingredient, has no weight.
        for weight, ingredient in zip(self.recipe.weights, self.ingredients, strict=False):
            parts.append(f"{weight:.6g} x {one_line(ingredient.name)}")
        if self.frame is not None:
            place = f"{len(self.shards)} files in the layout of {self.tokenizer_source}"
        elif len(self.shards) == 1:
            place = SINGLE
        else:
            place = f"{len(self.shards)} shards and {INDEX}"
        read = human(self.read_bytes)
        written = human(self.nbytes)
        return safe(
            f"{self.method} soup {self.recipe.id}: {' + '.join(parts)}\n"
            f"{len(self.tensors)} tensors, {self.dtype}, reads {read}, writes {written} to {place}"
        )

    def save(self, path: Path, similarity: PoolSimilarity | None = None) -> Path:
        """Write the plan as JSON: what it is made from, not where the bytes are (`stored.load_plan` reads it)."""
        checkpoints = [ingredient.checkpoint for ingredient in self.ingredients]
        table: PlanContent = {
            "version": 1,
            "recipe": self.recipe.as_dict(),
            "folders": {ingredient.name: ingredient.folder for ingredient in self.ingredients},
            "files": {ingredient.name: ingredient.files for ingredient in self.ingredients},
            "tokenizer_from": self.tokenizer_source,
            "reference_model": _first_resolved(checkpoint.like for checkpoint in checkpoints),
            "name_rules": _first_resolved(checkpoint.rules for checkpoint in checkpoints),
            "format": "hf" if self.frame is None else "same",
            "max_shard_size": self.max_shard_size,
            "nonfinite": self.nonfinite,
        }
        # How the candidates' weights resemble each other.
        if similarity is not None:
            table["weights"] = to_json(similarity)
        path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        return path


def _first_resolved(paths: Iterable[Path | None]) -> str | None:
    """The first path that is not None, absolute."""
    path = next(filter(None, paths), None)
    return None if path is None else str(path.resolve())


def check_ingredients(ingredients: Iterable[Ingredient]) -> None:
    """Raises UserError if a file of an ingredient is not the one that was opened."""
    for ingredient in ingredients:
        ingredient.checkpoint.check_unchanged()


def tokenizer_source(chosen: str | None, recipe: Recipe) -> str | None:
    """The ingredient that `merge.tokenizer_from` (`chosen`) names; None if the recipe does not have it."""
    return chosen if chosen in recipe.ingredients else None


def base_name(names: Iterable[str]) -> str:
    """A name for the base model that none of the candidates has."""
    taken = set(names)
    name = "base"
    while name in taken:
        name += " model"
    return name
