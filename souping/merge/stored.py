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
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeAlias

from souping.checkpoints.archives import Archive
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import align
from souping.checkpoints.folder import MAX_SIDE, Like
from souping.checkpoints.header import FLOATS, TORCH_NAMES, inside, small
from souping.checkpoints.pickles import Made, pickled
from souping.checkpoints.sharded import META, OPTIMISER, ZIP, Sharded, metadata
from souping.checkpoints.trainers import TRAINERS, step_pattern
from souping.checkpoints.views import View, dot, row_major
from souping.core.fields import load_json
from souping.core.open_files import reserve
from souping.core.text import shown
from souping.core.types import Folders, Recipe, UserError
from souping.merge import Nonfinite
from souping.merge.alignment import Alignment
from souping.merge.plan import MergePlan, PlanFile, PlannedTensor, SoupFiles, base_name

DROPPED = re.compile(
    r"(?:.*/)?(?:optim[^/]*|recipe\.json|README\.md)(?:/.*)?|.*\.(?:distcp|py|pyc)"
)
"""Files that are not carried over."""
COPY = 1 << 24
"""Bytes that are copied at once."""


StoredPart: TypeAlias = tuple[int, int, str]
"""(byte offset in its file, bytes, unit) of a box of weights; a unit is the name of a box, such as `NAME[1024,0]`."""
PartsOfFiles: TypeAlias = defaultdict[str, list[StoredPart]]


@dataclass(frozen=True)
class Segment:
    """Bytes that the soup's file takes from the newest ingredient's file, except for boxes of weights among them.

    `source` and `target` are where the segment begins in that file and in the soup's. `boxes` are {unit: (offset in the
    segment, bytes)}, in order.
    """

    source: int
    target: int
    nbytes: int
    boxes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class StoredFrame(SoupFiles):
    """Files of the newest checkpoint (`folder`) around the weights: {file: its segments} in the soup's order.

    `metadata` is {file: content} of DCP's, empty for safetensors files.
    """

    folder: Path
    files: Mapping[str, Sequence[Segment]]
    metadata: Mapping[str, bytes]

    @property
    def slots(self) -> dict[str, tuple[int, int]]:
        """{unit: (number of the file, offset in it)}"""
        slots = dict[str, tuple[int, int]]()
        for number, segments in enumerate(self.files.values()):
            for segment in segments:
                for unit, (start, _) in segment.boxes.items():
                    slots[unit] = (number, segment.target + start)
        return slots

    def prepare(self, stage: Path) -> None:
        """Make the files with holes for the weights, and copy those beside them."""
        for name, segments in self.files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("rb") as source, (stage / name).open("xb") as target:
                reserve(target.fileno(), segments[-1].target + segments[-1].nbytes)
                for segment in segments:
                    _copy_around_boxes(source, target, segment)
        for name in carried_files(self.folder, self.files):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(small(inside(self.folder, name), MAX_SIDE))

    def finish(self, stage: Path) -> None:
        """In DCP's layout, write the checksums of archives, and the metadata last: it marks a complete checkpoint."""
        if not self.metadata:
            return
        for name, segments in self.files.items():
            path = stage / name
            with path.open("r+b") as file:
                for segment in segments:
                    if segment.boxes:
                        Archive.open(path, file, segment.target, segment.nbytes).sign()
        for name, content in self.metadata.items():
            (stage / name).write_bytes(content)


def _copy_around_boxes(source: BinaryIO, target: BinaryIO, segment: Segment) -> None:
    """Copy the bytes of a segment that are before, between and behind its boxes of weights."""
    at = 0  # bytes of the segment that are copied or left out
    for start, nbytes in (*segment.boxes.values(), (segment.nbytes, 0)):
        _copy(source, segment.source + at, target, segment.target + at, start - at)
        at = start + nbytes


def _copy(source: BinaryIO, start: int, target: BinaryIO, place: int, nbytes: int) -> None:
    """Copy bytes of one file from `start` on to `place` in another."""
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
    """Files beside the `weights` that the soup has too, all relative to the folder."""
    known = set(weights)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [
        n for n in names if n not in known and not DROPPED.fullmatch(n) and Path(n).name != META
    ]


def newest(names: Folders, tokenizer_from: str | None) -> str:
    """The ingredient that gives the layout: `tokenizer_from`, else the largest step in a path, else the last."""
    if tokenizer_from in names and tokenizer_from is not None:
        return tokenizer_from
    steps = dict[str, int]()
    for name, path in names.items():
        numbers = step_pattern(*TRAINERS).findall("/".join(path.parts))
        steps[name] = int(numbers[-1]) if numbers else -1
    # Of equal steps, `max` takes the first that it sees: in reverse, the last ingredient.
    return max(reversed([*names]), key=steps.__getitem__)


