"""Soups in the layout of the trainer (`merge.format=same`): the newest ingredient's files with other weights in them.

A stored box of the newest checkpoint is a tensor of the plan, and each ingredient is seen through views of that box,
however it is sharded itself. Objects, integers, random number generators and files beside the weights are the newest's;
optimiser state stays behind: it belongs to the weights that were averaged, and some trainers keep a second copy of the
weights in it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from souping.checkpoints import Checkpoint
from souping.checkpoints.folder import MAX_SIDE, Like
from souping.checkpoints.header import FLOATS, inside, read_header, small
from souping.checkpoints.pickles import Data, Made, pickled
from souping.checkpoints.sharded import (
    META,
    NO_WEIGHTS,
    OPTIMISER,
    Entry,
    Sharded,
    entries_of,
    metadata,
    place_in,
    read_sharded,
    stored_slices,
)
from souping.checkpoints.views import Part, View, row_major
from souping.core.fields import load
from souping.core.files import reserve
from souping.core.text import listed, shown
from souping.core.types import Recipe, UserError
from souping.merge.alignment import Alignment, open_alignment
from souping.merge.plan import MergePlan, PlanFile, SoupFiles, base_name

STEP = re.compile(r"(?:checkpoint[-_]|step[-_]?|iter_|global_step_?)(\d+)")
LEFT = re.compile(r"(?:.*/)?(?:optim[^/]*|recipe\.json|README\.md)(?:/.*)?|.*\.(?:distcp|py|pyc)")
"""Files that are not carried over."""
COPY = 1 << 24


@dataclass(frozen=True)
class Copy:
    """Bytes that the soup's file has from the newest ingredient's."""

    start: int
    source: int
    nbytes: int


@dataclass(frozen=True)
class Slot:
    """Place of a box's bytes in the soup's file, and of their checksums."""

    file: int
    offset: int
    nbytes: int
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class StoredFrame(SoupFiles):
    """Files of the newest checkpoint around the weights: what is copied, where boxes go, and the metadata."""

    folder: Path
    root: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    copies: tuple[tuple[Copy, ...], ...]
    slots: Mapping[str, Slot]
    texts: Mapping[str, bytes]

    def prepare(self, stage: Path) -> None:
        for name, size, copies in zip(self.files, self.sizes, self.copies, strict=True):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("rb") as source, (stage / name).open("xb") as target:
                reserve(target.fileno(), size)
                for copy in copies:
                    _copy(source, target, copy)
        for name in carried_files(self.folder, self.files):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(small(inside(self.folder, name), MAX_SIDE))

    def finish(self, stage: Path) -> None:
        for number, name in enumerate(self.files):
            with (stage / name).open("r+b") as file:
                for slot in (slot for slot in self.slots.values() if slot.file == number and slot.checksums):
                    _sign(file, slot)
        for name, content in self.texts.items():
            (stage / name).write_bytes(content)


def _copy(source: BinaryIO, target: BinaryIO, copy: Copy) -> None:
    source.seek(copy.source)
    target.seek(copy.start)
    rest = copy.nbytes
    while rest:
        piece = source.read(min(rest, COPY))
        if not piece:
            raise UserError(f"{source.name} has become shorter: start again when nothing writes there")
        target.write(piece)
        rest -= len(piece)


def _sign(file: BinaryIO, slot: Slot) -> None:
    """Write the checksum of a box that was filled to its places."""
    file.seek(slot.offset)
    value, rest = 0, slot.nbytes
    while rest:
        piece = file.read(min(rest, COPY))
        value, rest = zlib.crc32(piece, value), rest - len(piece)
    for place in slot.checksums:
        file.seek(place)
        file.write(value.to_bytes(4, "little"))


def carried_files(folder: Path, weights: Iterable[str]) -> list[str]:
    """Files beside the weights that the soup has too, relative to the folder."""
    known = set(weights)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [n for n in names if n not in known and not LEFT.fullmatch(n) and Path(n).name != META]


def newest(names: Mapping[str, Path], carry: str | None) -> str:
    """The ingredient that gives the layout: `merge.carry`, the largest step in a path, else the last."""
    if carry in names and carry is not None:
        return carry
    steps = {name: [int(n) for n in STEP.findall("/".join(path.parts))] for name, path in names.items()}
    return max(names, key=lambda name: steps[name][-1] if steps[name] else -1) if any(steps.values()) else [*names][-1]


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
    frame, boxes = framed(stored[chosen])
    views = {unit: [_view(stored[chosen], part, name)] for unit, (name, part) in boxes.items()}
    shapes = {unit: part.sizes for unit, (_, part) in boxes.items()}
    _check_alike(chosen, stored)
    seen = {
        name: replace(Checkpoint.viewed(one, views, shapes, {}, None), like=(opened | base)[name].like)
        for name, one in stored.items()
    }
    aligned = Alignment({n: seen[n] for n in opened}, next((seen[n] for n in base), None))
    dtype = "+".join(sorted({one.dtype for one in seen.values()}))
    made = aligned.plan(replace(recipe, dtype=dtype), max_shard_size=max_shard_size, nonfinite=nonfinite, carry=chosen)
    return _placed(replace(made, recipe=recipe), frame, stored[chosen], boxes, chosen)


def _opened(name: str, checkpoint: Checkpoint, allow_pickle: bool) -> Sharded:
    plain = checkpoint.assembly is None or checkpoint.quantised is not None
    sharded = None if plain else read_sharded(checkpoint.folder, allow_pickle)
    if sharded is None:
        raise UserError(f"merge.format=same needs sharded checkpoints, and {name} is a Hugging Face folder: use hf")
    return sharded


def _view(sharded: Sharded, part: Part, name: str) -> View:
    steps = row_major(sharded.tensors[name].shape)
    return View(name, sum(a * step for a, step in zip(part.start, steps, strict=True)), part.sizes, steps)


def _check_alike(chosen: str, stored: Mapping[str, Sharded]) -> None:
    """Refuse checkpoints whose weights are not those of the newest."""
    first = {n: t.shape for n, t in stored[chosen].tensors.items() if t.dtype in FLOATS}
    for other, sharded in stored.items():
        shapes = {n: t.shape for n, t in sharded.tensors.items() if t.dtype in FLOATS}
        if lost := sorted(set(first) ^ set(shapes)):
            raise UserError(f"candidates {chosen} and {other} do not have the same tensors: {listed(lost)}")
        for name, shape in shapes.items():
            if shape != first[name]:
                where = f"{list(first[name])} in {chosen} and {list(shape)} in {other}"
                raise UserError(f"shapes differ: {shown(name)} is {where}; merge.format=same cannot align them")


def _placed(
    made: MergePlan, frame: StoredFrame, sharded: Sharded, boxes: Mapping[str, tuple[str, Part]], chosen: str
) -> MergePlan:
    """The plan with its tensors in the slots of the frame."""
    tensors = []
    for tensor in made.tensors:
        slot, own = frame.slots[tensor.name], sharded.tensors[boxes[tensor.name][0]].dtype
        if tensor.dtype != own:
            raise UserError(
                f"merge.format=same keeps the dtypes of {chosen}: {shown(tensor.name)} is {own} there, and the soup "
                f"{tensor.dtype}; use merge.format=hf, or merge.carry=NAME"
            )
        tensors.append(replace(tensor, shard=slot.file, offset=slot.offset))
    tensors.sort(key=lambda tensor: (tensor.shard, tensor.offset))
    return replace(made, tensors=tuple(tensors), shards=frame.files, frame=frame)


# The frame of a layout


def framed(sharded: Sharded) -> tuple[StoredFrame, dict[str, tuple[str, Part]]]:
    """The frame of a checkpoint, and its boxes of weights {unit: (tensor, part)}.

    Raises:
        UserError: its layout is only read.
    """
    if sharded.layout == "dcp":
        return _framed_dcp(sharded)
    if sharded.layout == "safetensors":
        return _framed_shards(sharded)
    raise UserError(f"{sharded.folder}: files by rank are read, but not written: use merge.format=hf")


def _unit(name: str, start: tuple[int, ...]) -> str:
    return f"{name}[{','.join(map(str, start))}]" if any(start) else name


def _framed_shards(sharded: Sharded) -> tuple[StoredFrame, dict[str, tuple[str, Part]]]:
    """Safetensors files by rank: everything but the weights is copied where it is."""
    slots: dict[str, Slot] = {}
    boxes: dict[str, tuple[str, Part]] = {}
    copies, sizes = [], []
    starts = {(p.file, p.offset): (name, p) for name, t in sharded.tensors.items() for p in t.parts}
    for number, file in enumerate(sharded.files):
        path = sharded.folder / file
        done, pieces, size = 0, [], path.stat().st_size
        for tensor in read_header(path, file).values():
            name, part = starts.get((file, tensor.offset), ("", None))
            if part is None or tensor.dtype not in FLOATS or not tensor.nbytes:
                continue
            unit = _unit(name, part.start)
            boxes[unit], slots[unit] = (name, part), Slot(number, tensor.offset, tensor.nbytes, ())
            pieces.append(Copy(done, done, tensor.offset - done))
            done = tensor.offset + tensor.nbytes
        copies.append((*pieces, Copy(done, done, size - done)))
        sizes.append(size)
    files = tuple(sharded.files)
    return StoredFrame(sharded.folder, sharded.root, files, tuple(sizes), tuple(copies), slots, {}), boxes


def _framed_dcp(sharded: Sharded) -> tuple[StoredFrame, dict[str, tuple[str, Part]]]:
    """DCP's files with the slices that are kept one behind the other, and `.metadata` with their new places."""
    prefix = f"{sharded.root}/" if sharded.root else ""
    table = metadata(sharded.folder, sharded.root)
    entries = {(e.file, e.offset): e for e in entries_of(table, sharded.folder / sharded.root, prefix)}
    kept = [one for one in stored_slices(table, sharded, prefix) if not OPTIMISER.fullmatch(one.name)]
    files = tuple(sorted({one.file for one in kept}))
    slots: dict[str, Slot] = {}
    boxes: dict[str, tuple[str, Part]] = {}
    copies, sizes, moved = [], [], dict[tuple[str, int], int]()
    for number, file in enumerate(files):
        at, pieces = 0, list[Copy]()
        with inside(sharded.folder, file).open("rb") as opened:
            for one in sorted((one for one in kept if one.file == file), key=lambda one: one.offset):
                moved[file, one.offset] = at
                entry = entries.get((file, one.offset))
                if entry is not None and entry.dtype in FLOATS and not NO_WEIGHTS.fullmatch(entry.name):
                    unit = _unit(entry.name, entry.start)
                    part, slots[unit] = _slot(sharded.folder / file, opened, entry, number, at)
                    boxes[unit] = (entry.name, part)
                    pieces += _around(at, entry, slots[unit])
                else:
                    pieces.append(Copy(at, one.offset, one.length))
                at += one.length
        copies.append(tuple(pieces))
        sizes.append(at)
    texts = {f"{prefix}{META}": pickled(_moved(table, prefix, moved))}
    return StoredFrame(sharded.folder, sharded.root, files, tuple(sizes), tuple(copies), slots, texts), boxes


