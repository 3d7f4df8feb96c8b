"""Plans from files: everything a cook relies on is checked before anything is written."""

from __future__ import annotations

import math
import re
from pathlib import Path

from souping.merge.checkpoint import TORCH_NAMES, inside
from souping.merge.header import BITS
from souping.merge.layout import MergePlan, Piece, PlannedTensor
from souping.merge.methods import get_method

FLOATS = tuple(TORCH_NAMES.values())
SHARD = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")


def check_plan(plan: MergePlan) -> None:
    """Refuse a plan whose places do not tile its shards, or that reads or writes elsewhere.

    Raises:
        ValueError: what is wrong. UserError: a method or a file name that cannot be.
    """
    texts = [plan.dtype, plan.method, *plan.notes, *(part for i in plan.ingredients for part in (i.name, i.folder))]
    _need(all(isinstance(text, str) for text in texts), "a name")
    get_method(plan.method)
    _need(plan.nonfinite in ("error", "warn"), "nonfinite")
    _need(_whole(plan.carry) and plan.carry < len(plan.ingredients), "carry")
    _need(plan.vocab_size is None or _whole(plan.vocab_size), "vocab_size")
    _need(_whole(plan.max_shard_size), "max_shard_size")
    divisor = plan.divisor
    _need(divisor is None or (isinstance(divisor, float) and math.isfinite(divisor) and divisor != 0), "divisor")
    names = plan.shards
    _need(all(isinstance(n, str) and SHARD.fullmatch(n) for n in names) and len(set(names)) == len(names), "shards")
    for ingredient in plan.ingredients:
        for name, _ in ingredient.files:
            inside(Path(ingredient.folder), name)
    _tensors(plan)


def _tensors(plan: MergePlan) -> None:
    ends = [0] * len(plan.shards)
    for tensor in plan.tensors:
        _need(isinstance(tensor.name, str) and tensor.dtype in BITS, "a tensor's name or dtype")
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
        _need(piece.start == start and piece.count >= 0, f"the pieces of {tensor.name}")
        start += piece.count
        _need(len(piece.sources) == len(piece.weights) > 0, f"the sources of {tensor.name}")
        _need(all(map(math.isfinite, piece.weights)), f"the weights of {tensor.name}")
        _sources(plan, tensor, piece)
    _need(start == count, f"the pieces of {tensor.name}")


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
        end = source.offset + piece.count * BITS[source.dtype] // 8
        _need(end <= files[source.file][1], f"a source of {tensor.name}")


def _whole(value: object) -> bool:
    return type(value) is int and value >= 0


def _need(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be")