def stored_plan(
    recipe: Recipe,
    models: Alignment,
    *,
    shard_bytes: int,
    nonfinite: Nonfinite,
    tokenizer_from: str | None,
) -> MergePlan:
    """The plan of a recipe's soup in the layout of its newest ingredient.

    Raises:
        UserError: an ingredient is not sharded, or they differ in names, shapes or dtypes.
    """
    ingredients = {name: models.checkpoints[name] for name in recipe.ingredients}
    checkpoints = dict(ingredients)
    base = None
    if models.base is not None:
        base = base_name(models.checkpoints)
        checkpoints[base] = models.base
    stored = {name: _sharded(name, model) for name, model in checkpoints.items()}
    _check_alike(stored)

    # All are seen through the boxes of the newest one, under the names of its units.
    chosen = newest({name: model.folder for name, model in ingredients.items()}, tokenizer_from)
    frame, boxes = framed(stored[chosen])
    views = dict[str, Checkpoint]()
    for name, sharded in stored.items():
        view = Checkpoint.viewed(sharded, boxes, config={}, home=None)
        # A saved plan names the folder that the opened checkpoint has its config from.
        views[name] = replace(view, like=checkpoints[name].like)

    alignment = Alignment(
        {name: views[name] for name in ingredients}, None if base is None else views[base]
    )
    if recipe.dtype in TORCH_NAMES and recipe.dtype not in views[chosen].dtype.split("+"):
        what = f"{chosen} is {views[chosen].dtype}, and the soup {recipe.dtype}"
        raise UserError(
            f"merge.format=same keeps dtypes, but {what}: leave merge.dtype out, or use merge.format=hf"
        )
    # Planned in all dtypes that are stored, so that each tensor keeps its own (or `_in_frame` refuses it).
    dtype = "+".join(sorted({view.dtype for view in views.values()}))
    plan = alignment.plan(
        replace(recipe, dtype=dtype),
        shard_bytes=shard_bytes,
        nonfinite=nonfinite,
        tokenizer_from=chosen,
    )
    tensors = _in_frame(plan.tensors, views[chosen], chosen, frame)
    return replace(plan, recipe=recipe, tensors=tensors, shards=tuple(frame.files), frame=frame)


def _check_alike(stored: Mapping[str, Sharded]) -> None:
    """Refuse checkpoints that differ in the names or shapes of what they store."""
    views = dict[str, Checkpoint]()
    for name, sharded in stored.items():
        views[name] = Checkpoint.viewed(sharded, sharded.as_stored(), config={}, home=None)
    align(views, "error")


def _in_frame(
    planned: Iterable[PlannedTensor], newest: Checkpoint, name: str, frame: StoredFrame
) -> tuple[PlannedTensor, ...]:
    """The tensors at their places in the files of the newest checkpoint, in order.

    `name` is that checkpoint's, for messages. Raises UserError if a tensor has another dtype there.
    """
    slots = frame.slots
    tensors = list[PlannedTensor]()
    for tensor in planned:
        dtype = newest.tensors[tensor.name].dtype
        if tensor.dtype != dtype:
            what = f"{shown(tensor.name)} is {dtype} in {name} and {tensor.dtype} in the soup"
            raise UserError(
                f"merge.format=same keeps dtypes, but {what}: use merge.format=hf, or merge.tokenizer_from=NAME"
            )
        shard, offset = slots[tensor.name]
        tensors.append(replace(tensor, shard=shard, offset=offset))
    tensors.sort(key=lambda tensor: (tensor.shard, tensor.offset))
    return tuple(tensors)


def _sharded(name: str, checkpoint: Checkpoint) -> Sharded:
    """What a checkpoint stores, in a trainer's layout (UserError: it is not of that kind)."""
    sharded = checkpoint.sharded
    if sharded is None or not sharded.layout or checkpoint.source != checkpoint.folder:
        raise UserError(
            f"merge.format=same needs sharded checkpoints, and {name} is a Hugging Face folder, one file or an average "
            "in optimiser state: use hf"
        )
    return sharded


# The frame of a layout