def _slot(path: Path, file: BinaryIO, entry: Entry, number: int, at: int) -> tuple[Part, Slot]:
    part, record = place_in(path, file, entry)
    offset = at + part.offset - entry.offset
    return part, Slot(number, offset, record.nbytes, tuple(at + place for place in record.checksums))


def _around(at: int, entry: Entry, slot: Slot) -> Iterator[Copy]:
    """What is copied of a slice: all but the box itself."""
    yield Copy(at, entry.offset, slot.offset - at)
    end = slot.offset + slot.nbytes
    yield Copy(end, entry.offset + end - at, entry.length - (end - at))


def _moved(table: Made, prefix: str, moved: Mapping[tuple[str, int], int]) -> Made:
    """The metadata without optimiser state, with new places."""

    def kept(section: Data) -> Data:
        return (
            {k: v for k, v in section.items() if not OPTIMISER.fullmatch(k)} if isinstance(section, dict) else section
        )

    storage = {}
    for key, info in table["storage_data"].items():
        if not OPTIMISER.fullmatch(key["fqn"]):
            place = moved[f"{prefix}{info['relative_path']}", info["offset"]]
            storage[key] = Made(info.kind, info.args, info.bare, {**info.state, "offset": place})
    changes = {"state_dict_metadata": kept(table["state_dict_metadata"]), "storage_data": storage}
    state = {key: value for key, value in table.state.items() if key != "all_local_plans"}
    return Made(table.kind, table.args, table.bare, {**state, **changes, "planner_data": kept(state["planner_data"])})


# Saved plans


def load_plan(path: Path) -> MergePlan:
    """The plan that `MergePlan.save` wrote, worked out again from the headers.

    Raises:
        UserError: the file is no plan, or an ingredient is missing or has changed.
    """
    table: PlanFile = load(path, PlanFile)
    files = table["files"]
    pickled_files = any(name.endswith((".bin", ".pt")) for sizes in files.values() for name in sizes)
    try:
        recipe = Recipe.from_dict(table["recipe"])
        folders = {name: Path(folder) for name, folder in table["folders"].items()}
        base = next((folder for name, folder in folders.items() if name not in recipe.ingredients), None)
        carry, same = table["carry"], table["format"] == "same"
        home, rules = (Path(each) if each else None for each in (table["like"], table["names"]))
        opened = open_alignment(recipe, folders, base, pickled_files, Like(home, rules, same))
        make = partial(stored_plan, models=opened, allow_pickle=pickled_files) if same else opened.plan
        made = make(recipe, max_shard_size=table["max_shard_size"], nonfinite=table["nonfinite"], carry=carry)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a merge plan: {shown(str(error))}") from error
    for each in made.ingredients:
        if each.files != files.get(each.name):
            raise UserError(f"{each.folder} has changed since the plan was made: plan again")
    return made
