"""`merge.adapters=merge`: the soup as a full model: base + sum_i w_i s_i B_i A_i, rounded once to the output dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from souping.core import Recipe, UserError
from souping.merge.adapters.base import Site
from souping.merge.adapters.factors import Read, Share, blocks_of, product
from souping.merge.adapters.guard import Guard
from souping.merge.adapters.keep import Shares
from souping.merge.average import Kitchen, Progress, prepare
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import BITS, shown
from souping.merge.kernels import narrow, widen
from souping.merge.layout import MergePlan, PlannedTensor
from souping.merge.plan import plan_opened

FULL = "F32"
"""The products of a merged soup are made of factors in fp32."""


def base_plan(recipe: Recipe, name: str, base: Checkpoint, max_shard_size: int | str, nonfinite: str) -> MergePlan:
    """The plan of the output's tensors: the base's, in the recipe's dtype, under the recipe's name."""
    alone = Recipe(ingredients=(name,), fingerprints=("",), weights=(1.0,), dtype=recipe.dtype)
    plan = plan_opened(alone, {name: base}, max_shard_size=max_shard_size, nonfinite=nonfinite)
    return replace(plan, recipe=recipe)


def write_model(
    plan: MergePlan,
    stage: Path,
    sites: Mapping[str, Site],
    shares: Shares,
    read: Read,
    guard: Guard,
    progress: Progress | None,
) -> None:
    """All shards into a staging folder: the base's tensors streamed, the adapted ones block by block.

    Raises:
        UserError: a tensor is shared with one that is not adapted, a file ended early, or a value is not finite.
    """
    refuse_shared(sites, shares)
    adapted = {sites[module].tensor.name: module for module in shares}
    done = plan.nbytes - sum(t.nbytes for t in plan.tensors if t.name in adapted)
    prepare(plan, stage)
    with Kitchen(plan, stage) as kitchen:
        kitchen.plan = replace(plan, tensors=tuple(t for t in plan.tensors if t.name not in adapted))
        kitchen.cook(progress=None if progress is None else lambda count, _: progress(count, plan.nbytes))
    for tensor in (t for t in plan.tensors if t.name in adapted):
        module = adapted[tensor.name]
        _write_tensor(plan, tensor, stage, sites[module], shares[module], read, guard)
        done += tensor.nbytes
        if progress is not None:
            progress(done, plan.nbytes)


def refuse_shared(sites: Mapping[str, Site], shares: Shares) -> None:
    """A full model cannot hold an embedding and the head tied to it with different values."""
    bad = [module for module in shares if sites[module].shared]
    if bad:
        raise UserError(
            f"the adapters change {shown(bad[0])}, whose weight the base ties to another module: a merged model cannot "
            "hold both. Keep the soup an adapter (merge.adapters=keep)."
        )


def _write_tensor(
    plan: MergePlan, tensor: PlannedTensor, stage: Path, site: Site, shares: Sequence[Share], read: Read, guard: Guard
) -> None:
    made = product(read, shares, FULL, site.transposed, guard)
    rows, columns = tensor.shape
    start = len(plan.header(tensor.shard)) + tensor.offset
    owner = plan.ingredients[0].name
    descriptor = os.open(stage / plan.shards[tensor.shard], os.O_RDWR)
    try:
        for first, count in blocks_of(rows, columns):
            raw = read(owner, site.tensor, first * columns, count * columns)
            base = widen(raw, site.tensor.dtype).reshape(count, columns)
            guard(base, owner, site.tensor)
            out = narrow(made.added(base, first).reshape(-1), tensor.dtype)
            guard.soup(widen(out, tensor.dtype), tensor.name)
            _pwrite(descriptor, out.data, start + first * columns * BITS[tensor.dtype] // 8)
    finally:
        os.close(descriptor)


def _pwrite(descriptor: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