def framed(sharded: Sharded) -> tuple[StoredFrame, dict[str, View]]:
    """(the frame of a checkpoint, {unit: view} of its boxes of weights).

    DCP's files lose optimiser state, and the other slices move up; safetensors files stay as they are.

    Raises:
        UserError: its layout is only read.
    """
    if sharded.layout == "ranks":
        raise UserError(
            f"{sharded.folder}: files by rank are read, but not written: use merge.format=hf"
        )
    folder = sharded.folder
    boxes = dict[str, View]()
    parts: PartsOfFiles = defaultdict(list)
    for name, tensor in sharded.tensors.items():
        if tensor.dtype not in FLOATS:
            continue
        steps = row_major(tensor.shape)
        for part in tensor.parts:
            unit = name
            if any(part.start):
                unit = f"{name}[{','.join(map(str, part.start))}]"
            first = dot(part.start, steps)
            boxes[unit] = View.of(name, part.sizes, first, tensor.shape)
            parts[part.file].append((part.offset, part.count * tensor.size, unit))
    if sharded.layout == "dcp":
        return _dcp_frame(sharded, parts), boxes
    files = dict[str, list[Segment]]()
    for name in sharded.files:
        nbytes = (folder / name).stat().st_size
        files[name] = _segments([(0, nbytes)], parts[name])
    return StoredFrame(folder, files, {}), boxes


def _dcp_frame(sharded: Sharded, parts: PartsOfFiles) -> StoredFrame:
    """The frame of a DCP checkpoint: slices of its files but optimiser state, and metadata with their new places."""
    folder = sharded.folder
    prefix = f"{sharded.root}/" if sharded.root else ""
    table, entries = metadata(folder, prefix)
    # {file: (offset, bytes) of its slices}
    spans: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for entry in entries:
        if not OPTIMISER.fullmatch(entry.name):
            spans[entry.file].add((entry.offset, entry.length))
    files = {name: _segments(sorted(spans[name]), parts[name]) for name in sorted(spans)}

    # {(file, offset): new offset}
    places = dict[tuple[str, int], int]()
    for name, segments in files.items():
        with inside(folder, name).open("rb") as file:
            if file.read(4) != ZIP:
                raise UserError(
                    f"{name} of {folder} is of a kind that is not written: use merge.format=hf"
                )
        for segment in segments:
            places[name, segment.source] = segment.target
    return StoredFrame(folder, files, {f"{prefix}{META}": pickled(_moved(table, prefix, places))})


def _segments(spans: Sequence[tuple[int, int]], parts: list[StoredPart]) -> list[Segment]:
    """Spans (offset, bytes) of a file as consecutive segments of the soup's file, with the parts of weights in each."""
    segments = list[Segment]()
    at = 0
    parts.sort()
    for start, nbytes in spans:
        # (start,) sorts before every part that begins there.
        first = bisect_left(parts, (start,))
        end = bisect_left(parts, (start + nbytes,))
        boxes = {unit: (place - start, size) for place, size, unit in parts[first:end]}
        segments.append(Segment(start, at, nbytes, boxes))
        at += nbytes
    return segments


def _moved(table: Made, prefix: str, places: Mapping[tuple[str, int], int]) -> Made:
    """The metadata without optimiser state, with the new offsets in `places`, {(file, offset): offset}."""
    # The plans by which ranks saved the checkpoint are of the old files.
    state = {key: value for key, value in table.state.items() if key != "all_local_plans"}
    for key in ("state_dict_metadata", "planner_data"):
        entries = state.get(key)
        if isinstance(entries, dict):
            state[key] = {k: value for k, value in entries.items() if not OPTIMISER.fullmatch(k)}
    state["storage_data"] = {}
    for key, info in table["storage_data"].items():
        # Optimiser state has no new place.
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
    table: PlanFile = load_json(path, PlanFile)
    files = table["files"]
    # If the plan has pickled files, its maker had allowed them.
    names = chain.from_iterable(files.values())
    allow_pickle = any(name.endswith((".bin", ".pt")) for name in names)
    try:
        recipe = Recipe.from_dict(table["recipe"])
        same = table["format"] == "same"
        like = Like(
            folder=Path(table["reference_model"]) if table["reference_model"] else None,
            rules=Path(table["name_rules"]) if table["name_rules"] else None,
            stored=same,
        )
        models = dict[str, Checkpoint]()
        for name, folder in table["folders"].items():
            models[name] = Checkpoint.open(Path(folder), allow_pickle, like)
        ingredients = {name: models.pop(name) for name in recipe.ingredients}
        # The folder that is left, if any, is the base model's.
        base = next(iter(models.values()), None)
        alignment = Alignment(ingredients, base)
        make_plan = alignment.plan
        if same:
            make_plan = partial(stored_plan, models=alignment)
        plan = make_plan(
            recipe,
            shard_bytes=table["max_shard_size"],
            nonfinite=table["nonfinite"],
            tokenizer_from=table["tokenizer_from"],
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a merge plan: {shown(str(error))}") from error
    for ingredient in plan.ingredients:
        if ingredient.files != files.get(ingredient.name):
            raise UserError(f"{ingredient.folder} has changed since the plan was made: plan again")
    return plan
