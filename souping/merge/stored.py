"""Soups in the layout of the trainer (`merge.format=same`): the newest ingredient's files with other weights in them.

A stored box of the newest checkpoint is a tensor of the plan, and each ingredient is seen through views of that box,
however it is sharded itself. Objects, integers, random number generators and files beside the weights are the newest's;
optimiser state stays behind: it belongs to the weights that were averaged, and some trainers keep a second copy of the
weights in it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from pathlib import Path
from typing import BinaryIO

from souping.checkpoints import Checkpoint
from souping.checkpoints.archives import Archive
from souping.checkpoints.compatibility import align
from souping.checkpoints.folder import MAX_SIDE, Like
from souping.checkpoints.header import FLOATS, inside, small
from souping.checkpoints.pickles import Made, pickled
from souping.checkpoints.sharded import META, OPTIMISER, ZIP, Sharded, metadata, read_sharded
from souping.checkpoints.views import View, row_major
from souping.core.fields import load
from souping.core.open_files import reserve
from souping.core.text import shown
from souping.core.types import Folders, Recipe, UserError
from souping.merge.alignment import Alignment
from souping.merge.plan import MergePlan, PlanFile, PlannedTensor, SoupFiles, base_name

STEP_NAME = re.compile(r"(?:checkpoint[-_]|step[-_]?|iter_|global_step_?)(\d+)")
LEFT = re.compile(r"(?:.*/)?(?:optim[^/]*|recipe\.json|README\.md)(?:/.*)?|.*\.(?:distcp|py|pyc)")
"""Files that are not carried over."""
COPY = 1 << 24


@dataclass(frozen=True)
class Segment:
    """Bytes that the soup's file has from the newest ingredient's, but for boxes of weights in it.

    `source` and `target` are where it begins in the two files, `boxes` {unit: (offset in it, bytes)} in order.
    """

    source: int
    target: int
    nbytes: int
    boxes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class StoredFrame(SoupFiles):
    """Files of the newest checkpoint around the weights, and the metadata, without which they are not archives."""

    folder: Path
    files: Mapping[str, Sequence[Segment]]
    metadata: Mapping[str, bytes]

    @property
    def slots(self) -> dict[str, tuple[int, int]]:
        """{unit: (number of the file, offset in it)}"""
        return {
            unit: (number, one.target + start)
            for number, segments in enumerate(self.files.values())
            for one in segments
            for unit, (start, _) in one.boxes.items()
        }

    def prepare(self, stage: Path) -> None:
        for name, segments in self.files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("rb") as source, (stage / name).open("xb") as target:
                reserve(target.fileno(), segments[-1].target + segments[-1].nbytes)
                for one in segments:
                    at = 0
                    for start, nbytes in (*one.boxes.values(), (one.nbytes, 0)):
                        _copy(source, one.source + at, target, one.target + at, start - at)
                        at = start + nbytes
        for name in carried_files(self.folder, self.files):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(small(inside(self.folder, name), MAX_SIDE))

    def finish(self, stage: Path) -> None:
        for name, segments in self.files.items() if self.metadata else ():
            with (stage / name).open("r+b") as file:
                for one in segments:
                    if one.boxes:
                        Archive.open(stage / name, file, one.target, one.nbytes).sign()
        for name, content in self.metadata.items():
            (stage / name).write_bytes(content)


def _copy(source: BinaryIO, start: int, target: BinaryIO, place: int, nbytes: int) -> None:
    source.seek(start)
    target.seek(place)
    while nbytes:
        piece = source.read(min(nbytes, COPY))
        if not piece:
            raise UserError(
                f"{source.name} has become shorter: start again when nothing writes there"
            )
        target.write(piece)
        nbytes -= len(piece)


def carried_files(folder: Path, weights: Iterable[str]) -> list[str]:
    """Files beside the weights that the soup has too, relative to the folder."""
    known = set(weights)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [n for n in names if n not in known and not LEFT.fullmatch(n) and Path(n).name != META]


def newest(names: Folders, carry: str | None) -> str:
    """The ingredient that gives the layout: `merge.carry`, the largest step in a path, else the last."""
    if carry in names and carry is not None:
        return carry
    steps = {
        name: int(("-1", *STEP_NAME.findall("/".join(path.parts)))[-1])
        for name, path in names.items()
    }
    return max(reversed([*names]), key=steps.__getitem__)


def stored_plan(
    recipe: Recipe,
    models: Alignment,
    *,
    max_shard_size: int | str,
    nonfinite: str,
    carry: str | None,
    allow_pickle: bool = False,
) -> MergePlan:
    """The plan of a recipe's soup in the layout of its newest ingredient.

    Raises:
        UserError: an ingredient is not sharded, or they differ in names, shapes or dtypes.
    """
    opened = {name: models.checkpoints[name] for name in recipe.ingredients}
    base = {base_name(models.checkpoints): models.base} if models.base is not None else {}
    stored = {name: _opened(name, one, allow_pickle) for name, one in (opened | base).items()}
    chosen = newest({name: opened[name].folder for name in opened}, carry)
    align(
        {name: Checkpoint.viewed(one, one.as_stored(), {}, None) for name, one in stored.items()},
        "error",
    )
    frame, boxes = framed(stored[chosen])
    seen = {
        name: replace(Checkpoint.viewed(one, boxes, {}, None), like=(opened | base)[name].like)
        for name, one in stored.items()
    }
    aligned = Alignment({n: seen[n] for n in opened}, next((seen[n] for n in base), None))
    dtype = "+".join(sorted({one.dtype for one in seen.values()}))
    made = aligned.plan(
        replace(recipe, dtype=dtype),
        max_shard_size=max_shard_size,
        nonfinite=nonfinite,
        carry=chosen,
    )
    tensors = list[PlannedTensor]()
    slots = frame.slots
    for tensor in made.tensors:
        kept = seen[chosen].tensors[tensor.name].dtype
        if tensor.dtype != kept:
            what = f"{shown(tensor.name)} is {kept} in {chosen} and {tensor.dtype} in the soup"
            raise UserError(
                f"merge.format=same keeps dtypes, but {what}: use merge.format=hf, or merge.carry=NAME"
            )
        shard, offset = slots[tensor.name]
        tensors.append(replace(tensor, shard=shard, offset=offset))
    tensors.sort(key=lambda tensor: (tensor.shard, tensor.offset))
    return replace(
        made, recipe=recipe, tensors=tuple(tensors), shards=tuple(frame.files), frame=frame
    )


def _opened(name: str, checkpoint: Checkpoint, allow_pickle: bool) -> Sharded:
    sharded = read_sharded(checkpoint.folder, allow_pickle)
    if sharded is None:
        raise UserError(
            f"merge.format=same needs sharded checkpoints, and {name} is a Hugging Face folder: use hf"
        )
    return sharded


# The frame of a layout


def framed(sharded: Sharded) -> tuple[StoredFrame, dict[str, View]]:
    """The frame of a checkpoint, and its boxes of weights by unit.

    DCP's files have their slices that are kept one behind the other; safetensors files are as they were.

    Raises:
        UserError: its layout is only read.
    """
    if sharded.layout == "ranks":
        raise UserError(
            f"{sharded.folder}: files by rank are read, but not written: use merge.format=hf"
        )
    folder = sharded.folder
    prefix = f"{sharded.root}/" if sharded.root else ""
    parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    boxes = {}
    for name, tensor in sharded.tensors.items():
        for part in tensor.parts if tensor.dtype in FLOATS else ():
            unit = f"{name}[{','.join(map(str, part.start))}]" if any(part.start) else name
            steps = row_major(tensor.shape)
            boxes[unit] = View.of(name, part.sizes, sum(map(mul, part.start, steps)), tensor.shape)
            parts[part.file].append((part.offset, part.count * tensor.size, unit))
    if sharded.layout == "safetensors":
        spans = {name: [(0, (folder / name).stat().st_size)] for name in sharded.files}
        return StoredFrame(
            folder, {name: _segments(spans[name], parts[name]) for name in spans}, {}
        ), boxes
    table, entries = metadata(folder, prefix)
    kept: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for entry in entries:
        if not OPTIMISER.fullmatch(entry.name):
            kept[entry.file].add((entry.offset, entry.length))
    files = {name: _segments(sorted(kept[name]), parts[name]) for name in sorted(kept)}
    for name in files:
        with inside(folder, name).open("rb") as file:
            if file.read(4) != ZIP:
                raise UserError(
                    f"{name} of {folder} is of a kind that is not written: use merge.format=hf"
                )
    places = {
        (name, one.source): one.target for name, segments in files.items() for one in segments
    }
    return StoredFrame(
        folder, files, {f"{prefix}{META}": pickled(_moved(table, prefix, places))}
    ), boxes


def _segments(spans: Sequence[tuple[int, int]], parts: list[tuple[int, int, str]]) -> list[Segment]:
    """Spans (offset, bytes) of a file one behind the other, with the parts (offset, bytes, unit) that are in them."""
    segments = list[Segment]()
    at = 0
    parts.sort()
    for start, nbytes in spans:
        mine = parts[bisect_left(parts, (start,)) : bisect_left(parts, (start + nbytes,))]
        segments.append(
            Segment(start, at, nbytes, {unit: (place - start, size) for place, size, unit in mine})
        )
        at += nbytes
    return segments


def _moved(table: Made, prefix: str, places: Mapping[tuple[str, int], int]) -> Made:
    """The metadata without optimiser state, with new places."""
    state = {key: value for key, value in table.state.items() if key != "all_local_plans"}
    for key in ("state_dict_metadata", "planner_data"):
        if isinstance(state.get(key), dict):
            state[key] = {
                name: value for name, value in state[key].items() if not OPTIMISER.fullmatch(name)
            }
    state["storage_data"] = {}
    for key, info in table["storage_data"].items():
        place = places.get((f"{prefix}{info['relative_path']}", info["offset"]))
        if place is not None:
            state["storage_data"][key] = replace(info, state={**info.state, "offset": place})
    return replace(table, state=state)


# Saved plans


def load_plan(path: Path) -> MergePlan:
    """The plan that `MergePlan.save` wrote, worked out again from the headers.

    Raises:
        UserError: the file is not a plan, or an ingredient is missing or has changed.
    """
    table: PlanFile = load(path, PlanFile)
    files = table["files"]
    pickled_files = any(
        name.endswith((".bin", ".pt")) for sizes in files.values() for name in sizes
    )
    try:
        recipe = Recipe.from_dict(table["recipe"])
        folders = {name: Path(folder) for name, folder in table["folders"].items()}
        carry = table["carry"]
        same = table["format"] == "same"
        home, rules = (Path(each) if each else None for each in (table["like"], table["names"]))
        models = {
            n: Checkpoint.open(folder, pickled_files, Like(home, rules, same))
            for n, folder in folders.items()
        }
        ingredients = {name: models.pop(name) for name in recipe.ingredients}
        opened = Alignment(ingredients, next(iter(models.values()), None))
        make = (
            partial(stored_plan, models=opened, allow_pickle=pickled_files) if same else opened.plan
        )
        made = make(
            recipe,
            max_shard_size=table["max_shard_size"],
            nonfinite=table["nonfinite"],
            carry=carry,
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a merge plan: {shown(str(error))}") from error
    for each in made.ingredients:
        if each.files != files.get(each.name):
            raise UserError(f"{each.folder} has changed since the plan was made: plan again")
    return made
